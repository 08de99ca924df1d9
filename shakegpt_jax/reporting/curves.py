"""Plots with matplotlib, which the extra `plot` installs."""

import shlex
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shakegpt_jax.cli.command import import_extra
from shakegpt_jax.errors import UserError
from shakegpt_jax.reporting.metrics import MetricsRow
from shakegpt_jax.reporting.terminal import format_duration

FILE_NAME = "curves.png"  # the default, inside a run folder
X_AXES = {"step": "step", "seconds": "seconds of training"}  # option and label

_PANELS = {
    "learning_rate": "learning rate",
    "gradient_norm": "gradient norm before clipping",
    "characters_per_second": "characters/s",
}
# Okabe and Ito's palette for the colour-blind (2008), without its yellow; then other strokes.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
_STROKES = ("-", "--", ":")
_STAR = {"marker": "*", "markersize": 13, "markeredgecolor": "white", "markeredgewidth": 0.5}
_LONGEST_NAME = 50  # characters that fit the width
_NATS_ABOVE_BEST = 1.5  # the first steps would flatten the rest of the curves
_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_WIDE = 10  # from this ratio on, an axis is logarithmic


def new_figure(**options: Any) -> Any:
    """Return an empty `matplotlib.figure.Figure`, without pyplot and its global state."""
    figure = import_extra("matplotlib.figure", extra="plot")
    return figure.Figure(layout="constrained", **options)


def plot_curves(
    runs: dict[str, list[MetricsRow]], path: str | Path, x: str = "step", note: str = ""
) -> None:
    """Plot the metrics of runs by name into a file; x is a key of `X_AXES`."""
    save_figure(draw_curves(runs, x, note), path)


def draw_run(workdir: Path, rows: list[MetricsRow]) -> str:
    """Plot a run that has ended into its folder, and return a line that says so, or why not."""
    path, folder = workdir / FILE_NAME, shlex.quote(str(workdir))
    try:
        plot_curves({workdir.resolve().name: rows}, path)
    except Exception as error:  # whatever matplotlib raises must not end a run
        reason = str(error).partition("\n")[0] or type(error).__name__
        return f"No curves: {reason}; then run shakegpt plot {folder}"
    return f"Curves: {path}"


def draw_curves(runs: dict[str, list[MetricsRow]], x: str = "step", note: str = "") -> Any:
    """Return the figure: losses with the best marked, `note` above, and `_PANELS` below."""
    shown = {name: _losses(rows, x) for name, rows in runs.items()}
    if not any(shown.values()):
        times = x == "seconds" and any(_losses(rows, "step") for rows in runs.values())
        missing = "times; use --x step" if times else "loss yet"
        raise UserError(f"the metrics of {', '.join(runs)} have no {missing}")
    figure = new_figure(figsize=(7, 5.6 + 0.2 * len(runs)))
    losses, *panels = figure.subplots(4, sharex=True, height_ratios=(5, 1, 1, 1))
    labels = {}
    for number, (name, rows) in enumerate(runs.items()):
        stroke = _STROKES[number // len(_COLORS) % len(_STROKES)]
        style = {"color": _COLORS[number % len(_COLORS)], "linestyle": stroke}
        _plot(losses, _points(rows, x, "train_loss"), linewidth=0.8, alpha=0.7, **style)
        line = _plot(losses, _points(rows, x, "val_loss"), marker="o", markersize=4, **style)
        evaluated = [row for row in rows if row.evaluation]
        best = min(evaluated, key=lambda row: row.to_json()["val_loss"], default=None)
        _plot(losses, _points([best] if best else [], x, "val_loss"), **_STAR, **style)
        labels[line] = _label(name, best, shown[name], x)
        for axes, field in zip(panels, _PANELS, strict=True):
            _plot(axes, _points(rows, x, field), linewidth=0.8, **style)
    losses.set_ylim(*_loss_limits([each for each in shown.values() if each]))
    losses.set_ylabel("loss, nats per character")
    _title(losses, "thin: training, dots: validation, star: best" + (note and f"; {note}"))
    for axes, (field, title) in zip(panels, _PANELS.items(), strict=True):
        _title(axes, title)
        values = [y for rows in runs.values() for _, y in _points(rows, x, field)]
        _scale(axes, values, may_be_log=field != "learning_rate")  # which decays to nothing
    last = [_points(rows, x, "learning_rate")[-1][0] for name, rows in runs.items() if shown[name]]
    if min(last) > 0 and max(last) >= _WIDE * min(last):  # the short runs would be slivers
        losses.set_xscale("log")
        losses.xaxis.set_major_formatter(_number)
    else:
        losses.set_xlim(left=0)
    panels[-1].set_xlabel(X_AXES[x])
    figure.legend(
        labels.keys(), labels.values(), loc="outside upper left", frameon=False, fontsize="small"
    )
    return figure


def _points(rows: Iterable[MetricsRow], x: str, field: str) -> list[tuple[float, float]]:
    """Return x and the value of a field of metrics.jsonl in the rows that have both."""
    flat = ((row.train_time if x == "seconds" else row.step, row.to_json()) for row in rows)
    pairs = ((at, row.get(field)) for at, row in flat)
    return [(at, value) for at, value in pairs if at is not None and value is not None]


def _plot(axes: Any, points: Sequence[tuple[float, float]], **style: Any) -> Any:
    """Plot a line through points, or a dot if there is only one."""
    style = {"marker": "." if len(points) == 1 else None} | style
    (line,) = axes.plot(*(zip(*points, strict=True) if points else ((), ())), **style)
    return line


def _losses(rows: Iterable[MetricsRow], x: str) -> list[float]:
    """Return all losses of a run that have a place on the axis x."""
    return [y for field in ("train_loss", "val_loss") for _, y in _points(rows, x, field)]


def _label(name: str, best: MetricsRow | None, losses: list[float], x: str) -> str:
    """Return the legend's text: figures first, since matplotlib hides names like `_name`."""
    half = (_LONGEST_NAME - 1) // 2
    name = name if len(name) <= _LONGEST_NAME else f"{name[:half]}…{name[-half:]}"
    text = "no evaluation yet" if losses else "no loss to show"
    if best and best.evaluation and losses:
        text = f"best {best.evaluation.loss:.4f} at step {best.step}"
        if x == "seconds" and best.train_time is not None:
            text += f" after {format_duration(best.train_time)}"
    return f"{text}:  {name}".replace("$", r"\$")  # no mathematics


def _loss_limits(runs: Sequence[list[float]]) -> tuple[float, float]:
    """Return limits that show the lowest loss of every run, and most of the way to it."""
    low, high = min(map(min, runs)), max(map(max, runs))
    high = min(high, max(map(min, runs)) + _NATS_ABOVE_BEST)
    margin = 0.05 * (high - low) or 0.1
    return low - margin, high + margin


def _title(axes: Any, text: str) -> None:
    axes.set_title(text, loc="left", fontsize="small", color="0.3")
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize="small")


def _scale(axes: Any, values: list[float], *, may_be_log: bool) -> None:
    """Scale a panel from zero, or logarithmically where positive values differ widely."""
    low, high = min(values, default=0), max(values, default=0)
    if may_be_log and low > 0 and high >= _WIDE * low:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter("")
    else:
        axes.set_ylim(0, 1.15 * high or 1)
        axes.locator_params(axis="y", nbins=3)
    axes.yaxis.set_major_formatter(_number)


def _number(value: float, _: int | None = None) -> str:
    """Format a tick: 0.002, 40k, 3M."""
    unit, suffix = next((each for each in _UNITS if abs(value) >= each[0]), (1, ""))
    return f"{value / unit:g}{suffix}"


def plot_growth(growth: dict[str, tuple[list[int], list[float], float]], path: str | Path) -> None:
    """Plot the growth of a step time: values, seconds and fitted exponent of each config field."""
    figure = new_figure(figsize=(6, 4))
    axes = figure.subplots()
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
    path, formats = Path(path), new_figure().canvas.get_supported_filetypes()
    if not path.suffix or path.is_dir():
        raise UserError(f"cannot write the plot {path}: give a file such as {FILE_NAME}")
    if path.suffix[1:].lower() not in formats:
        right = ", ".join(sorted(formats))
        raise UserError(f"cannot write the plot {path}: the format must be one of {right}")
    if not path.parent.is_dir():
        raise UserError(f"cannot write the plot {path}: no such folder: {path.parent}")


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a figure to a file; its suffix selects the format."""
    check_plot_path(path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # shown as a box
        try:
            figure.savefig(path, dpi=120)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"cannot write the plot {path}: {reason}") from error
