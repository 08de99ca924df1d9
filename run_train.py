"""Train a model from a checkout, as `shakegpt train` does from anywhere."""

from shakegpt_jax.cli.command import run_command
from shakegpt_jax.train_model import main

if __name__ == "__main__":
    run_command(main)
