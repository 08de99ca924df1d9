"""Train a model: python run_train.py --config configs/cpu.py [--config.train.num_steps=500 ...]."""

from shakegpt_jax.cli.command import run_command
from shakegpt_jax.train import main

if __name__ == "__main__":
    run_command(main)
