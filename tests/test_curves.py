import sys

import numpy as np
import pytest

from shakegpt_jax.errors import UserError
from shakegpt_jax.reporting import curves
from shakegpt_jax.reporting.metrics import Evaluation, MetricsRow


def row(step: int, train_loss: float | None, val_loss: float | None = None) -> MetricsRow:
    return MetricsRow(
        step=step,
        characters_per_second=1.0,
        train_loss=train_loss,
        learning_rate=1.0,
        gradient_norm=1.0,
        evaluation=Evaluation.from_losses(np.full(9, val_loss)) if val_loss else None,
        train_time=1.0,
        wall_time=1.0,
    )


ROWS = [row(1, 4.0), row(2, None, 3.5), row(3, 3.0, 3.75)]


@pytest.fixture
def axes(monkeypatch):
    """Return a function that returns the axes of the last figure, which stays open."""
    pyplot = curves.import_pyplot()
    monkeypatch.setattr(pyplot, "close", lambda figure: None)
    yield lambda: pyplot.gcf().axes[0]
    monkeypatch.undo()
    pyplot.close("all")


def test_plots_losses_and_marks_the_best(tmp_path, axes):
    curves.plot_losses({"a run": ROWS}, tmp_path / "losses.png")
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
    train, val, best = [line.get_xydata().tolist() for line in axes().lines]
    assert train == [[1, 4.0], [3, 3.0]]
    assert val == [[2, 3.5], [3, 3.75]]
    assert best == [[2, 3.5]]
    assert "best: 3.5000 at step 2" in [t.get_text() for t in axes().get_legend().texts]


def test_plots_several_runs(tmp_path, axes):
    curves.plot_losses({"a": ROWS, "b": ROWS[1:]}, tmp_path / "losses.png")
    assert len(axes().lines) == 6
    labels = [t.get_text() for t in axes().get_legend().texts]
    assert labels[:2] == ["a, training", "a, validation"] and labels[3] == "b, training"


def test_one_row_shows_its_training_loss(tmp_path, axes):
    curves.plot_losses({"a": [row(5, 3.0, 2.5)]}, tmp_path / "losses.png")
    train = axes().lines[0]
    assert train.get_xydata().tolist() == [[5, 3.0]]
    assert train.get_marker() == "."


def test_plots_growth_relative_to_the_first_value(tmp_path, axes):
    growth = {"model.n_layer": ([3, 6, 12], [0.1, 0.2, 0.4], 1.0)}
    curves.plot_growth(growth, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    (line,) = axes().lines
    assert line.get_xydata().tolist() == [[1, 100], [2, 200], [4, 400]]
    assert axes().get_xscale() == axes().get_yscale() == "log"
    assert [t.get_text() for t in axes().get_legend().texts] == ["model.n_layer: 1.00"]


def test_plots_a_run_whose_updates_were_all_skipped(tmp_path, axes):
    curves.plot_losses({"a": [row(5, None, 2.5)]}, tmp_path / "losses.png")
    assert [len(line.get_xydata()) for line in axes().lines] == [0, 1, 1]


def test_refuses_what_cannot_be_plotted(tmp_path):
    with pytest.raises(UserError, match="the metrics of a have no evaluation"):
        curves.plot_losses({"a": ROWS[:1]}, tmp_path / "losses.png")
    for name in ("losses.nosuch", "none/losses.png"):
        with pytest.raises(UserError, match="cannot write the plot"):
            curves.plot_losses({"a": ROWS}, tmp_path / name)


def test_without_matplotlib_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="plots need matplotlib: pip install"):
        curves.import_pyplot()
