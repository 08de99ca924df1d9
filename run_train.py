"""Train a model: python run_train.py --config configs/cpu.py [--config.train.num_steps=500 ...]."""

import difflib
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from shakegpt_jax.cli import run_command
from shakegpt_jax.config import Config
from shakegpt_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", "configs/cpu.py", "the run, a Python file")
_WORKDIR = flags.DEFINE_string("workdir", None, "the run's folder; default runs/<config name>")


def main() -> None:
    """Parse the flags and train."""
    config = parse_flags(sys.argv)
    from shakegpt_jax.train import train  # after parsing: a typo is told at once

    name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    train(config, _WORKDIR.value or f"runs/{name}")


def parse_flags(argv: list[str]) -> Config:
    """Fill in the flags and return the config, frozen.

    Raises:
        UserError: if a flag is unknown or its value refused, or the config cannot be loaded.
    """
    known = [f"{s}.{name}" for s, fields in Config().to_dict().items() for name in fields]
    for flag in (arg.split("=")[0] for arg in argv if arg.startswith("--config.")):
        if (field := flag.removeprefix("--config.")) not in known:
            near = difflib.get_close_matches(field, known, n=1) or ["one of " + ", ".join(known)]
            raise UserError(f"no config field {field}; did you mean {near[0]}?")
    try:
        positional = flags.FLAGS(argv)[1:]
        config = _CONFIG.value
        is_config = isinstance(config, Config)
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error
    except Exception as error:  # the config is a Python file: anything can go wrong in it
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"cannot load the config: {reason}") from error
    if not is_config:
        raise UserError("get_config() of the config file must return a shakegpt_jax.config.Config")
    if positional:
        raise UserError(f"unexpected argument {positional[0]!r}; flags start with --")
    return config.freeze()


if __name__ == "__main__":
    run_command(main)
