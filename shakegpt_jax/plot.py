"""Draw a run's training and validation loss over its steps; needs matplotlib.

python -m shakegpt_jax.plot --workdir runs/cpu --output losses.png
"""

from pathlib import Path
from typing import Any

import numpy as np

from shakegpt_jax.cli import ArgumentParser, run_command
from shakegpt_jax.errors import UserError
from shakegpt_jax.metrics import MetricsFile, Row
from shakegpt_jax.run_info import find_run


def import_pyplot() -> Any:
    """Return `matplotlib.pyplot`, set to draw into files.

    Raises:
        UserError: if matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("plots need matplotlib: pip install -e '.[plot]'") from error
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def plot_losses(rows: list[Row], title: str, path: str | Path) -> None:
    """Draw a run's losses into a file whose ending says the format.

    Args:
        rows: of `metrics.jsonl`.
        title: written above.
        path: the picture.

    Raises:
        UserError: if there is nothing to draw, or the file cannot be written.
    """
    evaluated = [row for row in rows if "val_loss" in row]
    if not evaluated:
        raise UserError(f"{title} has no evaluation yet; train on, or give another --workdir")
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    trained = [row for row in rows if row["train_loss"] is not None]
    axes.plot([row["step"] for row in trained], [row["train_loss"] for row in trained])
    steps, losses = np.array([(row["step"], row["val_loss"]) for row in evaluated]).T
    axes.plot(steps, losses, "o-")
    best = losses.argmin()
    axes.plot(steps[best], losses[best], "*", color="black", markersize=12)
    best_label = f"best: {losses[best]:.4f} at step {steps[best]:.0f}"
    axes.legend(["training", "validation, whole split", best_label])
    axes.set_ylim(min(losses[best], trained[-1]["train_loss"]) - 0.1, losses[best] + 1.5)
    axes.set_xlabel("step")
    axes.set_ylabel("nats per character")
    axes.set_title(title)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write the picture {path}: {error}") from error
    finally:
        pyplot.close(figure)


def main() -> None:
    """Run the command line; --help lists its arguments."""
    parser = ArgumentParser("plot", "Draw a run's training and validation loss over its steps.")
    parser.add_argument("--output", help="picture to write (losses.png in the run folder)")
    args = parser.parse_args()

    workdir = find_run(args.workdir)
    output = args.output or workdir / "losses.png"
    plot_losses(MetricsFile.read(workdir), str(workdir), output)
    print(output)


if __name__ == "__main__":
    run_command(main)
