"""Train a model."""

from shakegpt_jax.cli.command import STARTED, run_command, use_compilation_cache


def main() -> None:
    """Parse the arguments and train."""
    from shakegpt_jax.cli.arguments import ConfigArgumentParser, StoreOnce, named, whole_number

    parser = ConfigArgumentParser("shakegpt train", "Train a model, or resume a run.")
    help_text = "run folder; default: runs/<name of the config file>"
    parser.add_argument("--workdir", type=named, action=StoreOnce, help=help_text)
    help_text = "trace N steps with JAX's profiler, into the run folder"
    kind = whole_number(1, 1_000)
    parser.add_argument("--profile", type=kind, default=0, metavar="N", help=help_text)
    parser.add_processes()
    args, config, name = parser.parse_config()

    import jax

    from shakegpt_jax.distributed import connect
    from shakegpt_jax.training.run import train

    use_compilation_cache()
    connect(
        args.distributed,
        args.coordinator_address,
        args.num_processes,
        args.process_id,
        args.heartbeat_seconds,
    )
    train(config, args.workdir or f"runs/{name}", STARTED, profile=args.profile)
    jax.distributed.shutdown()


if __name__ == "__main__":
    run_command(main)
