"""Train a model: python run_train.py --config configs/cpu.py [--config.train.num_steps=500 ...]."""

import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from shakegpt_jax.cli import run_command
from shakegpt_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", "configs/cpu.py", "the run, a Python file")
_WORKDIR = flags.DEFINE_string("workdir", None, "the run's folder; default runs/<config name>")


def main() -> None:
    """Parse the flags and train."""
    try:
        flags.FLAGS(sys.argv)
    except flags.Error as error:
        raise UserError(str(error)) from error
    from shakegpt_jax.train import train

    name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    train(_CONFIG.value.freeze(), _WORKDIR.value or f"runs/{name}")


if __name__ == "__main__":
    run_command(main)
