"""Event files against TensorBoard's own reader."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes import SmallFiles

from shakegpt_jax.checkpoints.run_folder import run_lock
from shakegpt_jax.reporting.tensorboard import EventFile

ROOT = Path(__file__).parent.parent


def test_without_tensorboard_says_how_to_get_it(finished_copy, command, monkeypatch):
    for name in ["tensorboard", *(name for name in sys.modules if name.startswith("tensorboard."))]:
        monkeypatch.setitem(sys.modules, name, None)
    before = sorted(finished_copy.iterdir())
    code, out, err = command("plot", finished_copy, "--tensorboard")
    install = "pip install 'shakegpt-jax[tensorboard]'"
    assert (code, out, err) == (2, "", f"error: this needs tensorboard: {install}\n")
    assert sorted(finished_copy.iterdir()) == before


@pytest.fixture
def reader():
    """Return a function that opens a folder as TensorBoard does."""
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    return lambda folder: module.EventAccumulator(str(folder), size_guidance={"scalars": 0})


def scalars(reader) -> dict[str, list[tuple[int, float]]]:
    """Read what is new and return (step, value) by tag."""
    reader.Reload()
    tags = reader.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in tags}


@pytest.fixture
def lines(finished_copy) -> list[str]:
    """The lines of metrics.jsonl in `finished_copy`."""
    return (finished_copy / "metrics.jsonl").read_text().splitlines(keepends=True)


@pytest.mark.slow
def test_tensorboard_reads_what_metrics_hold(finished_copy, lines, command, reader):
    for n in (1, 2, 2):  # files do not pile up
        code, out, err = command("plot", finished_copy, "--tensorboard")
        *_, file = files = sorted(finished_copy.glob("events*"))
        assert (code, out, len(files)) == (0, f"{file}\n", n)
        assert err == f"View: tensorboard --logdir {finished_copy.parent}\n"
    opened = reader(finished_copy)
    found, rows = scalars(opened), list(map(json.loads, lines))
    names = {
        "loss/train": "train_loss",
        "loss/validation": "val_loss",
        "perplexity": "val_perplexity",
        "bits_per_character": "val_bits_per_character",
        **{name: name for name in ("learning_rate", "gradient_norm", "characters_per_second")},
    }
    assert set(found) == set(names)
    for tag, field in names.items():
        expected = [(row["step"], row[field]) for row in rows if field in row]
        assert found[tag] == [(step, pytest.approx(value)) for step, value in expected]
    assert len(found["loss/train"]) == 4 and len(found["loss/validation"]) == 2
    times = [event.wall_time for event in opened.Scalars("loss/train")]
    assert times == [row["wall_time"] for row in rows]


def test_what_cannot_be_written_is_named_as_the_user_does(finished_copy):
    pytest.importorskip("tensorboard")
    file = EventFile(finished_copy)
    with SmallFiles(), pytest.raises(OSError, match="File too large") as raised:
        file.update()
    assert raised.value.filename == str(finished_copy)


@pytest.mark.slow
def test_each_step_of_a_resumed_run_has_one_value_in_an_open_tensorboard(
    finished_copy, lines, reader
):
    metrics, other = finished_copy / "metrics.jsonl", finished_copy / "events.out.tfevents.1.other"
    other.touch()  # of another tool
    repeated = json.dumps(json.loads(lines[2]) | {"train_loss": 1.5}) + "\n"
    opened, file = reader(finished_copy), EventFile(finished_copy)
    for now, steps in (
        (lines, [3, 6, 9, 12]),
        ([*lines[:2], repeated], [3, 6, 9]),
        ([*lines[:2], repeated, lines[3][:20]], [3, 6, 9]),  # being written
        ([*lines[:2], repeated, lines[3]], [3, 6, 9, 12]),
    ):
        metrics.write_text("".join(now))
        file.update()
        losses = scalars(opened)["loss/train"]
        assert [step for step, _ in losses] == steps
        assert losses == scalars(reader(finished_copy))["loss/train"]  # opened later
        assert (9, 1.5) in losses or now is lines
    assert other.exists()


@pytest.mark.slow
@pytest.mark.parametrize("interrupt", [False, True])
def test_follow_ends_with_the_run(finished_copy, lines, reader, interrupt):
    shutil.rmtree(finished_copy / "checkpoints")  # a run that has only started
    metrics = finished_copy / "metrics.jsonl"
    metrics.write_text("")
    with run_lock(finished_copy):
        process = subprocess.Popen(
            [sys.executable, "-m", "shakegpt_jax.plot", finished_copy, "--tensorboard", "--follow"],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout and "events.out.tfevents." in process.stdout.readline()
        metrics.write_text("".join(lines))
        wait_until = time.monotonic() + 30
        while not scalars(reader(finished_copy)) and time.monotonic() < wait_until:
            time.sleep(0.1)
        if interrupt:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=30)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == (130 if interrupt else 0)
    assert errors == f"View: tensorboard --logdir {finished_copy.parent}\n"
    losses = scalars(reader(finished_copy))["loss/train"]
    assert [step for step, _ in losses] == [3, 6, 9, 12]
