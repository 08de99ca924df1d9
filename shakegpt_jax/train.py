"""Train a model."""

from shakegpt_jax.cli.command import STARTED, run_command, use_compilation_cache


def main() -> None:
    """Parse the arguments and train."""
    from shakegpt_jax.cli.arguments import ConfigArgumentParser, StoreOnce, named
    from shakegpt_jax.cli.launch import find_launch

    parser = ConfigArgumentParser("python run_train.py", "Train a model, or resume a run.")
    help_text = "run folder; default: runs/<name of the config file>"
    parser.add_argument("--workdir", type=named, action=StoreOnce, help=help_text)
    parser.add_processes()
    args, config, name = parser.parse_config()
    launch = find_launch(
        distributed=args.distributed,
        coordinator_address=args.coordinator_address,
        num_processes=args.num_processes,
        process_id=args.process_id,
    )

    from shakegpt_jax.distributed import connected
    from shakegpt_jax.training.run import train

    use_compilation_cache()
    with connected(launch, args.heartbeat_seconds):
        train(config, args.workdir or f"runs/{name}", STARTED)


if __name__ == "__main__":
    run_command(main)
