"""Train a model: python run_train.py --config configs/cpu.py [--config.train.num_steps=500 ...]."""

import sys

from absl import flags

from shakegpt_jax.cli import run_command, use_compilation_cache
from shakegpt_jax.flags import parse_flags

_WORKDIR = flags.DEFINE_string("workdir", None, "the run's folder; default runs/<config name>")


def main() -> None:
    """Parse the flags and train."""
    config, name = parse_flags(sys.argv)
    from shakegpt_jax.train import train  # after parsing: a typo is told at once

    use_compilation_cache()
    train(config, _WORKDIR.value or f"runs/{name}")


if __name__ == "__main__":
    run_command(main)
