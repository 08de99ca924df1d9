import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from shakegpt_jax.errors import UserError
from shakegpt_jax.reporting import curves
from shakegpt_jax.reporting.metrics import Evaluation, MetricsRow

PNG = b"\x89PNG"


def row(
    step: int, train_loss: float | None, val_loss: float | None = None, **changes
) -> MetricsRow:
    fields = {
        "characters_per_second": 1_000.0,
        "learning_rate": 0.1 * step,
        "gradient_norm": None if train_loss is None else 2.0,
        "train_time": 10.0 * step,
        "wall_time": 20.0 * step,
    }
    evaluation = Evaluation.from_losses(np.full(9, val_loss)) if val_loss else None
    return MetricsRow(step=step, train_loss=train_loss, evaluation=evaluation, **fields | changes)


ROWS = [row(1, 4.0), row(2, None, 3.5), row(3, 3.0, 3.75)]


def points(axes) -> list[list[list[float]]]:
    return [line.get_xydata().tolist() for line in axes.lines]


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].texts]


def test_plots_every_metric_and_marks_the_best():
    figure = curves.draw_curves({"a run": ROWS})
    losses, learning_rate, gradient_norm, speed = map(points, figure.axes)
    assert losses == [[[1, 4.0], [3, 3.0]], [[2, 3.5], [3, 3.75]], [[2, 3.5]]]
    assert [line.get_marker() for line in figure.axes[0].lines] == ["None", "o", "*"]
    assert learning_rate == [[[1, 0.1], [2, 0.2], [3, pytest.approx(0.3)]]]
    assert gradient_norm == [[[1, 2.0], [3, 2.0]]]
    assert speed == [[[1, 1000], [2, 1000], [3, 1000]]]
    assert legend(figure) == ["best 3.5000 at step 2:  a run"]


def test_plots_against_seconds():
    unknown = row(4, 2.0, 2.5, train_time=None)
    figure = curves.draw_curves({"a": [*ROWS, unknown]}, x="seconds")
    assert points(figure.axes[0])[:2] == [[[10, 4.0], [30, 3.0]], [[20, 3.5], [30, 3.75]]]
    assert figure.axes[-1].get_xlabel() == "seconds of training"
    figure = curves.draw_curves({"a": ROWS}, x="seconds")
    assert legend(figure) == ["best 3.5000 at step 2 after 20.0 s:  a"]
    with pytest.raises(UserError, match="a have no loss to plot against the seconds of training"):
        curves.draw_curves({"a": [unknown]}, x="seconds")


def test_runs_differ_in_color_or_stroke_and_keep_their_order():
    figure = curves.draw_curves({f"run {i}": ROWS[i % 2 :] for i in range(9)})
    looks = [(line.get_color(), line.get_linestyle()) for line in figure.axes[1].lines]
    assert len(set(looks)) == 9
    assert [text[-5:] for text in legend(figure)] == [f"run {i}" for i in range(9)]


def test_labels_and_axes_do_not_overlap(tmp_path):
    runs = {f"{'a long name, ' * 9}{i}": ROWS for i in range(6)}
    figure = curves.draw_curves(runs)
    curves.save_figure(figure, tmp_path / "curves.png")  # lays it out
    assert all(len(text) < 90 for text in legend(figure))
    assert all(text.endswith(f"{i}") for i, text in enumerate(legend(figure)))
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    boxes.append(figure.legends[0].get_tightbbox())
    page = figure.bbox
    for i, box in enumerate(boxes):
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
        assert not any(box.padded(-1).overlaps(other) for other in boxes[:i])  # pixels


def test_names_are_shown_as_they_are(tmp_path):
    names = ["_hidden", "$a$b", "50% $", "莎士比亚", "Пушкин"]
    figure = curves.draw_curves(dict.fromkeys(names, ROWS))
    curves.save_figure(figure, tmp_path / "curves.png")
    labels = [text.replace(r"\$", "$") for text in legend(figure)]
    assert labels == [f"best 3.5000 at step 2:  {name}" for name in names]


def test_a_divergence_hides_nothing():
    rows = [*ROWS, row(4, 500.0, gradient_norm=1e6), row(5, None, skipped_updates=1)]
    losses, _, gradient_norm, _ = curves.draw_curves({"a": rows, "b": [row(1, 9.0, 8.0)]}).axes
    low, high = losses.get_ylim()
    assert 2.5 < low < 3.0 and 8.0 < high < 11
    assert gradient_norm.get_yscale() == "log"
    assert losses.get_xscale() == "linear"
    assert losses.get_xlim()[0] == 0
    losses = curves.draw_curves({"a": rows, "long": [row(50, 3.0)]}).axes[0]
    assert losses.get_xscale() == "log"


def test_plots_what_there_is(tmp_path):
    figure = curves.draw_curves({"a": [row(5, 3.0, 2.5)], "b": ROWS[:1], "c": []})
    assert points(figure.axes[0])[:3] == [[[5, 3.0]], [[5, 2.5]], [[5, 2.5]]]
    assert figure.axes[0].lines[0].get_marker() == "."  # a line needs two points
    assert legend(figure)[1:] == ["no evaluation yet:  b", "no evaluation yet:  c"]
    figure = curves.draw_curves({"a": [row(5, None, 2.5)]})
    assert points(figure.axes[0]) == [[], [[5, 2.5]], [[5, 2.5]]]


@pytest.mark.parametrize(
    ("speed", "ticks"),
    [(0.004, ["0", "0.002", "0.004"]), (4e4, ["0", "20k", "40k"]), (2.5e9, ["0", "1G", "2G"])],
)
def test_ticks_are_short(speed, ticks):
    figure = curves.draw_curves({"a": [row(1, 4.0, characters_per_second=speed)]})
    figure.draw_without_rendering()
    assert [label.get_text() for label in figure.axes[-1].get_yticklabels()][: len(ticks)] == ticks


def test_refuses_what_cannot_be_plotted(tmp_path):
    with pytest.raises(
        UserError, match="the metrics of a, b have no loss to plot against the step"
    ):
        curves.draw_curves({"a": [], "b": [row(1, None)]})
    for name in ("curves.nosuch", "none/curves.png"):
        with pytest.raises(UserError, match="cannot write the plot"):
            curves.check_plot_path(tmp_path / name)


def test_plots_growth_relative_to_the_first_value(tmp_path, monkeypatch):
    figures = []
    save = curves.save_figure
    monkeypatch.setattr(curves, "save_figure", lambda f, path: figures.append(f) or save(f, path))
    growth = {"model.n_layer": ([3, 6, 12], [0.1, 0.2, 0.4], 1.0)}
    curves.plot_growth(growth, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(PNG)
    (axes,) = figures[0].axes
    assert points(axes) == [[[1, 100], [2, 200], [4, 400]]]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert [t.get_text() for t in axes.get_legend().texts] == ["model.n_layer: 1.00"]


def test_a_run_ends_with_a_picture_or_with_a_line(tmp_path, monkeypatch):
    assert curves.draw_run(tmp_path, ROWS) == f"Curves: {tmp_path}/curves.png"
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)

    def fail(*args):
        raise RuntimeError("no font\nat all")

    command = f"then run shakegpt plot {tmp_path}"
    with monkeypatch.context() as patch:
        patch.setattr(curves, "draw_curves", fail)
        assert curves.draw_run(tmp_path, ROWS) == f"No curves: no font; {command}"
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    line = curves.draw_run(tmp_path, ROWS)
    assert line == f"No curves: this needs matplotlib: pip install 'shakegpt-jax[plot]'; {command}"
    with pytest.raises(UserError, match="this needs matplotlib: pip install"):
        curves.check_plot_path(tmp_path / "a.png")


def test_plot_takes_runs_with_and_without_the_flag(finished, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path("runs", name).mkdir(parents=True)
        shutil.copy(finished / "metrics.jsonl", Path("runs", name))  # no checkpoint yet
    forms = (
        ("runs/a", "runs/b"),
        ("--workdir", "runs/a", "--workdir", "runs/b"),
        ("runs/a", "--x", "seconds", "runs/b"),
        ("--workdir", "runs/a", "runs/b"),
        ("runs",),
    )
    drawn: list[list[str]] = []
    monkeypatch.setattr(curves, "draw_curves", lambda runs, *_: drawn.append(sorted(runs)))
    monkeypatch.setattr(curves, "save_figure", lambda *_: None)
    for form in forms:
        assert command("plot", *form)[:2] == (0, "runs/curves.png\n")
    assert drawn == [["a", "b"]] * len(forms)
    assert command("plot", "runs/a", "--output=x.png")[:2] == (0, "x.png\n")
    for arguments, message in (
        (("--tensorboard", "--x=step"), "--tensorboard cannot be combined with"),
        (("--x", "hours"), "invalid choice: 'hours'"),
        (("runs/none",), "no such run folder: runs/none"),
        (("",), "the name is empty"),
    ):
        code, out, err = command("plot", *arguments)
        assert (code, out) == (2, "") and message in err
