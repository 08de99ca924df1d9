"""Serve a trained model over HTTP: a page, and an API that OpenAI's clients speak."""

from shakegpt_jax.cli.command import run_command, use_compilation_cache

_MOST = {"port": 65_535, "max_batch": 1_024, "max_queue": 100_000, "grace": 3_600}


def main() -> None:
    """Parse the arguments and serve."""
    from shakegpt_jax.cli.arguments import ArgumentParser, StoreOnce, named
    from shakegpt_jax.cli.command import import_extra

    parser = ArgumentParser(
        "shakegpt serve",
        "Serve a trained model over HTTP: a page, and an API that OpenAI's clients speak.",
    )
    parser.add_run()
    parser.add_step()
    add = parser.add_argument
    add("--host", type=named, action=StoreOnce, default="127.0.0.1", help="(%(default)s)")
    add("--port", type=int, default=8000, help="0: any that is free (%(default)s)")
    add(
        "--allow_host",
        action="append",
        default=[],
        metavar="NAME",
        help="name that browsers call this server by; repeatable",
    )
    add(
        "--allow_origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="whose pages may use this server, such as https://example.org; repeatable",
    )
    add("--max_batch", type=int, default=64, help="texts to write at a time (%(default)s)")
    add("--max_queue", type=int, default=256, help="texts to keep waiting (%(default)s)")
    help_text = "seconds for texts under way after Ctrl-C or SIGTERM (%(default)s)"
    add("--grace", type=int, default=10, help=help_text)
    args = parser.parse_args()
    for name, most in _MOST.items():
        least = 1 if name == "max_batch" else 0
        if not least <= (value := getattr(args, name)) <= most:
            parser.error(f"--{name} is {value}; it must be from {least} to {most}")
    for package in ("msgspec", "starlette", "uvicorn"):
        import_extra(package, extra="serve")

    from shakegpt_jax.inference.language_model import load
    from shakegpt_jax.serving.guard import check_host, check_origin
    from shakegpt_jax.serving.server import bind, run_server

    hosts = [check_host(host) for host in (args.host, *args.allow_host)]
    origins = [check_origin(origin) for origin in args.allow_origin]
    use_compilation_cache()
    with bind(args.host, args.port) as bound:
        lm = load(args.workdir or "", step=args.step)
        print(f"Loaded {lm.checkpoint}.", flush=True)
        run_server(
            lm,
            bound,
            hosts=hosts,
            origins=origins,
            max_batch=args.max_batch,
            max_queue=args.max_queue,
            grace=args.grace,
        )


if __name__ == "__main__":
    run_command(main)
