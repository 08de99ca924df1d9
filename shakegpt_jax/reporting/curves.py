"""Plots with matplotlib, which the extra `plot` installs."""

from pathlib import Path
from typing import Any

import numpy as np

from shakegpt_jax.errors import UserError
from shakegpt_jax.reporting.metrics import MetricsRow


def import_pyplot() -> Any:
    """Return `matplotlib.pyplot` with the backend that draws into files.

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


def plot_losses(runs: dict[str, list[MetricsRow]], path: str | Path) -> None:
    """Plot training and validation loss over steps, and mark the best of each run.

    Args:
        runs: metrics by run name.
        path: output file; its suffix selects the format.

    Raises:
        UserError: if a run has no evaluation or the file cannot be written.
    """
    for name, rows in runs.items():
        if not any(row.evaluation for row in rows):
            raise UserError(f"the metrics of {name} have no evaluation; choose another --workdir")
    figure, axes = import_pyplot().subplots(figsize=(6, 4), layout="constrained")
    limits = []
    for number, (name, rows) in enumerate(runs.items()):
        prefix, color = f"{name}, " if len(runs) > 1 else "", f"C{number}"
        trained = [(row.step, row.train_loss) for row in rows if row.train_loss is not None]
        evaluated = [(row.step, row.evaluation.loss) for row in rows if row.evaluation]
        best_step, best_loss = min(evaluated, key=lambda point: point[1])
        marker = "." if len(trained) == 1 else None  # a line needs two points
        steps, losses = zip(*trained, strict=True) if trained else ((), ())
        axes.plot(steps, losses, marker=marker, color=color, lw=1, alpha=0.6)
        axes.plot(*zip(*evaluated, strict=True), "o-", color=color)
        axes.plot(best_step, best_loss, "*", color=color, markeredgecolor="black", markersize=14)
        labels = ["training", "validation", f"best: {best_loss:.4f} at step {best_step}"]
        for line, label in zip(axes.lines[-3:], labels, strict=True):
            line.set_label(prefix + label)
        limits.append((min([best_loss, *(loss for _, loss in trained[-1:])]), best_loss))
    axes.legend(fontsize="small" if len(runs) > 1 else "medium")
    axes.set_ylim(min(low for low, _ in limits) - 0.1, max(best for _, best in limits) + 1.5)
    axes.set_xlabel("step")
    axes.set_ylabel("nats per character")
    axes.set_title(", ".join(runs))
    save_figure(figure, path)


def plot_growth(growth: dict[str, tuple[list[int], list[float], float]], path: str | Path) -> None:
    """Plot on logarithmic axes how a step time grows.

    Args:
        growth: values, seconds per step and fitted exponent of each config field.
        path: output file; its suffix selects the format.

    Raises:
        UserError: if the file cannot be written.
    """
    figure, axes = import_pyplot().subplots(figsize=(6, 4), layout="constrained")
    for field, (values, seconds, exponent) in growth.items():
        factors = np.array(values) / values[0]
        label = f"{field}: {exponent:.2f}"
        axes.loglog(factors, np.array(seconds) * 1e3, "o-", base=2, label=label)
    axes.set_xlabel("times the config's value")
    axes.set_ylabel("ms per step")
    axes.set_title("Cost of a training step; measured exponents")
    axes.legend()
    save_figure(figure, path)


def check_plot_path(path: str | Path) -> None:
    """Raise a UserError if a plot cannot be written there, as far as can be known before."""
    import_pyplot()
    from matplotlib.backend_bases import FigureCanvasBase

    path, formats = Path(path), FigureCanvasBase.get_supported_filetypes()
    if not path.suffix or path.is_dir():
        raise UserError(f"cannot write the plot {path}: give a file such as losses.png")
    if path.suffix[1:].lower() not in formats:
        right = ", ".join(sorted(formats))
        raise UserError(f"cannot write the plot {path}: the format must be one of {right}")
    if not path.parent.is_dir():
        raise UserError(f"cannot write the plot {path}: no such folder: {path.parent}")


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a figure to a file and close it.

    Raises:
        UserError: if the file cannot be written.
    """
    check_plot_path(path)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"cannot write the plot {path}: {reason}") from error
    finally:
        import_pyplot().close(figure)
