"""Serve a trained model over HTTP: a page, and an API that OpenAI's clients speak."""

from shakegpt_jax.cli.command import run_command, use_compilation_cache


def main() -> None:
    """Parse the arguments and serve."""
    from shakegpt_jax.cli.arguments import ArgumentParser, StoreOnce, named, whole_number
    from shakegpt_jax.cli.command import import_extra

    parser = ArgumentParser("shakegpt serve", __doc__)
    parser.add_run()
    parser.add_step()
    add = parser.add_argument
    add("--host", type=named, action=StoreOnce, default="127.0.0.1", help="(%(default)s)")
    add("--port", type=whole_number(0, 65_535), default=8000, help="0: any free one (%(default)s)")
    help_text = "name that browsers call this server by; repeatable"
    add("--allow_host", action="append", default=[], metavar="NAME", help=help_text)
    help_text = "whose pages may use this server, such as https://example.org; repeatable"
    add("--allow_origin", action="append", default=[], metavar="ORIGIN", help=help_text)
    kind, help_text = whole_number(1, 1_024), "texts to write at a time (%(default)s)"
    add("--max_batch", type=kind, default=64, help=help_text)
    kind, help_text = whole_number(0, 100_000), "texts that may wait in the queue (%(default)s)"
    add("--max_queue", type=kind, default=256, help=help_text)
    kind = whole_number(0, 3_600)
    help_text = "seconds that running texts get to finish after Ctrl-C or SIGTERM (%(default)s)"
    add("--grace", type=kind, default=10, help=help_text)
    args = parser.parse_args()
    for package in ("msgspec", "prometheus_client", "starlette", "uvicorn"):
        import_extra(package, extra="serve")

    from shakegpt_jax.inference.loading import load
    from shakegpt_jax.serving.engine import Engine
    from shakegpt_jax.serving.guard import check_host, check_origin
    from shakegpt_jax.serving.server import bind, run_server

    hosts = [check_host(host) for host in (args.host, *args.allow_host)]
    origins = [check_origin(origin) for origin in args.allow_origin]
    use_compilation_cache()
    with bind(args.host, args.port) as bound:
        lm = load(args.workdir or "", step=args.step)
        print(f"Loaded {lm.checkpoint}.", flush=True)
        engine = Engine(lm, args.max_batch, args.max_queue)
        run_server(engine, bound, hosts, origins, args.grace)


if __name__ == "__main__":
    run_command(main)
