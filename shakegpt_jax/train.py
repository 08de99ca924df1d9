"""Train a model. `python run_train.py` in a checkout is the same command."""

from shakegpt_jax.command_line.entry_point import STARTED, run_command, use_compilation_cache


def main() -> None:
    """Parse the arguments and train."""
    from shakegpt_jax.command_line.arguments import ConfigArgumentParser, StoreOnce, named

    parser = ConfigArgumentParser("python run_train.py", "Train a model, or resume a run.")
    help_text = "run folder; default: runs/<name of the config file>"
    parser.add_argument("--workdir", type=named, action=StoreOnce, help=help_text)
    args, config, name = parser.parse_config()

    from shakegpt_jax.training.run import train

    use_compilation_cache()
    train(config, args.workdir or f"runs/{name}", STARTED)


if __name__ == "__main__":
    run_command(main)
