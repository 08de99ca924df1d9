import math
import os
import re
import sys
from pathlib import Path

import pytest

from shakegpt_jax.reporting.metrics import Evaluation, MetricsRow
from shakegpt_jax.reporting.terminal import Progress, format_duration

EVALUATION = Evaluation(2.0, 0.1, math.exp(2.0), 2.0 / math.log(2), 99)
METRICS = {"loss": 1.5, "perplexity": 4.48, "bits_per_character": 2.16}


def row(step: int) -> MetricsRow:
    return MetricsRow(
        step=step,
        characters_per_second=5.0,
        train_loss=3.0,
        learning_rate=1e-3,
        gradient_norm=1.0,
        evaluation=EVALUATION,
        train_time=25.0,
        wall_time=61.0,
    )


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
    assert format_duration(seconds) == text


def test_a_command_is_one_line_however_narrow_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("FORCE_COLOR", "1")  # Rich takes the output for a terminal
    text = "Generate more: shakegpt generate --workdir runs/x"
    progress = Progress(20)
    progress.note(text)
    progress.note(text, soft_wrap=True)
    *wrapped, command = capsys.readouterr().out.splitlines()
    assert len(wrapped) > 1
    assert command == text


def test_summary_leaves_out_unknown_times(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    Progress(20).summary(10, METRICS, Path("runs/x/checkpoints/10"), 12.34, row(20))
    out = capsys.readouterr().out
    assert "10 of 20, after 12.3 s of training " in out
    assert "25.0 s" in out
    assert "1 min 1 s" in out
    Progress(20).summary(10, METRICS, Path("runs/x/checkpoints/10"), None, None)
    out = capsys.readouterr().out
    assert "10 of 20 " in out
    assert "time" not in out


def test_plain_lines_estimate_the_remaining_time(capsys, monkeypatch):
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    progress = Progress(40)
    progress.begin(10, None)
    now = 160.0
    progress.show(row(16))
    progress.show(row(40))
    first, losses, last, same_losses = capsys.readouterr().out.splitlines()
    assert first == "step 16/40: loss 3.0000, 5 characters/s, 4 min 0 s left"  # 60 s for 6 of 30
    assert last == "step 40/40: loss 3.0000, 5 characters/s"
    assert losses == same_losses
    assert losses == "    validation loss 2.0000 ± 0.1000, perplexity 7.389, 2.885 bits/character"


def test_lines_on_a_narrow_terminal_break_between_words(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("FORCE_COLOR", "1")  # Rich takes the output for a terminal
    Progress(40).show(row(40))
    out = capsys.readouterr().out
    lines = [re.sub(r"\x1b\[[0-9;?]*\w", "", line).strip() for line in out.splitlines()]
    words = " ".join(lines).split()
    assert len(lines) > 1 and all(len(line) <= 60 for line in lines)
    assert "perplexity" in words and "bits/character" in words


def test_lines_of_a_sample_are_indented_and_whole_in_a_file(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = f"{'No more ' * 15}\n\nROMEO:\n{'x' * 100}"
    Progress(40).sample(text)
    assert capsys.readouterr().out == "\n    " + text.replace("\n", "\n    ") + "\n\n"
    monkeypatch.setenv("FORCE_COLOR", "1")  # Rich takes the output for a terminal
    Progress(40).sample(text)
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert first == last == "" and len(lines) == 6
    assert all(line.startswith("    ") and len(line) <= 80 for line in lines)
    assert "".join(line[4:] for line in lines) == text.replace("\n", "")


def test_output_to_a_closed_pipe_is_dropped_and_the_run_goes_on(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)  # as when `| head` has ended
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        progress = Progress(40)
        for step in (20, 40):
            progress.show(row(step))
        print("a line from elsewhere", flush=True)
        assert os.path.samestat(os.fstat(stdout.fileno()), os.stat(os.devnull))
