from pathlib import Path

import pytest

from shakegpt_jax.progress import Progress, duration

METRICS = {"loss": 1.5, "perplexity": 4.48, "bits_per_character": 2.16}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (59.94, "59.9 s"),
        (59.95, "1 min 0 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (7199, "2 h 0 min"),
    ],
)
def test_durations_round_to_the_nearest(seconds, text):
    assert duration(seconds) == text


def test_summary_tells_the_time_until_the_best_step_and_leaves_out_what_is_not_known(
    capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "100")
    last = {"step": 20, "train_time": 25.0, "wall_time": 61.0}
    Progress(20).summary(10, METRICS, Path("runs/x/checkpoints/10"), 12.34, last)
    out = capsys.readouterr().out
    assert "10 of 20, after 12.3 s of training " in out
    assert "25.0 s" in out
    assert "1 min 1 s" in out
    Progress(20).summary(10, METRICS, Path("runs/x/checkpoints/10"), None, None)
    out = capsys.readouterr().out
    assert "10 of 20 " in out
    assert "time" not in out


def test_plain_lines_tell_the_time_that_is_left(capsys, monkeypatch):
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    progress = Progress(40)
    progress.begin(10, None)
    now = 160.0
    row = {"characters_per_second": 5.0, "train_loss": 3.0}
    figures = {"loss": 2.0, "standard_error": 0.1, "perplexity": 7.4, "bits_per_character": 2.9}
    evaluated = {f"val_{name}": value for name, value in figures.items()}
    progress.show(row | evaluated | {"step": 16})
    progress.show(row | evaluated | {"step": 40})
    first, last = capsys.readouterr().out.splitlines()
    assert first.endswith("2.900 bits/character, 4 min 0 s left")  # 60 s took it 6 steps on, of 30
    assert last.endswith("2.900 bits/character")
