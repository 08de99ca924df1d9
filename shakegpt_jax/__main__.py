"""The command `shakegpt`: runs the module of the same name as its first argument."""

import sys

from shakegpt_jax.cli.command import run_command

COMMANDS = {
    "train": "train a model, or resume a run",
    "generate": "generate text with a trained model",
    "evaluate": "evaluate trained models on a text",
    "plot": "plot the metrics of runs, or show them in TensorBoard",
    "serve": "serve a page and an API over HTTP",
    "prepare": "prepare a text that is too long for memory",
    "export": "export a model to Hugging Face, or as a page for a browser",
    "import_model": "import a model of nanoGPT or Hugging Face",
    "benchmark": "measure speed against the limits of this machine",
    "plan": "predict memory and time of a run on other GPUs",
}


def main() -> None:
    """Run the command line."""
    run_command(_dispatch)


def _dispatch() -> None:
    name = sys.argv[1].replace("-", "_") if len(sys.argv) > 1 else "__help"
    if name == "__version":
        from shakegpt_jax import __version__

        print(f"shakegpt-jax {__version__}")
        return
    if name == "__completion":
        from importlib import resources

        print((resources.files("shakegpt_jax.cli") / "completion.sh").read_text(), end="")
        return
    if name in ("_h", "__help"):
        lines = [f"  {command:<14}{meaning}" for command, meaning in COMMANDS.items()]
        print("usage: shakegpt COMMAND [options]\n\ncommands:", *lines, sep="\n")
        print("\nshakegpt COMMAND --help lists the options of a command.")
        print("shakegpt --version prints the version.")
        print('eval "$(shakegpt --completion)" in .bashrc or .zshrc completes commands.')
        return
    if name not in COMMANDS:
        import difflib

        from shakegpt_jax.errors import UserError

        near = difflib.get_close_matches(name, COMMANDS, n=1)
        advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        raise UserError(f"no command {sys.argv[1]!r}; {advice}")
    import importlib

    sys.argv[:2] = [f"shakegpt {name}"]
    module = "train_model" if name == "train" else name  # shakegpt_jax.train is a function
    importlib.import_module(f"shakegpt_jax.{module}").main()


if __name__ == "__main__":
    main()
