"""Plots with matplotlib, which the extra `plot` installs."""

import io
import shlex
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from shakegpt_jax.cli.command import import_extra
from shakegpt_jax.errors import UserError, os_errors_name
from shakegpt_jax.reporting.metrics import Callback, MetricsRow, read_metrics
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


def draw_run(workdir: Path, rows: list[MetricsRow]) -> str:
    """Plot a run that has ended into its folder, and return a line that says so, or why not."""
    path, folder = workdir / FILE_NAME, shlex.quote(str(workdir))
    try:
        save_figure(draw_curves({workdir.resolve().name: rows}), path)
    except Exception as error:  # whatever matplotlib raises must not end a run
        reason = str(error).partition("\n")[0] or type(error).__name__
        return f"No curves: {reason}; then run shakegpt plot {folder}"
    return f"Curves: {path}"


def notebook_curves(workdir: Path) -> list[Callback]:
    """Return a list with a callback that redraws one picture; empty outside a notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if not hasattr(shell, "kernel"):
        return []
    try:
        new_figure()
    except UserError:  # no matplotlib
        return []
    from IPython.display import Image, display

    handle = display(display_id=True)

    def show(row: dict[str, Any]) -> None:
        if "val_loss" in row:
            picture = io.BytesIO()
            draw_curves({workdir.resolve().name: read_metrics(workdir)}).savefig(picture, dpi=80)
            handle.update(Image(picture.getvalue(), format="png"))

    return [show]


def draw_curves(runs: dict[str, list[MetricsRow]], x: str = "step", note: str = "") -> Any:
    """Return a figure of runs by name over a key of `X_AXES`, with `note` in its title."""
    flat = {name: [row.to_json() for row in rows] for name, rows in runs.items()}
    at = {"step": "step", "seconds": "train_time"}[x]

    def points(field: str, rows: Iterable[dict[str, Any]]) -> list[tuple[float, float]]:
        pairs = ((row[at], row.get(field)) for row in rows)
        return [(x, y) for x, y in pairs if x is not None and y is not None]

    shown = {}  # losses of the runs that have any
    for name, rows in flat.items():
        if found := [*points("train_loss", rows), *points("val_loss", rows)]:
            shown[name] = [loss for _, loss in found]
    if not shown:
        names = ", ".join(runs)
        raise UserError(f"the metrics of {names} have no loss to plot against the {X_AXES[x]}")
    figure = new_figure(figsize=(7, 5.6 + 0.2 * len(runs)))
    losses, *panels = figure.subplots(4, sharex=True, height_ratios=(5, 1, 1, 1))
    labels = {}
    for number, (name, rows) in enumerate(flat.items()):
        stroke = _STROKES[number // len(_COLORS) % len(_STROKES)]
        style = {"color": _COLORS[number % len(_COLORS)], "linestyle": stroke}
        _plot(losses, points("train_loss", rows), linewidth=0.8, alpha=0.7, **style)
        line = _plot(losses, points("val_loss", rows), marker="o", markersize=4, **style)
        evaluated = (row for row in rows if "val_loss" in row)
        best = min(evaluated, key=lambda row: row["val_loss"], default={})
        _plot(losses, points("val_loss", [best] if best else []), **_STAR, **style)
        labels[line] = _label(name, best, x)
        for axes, field in zip(panels, _PANELS, strict=True):
            _plot(axes, points(field, rows), linewidth=0.8, **style)
    lowest, high = [min(each) for each in shown.values()], max(map(max, shown.values()))
    low, high = min(lowest), min(high, max(lowest) + _NATS_ABOVE_BEST)
    margin = 0.05 * (high - low) or 0.1
    losses.set_ylim(low - margin, high + margin)
    losses.set_ylabel("loss, nats per character")
    legend = "thin: training, dots: validation, star: best" + (note and f"; {note}")
    for axes, title in zip(figure.axes, [legend, *_PANELS.values()], strict=True):
        axes.set_title(title, loc="left", fontsize="small", color="0.3")
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize="small")
    for axes, field in zip(panels, _PANELS, strict=True):
        values = [y for rows in flat.values() for _, y in points(field, rows)]
        low, high = min(values, default=0), max(values, default=0)
        if field != "learning_rate" and 0 < _WIDE * low <= high:  # which decays to nothing
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter("")
        else:
            axes.set_ylim(0, 1.15 * high or 1)
            axes.locator_params(axis="y", nbins=3)
        axes.yaxis.set_major_formatter(_number)
    last = [points("learning_rate", flat[name])[-1][0] for name in shown]
    if 0 < _WIDE * min(last) <= max(last):  # the short runs would be slivers
        losses.set_xscale("log")
        losses.xaxis.set_major_formatter(_number)
    else:
        losses.set_xlim(left=0)
    panels[-1].set_xlabel(X_AXES[x])
    figure.legend(
        labels.keys(), labels.values(), loc="outside upper left", frameon=False, fontsize="small"
    )
    return figure


def _plot(axes: Any, points: list[tuple[float, float]], **style: Any) -> Any:
    """Plot a line through points, or a dot if there is only one."""
    style = {"marker": "." if len(points) == 1 else None} | style
    (line,) = axes.plot(*np.reshape(points, (-1, 2)).T, **style)
    return line


def _label(name: str, best: dict[str, Any], x: str) -> str:
    """Return the legend's text: figures first, since matplotlib hides names like `_name`."""
    half = (_LONGEST_NAME - 1) // 2
    name = name if len(name) <= _LONGEST_NAME else f"{name[:half]}…{name[-half:]}"
    text = f"best {best['val_loss']:.4f} at step {best['step']}" if best else "no evaluation yet"
    if x == "seconds" and best.get("train_time") is not None:
        text += f" after {format_duration(best['train_time'])}"
    return f"{text}:  {name}".replace("$", r"\$")  # no mathematics


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
    path, formats = Path(path), sorted(new_figure().canvas.get_supported_filetypes())
    if path.suffix[1:].lower() not in formats:
        right = f"give a file such as {FILE_NAME}, of the format {', '.join(formats)}"
        raise UserError(f"cannot write the plot {path}: {right}")
    if not path.parent.is_dir():
        raise UserError(f"cannot write the plot {path}: no such folder: {path.parent}")


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a figure to a file; its suffix selects the format."""
    check_plot_path(path)
    with os_errors_name(path), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # shown as a box
        figure.savefig(path, dpi=120)
