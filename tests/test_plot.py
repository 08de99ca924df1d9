import sys

import pytest

from shakegpt_jax import plot
from shakegpt_jax.errors import UserError
from shakegpt_jax.metrics import MetricsFile

ROWS = [
    {"step": 1, "train_loss": 4.0},
    {"step": 2, "train_loss": None, "skipped_updates": 1, "val_loss": 3.5},
    {"step": 3, "train_loss": 3.0, "val_loss": 3.6},
]


def test_losses_are_drawn_with_the_best_marked(tmp_path, monkeypatch):
    pyplot = plot.import_pyplot()
    monkeypatch.setattr(pyplot, "close", lambda figure: None)
    plot.plot_losses(ROWS, "a run", tmp_path / "losses.png")
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = pyplot.gcf().axes
    train, val, best = [line.get_xydata().tolist() for line in axes.lines]
    assert train == [[1, 4.0], [3, 3.0]]
    assert val == [[2, 3.5], [3, 3.6]]
    assert best == [[2, 3.5]]
    assert "best: 3.5000 at step 2" in [text.get_text() for text in axes.get_legend().texts]
    monkeypatch.undo()
    pyplot.close("all")


def test_what_cannot_be_drawn_is_refused(tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match="a run has no evaluation yet"):
        plot.plot_losses(ROWS[:1], "a run", tmp_path / "losses.png")
    for name in ("losses.nosuch", "none/losses.png"):
        with pytest.raises(UserError, match="cannot write the picture"):
            plot.plot_losses(ROWS, "a run", tmp_path / name)
    monkeypatch.setattr(sys, "argv", ["plot", "--workdir", str(tmp_path)])
    with pytest.raises(UserError, match="is not a run folder"):
        plot.main()
    assert MetricsFile.read(tmp_path) == []
