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

from shakegpt_jax.errors import UserError
from shakegpt_jax.reporting import tensorboard
from shakegpt_jax.reporting.metrics import read_metrics
from shakegpt_jax.training.resume import run_lock

ROOT = Path(__file__).parent.parent


def test_without_tensorboard_says_how_to_get_it(finished_copy, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("tensorboard.")]:
        monkeypatch.delitem(sys.modules, name)
    before = sorted(finished_copy.iterdir())
    code, out, err = command("plot", finished_copy, "--tensorboard")
    install = "pip install -e '.[tensorboard]'"
    assert (code, out, err) == (2, "", f"error: this needs tensorboard: {install}\n")
    assert sorted(finished_copy.iterdir()) == before


@pytest.fixture
def read():
    """Return a function that reads a folder as TensorBoard does: (step, value) by tag."""
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
        events = module.EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        tags = events.Tags()["scalars"]
        return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}

    return read


@pytest.fixture
def lines(finished_copy) -> list[str]:
    """The lines of metrics.jsonl in `finished_copy`."""
    return (finished_copy / "metrics.jsonl").read_text().splitlines(keepends=True)


def event_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("events*"))


@pytest.mark.slow
def test_tensorboard_reads_what_metrics_hold(finished_copy, lines, command, read):
    code, out, err = command("plot", finished_copy, "--tensorboard")
    (file,) = event_files(finished_copy)
    assert (code, out) == (0, f"{file}\n")
    assert err == f"View: tensorboard --logdir {finished_copy.parent}\n"
    scalars = read(finished_copy)
    rows = list(map(json.loads, lines))
    names = {
        "loss/train": "train_loss",
        "loss/validation": "val_loss",
        "perplexity": "val_perplexity",
        "bits_per_character": "val_bits_per_character",
        **{name: name for name in ("learning_rate", "gradient_norm", "characters_per_second")},
    }
    assert set(scalars) == set(names)
    for tag, field in names.items():
        expected = [(row["step"], row[field]) for row in rows if field in row]
        assert scalars[tag] == [(step, pytest.approx(value)) for step, value in expected]
    assert len(scalars["loss/train"]) == 4 and len(scalars["loss/validation"]) == 2


def test_what_cannot_be_written_is_named_as_the_user_does(finished_copy):
    pytest.importorskip("tensorboard")
    file = tensorboard.EventFile(finished_copy)
    with SmallFiles(), pytest.raises(OSError, match="File too large") as raised:
        file.update()
    assert raised.value.filename == str(finished_copy)


@pytest.mark.slow
def test_events_have_the_seconds_of_the_run(finished_copy, command):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    command("plot", finished_copy, "--tensorboard")
    (file,) = event_files(finished_copy)
    events = list(loader.EventFileLoader(str(file)).Load())
    assert events[0].file_version == "brain.Event:2"
    times = [event.wall_time for event in events if event.summary.value]
    assert times == [row.wall_time for row in read_metrics(finished_copy)]


@pytest.mark.slow
def test_converting_again_adds_what_is_missing(finished_copy, lines, command, read):
    metrics = finished_copy / "metrics.jsonl"
    metrics.write_text("".join(lines[:2]) + lines[2][:20])  # a line that is being written
    command("plot", finished_copy, "--tensorboard")
    (file,) = event_files(finished_copy)
    assert [step for step, _ in read(finished_copy)["loss/train"]] == [3, 6]
    partial = file.read_bytes()
    metrics.write_text("".join(lines))
    command("plot", finished_copy, "--tensorboard")
    assert event_files(finished_copy) == [file]
    whole = file.read_bytes()
    assert whole.startswith(partial) and len(whole) > len(partial)
    file.write_bytes(whole[:-5])  # as a full disk leaves it
    for _ in range(2):
        command("plot", finished_copy, "--tensorboard")
        assert file.read_bytes() == whole
    assert [step for step, _ in read(finished_copy)["loss/train"]] == [3, 6, 9, 12]


@pytest.mark.slow
def test_converting_other_rows_replaces_the_file(finished_copy, lines, command, read):
    command("plot", finished_copy, "--tensorboard")
    (old,) = event_files(finished_copy)
    other = finished_copy / "events.out.tfevents.1.profile-empty"  # another tool's
    other.touch()
    changed = json.loads(lines[1]) | {"train_loss": 1.5}
    (finished_copy / "metrics.jsonl").write_text(f"{lines[0]}{json.dumps(changed)}\n")
    command("plot", finished_copy, "--tensorboard")
    assert other.exists() and not old.exists()
    assert read(finished_copy)["loss/train"][1:] == [(6, 1.5)]


@pytest.mark.slow
def test_an_open_file_follows_a_resumed_run(finished_copy, lines, read):
    metrics = finished_copy / "metrics.jsonl"
    file = tensorboard.EventFile(finished_copy)
    file.update()
    metrics.write_text("".join(lines[:2]))  # resumed at step 6
    file.update()
    assert [step for step, _ in read(finished_copy)["loss/train"]] == [3, 6]
    repeated = json.loads(lines[2]) | {"train_loss": 1.5}
    metrics.write_text("".join(lines[:2]) + json.dumps(repeated) + "\n")
    file.update()
    losses = read(finished_copy)["loss/train"]
    assert [step for step, _ in losses] == [3, 6, 9] and losses[-1] == (9, 1.5)
    metrics.write_text("")
    file.update()
    assert read(finished_copy) == {} or not any(read(finished_copy).values())
    metrics.write_text("".join(lines))
    file.update()
    assert [step for step, _ in read(finished_copy)["loss/train"]] == [3, 6, 9, 12]
    assert event_files(finished_copy) == [file.path]


@pytest.mark.slow
def test_follow_ends_with_the_run(finished_copy, lines, read):
    pytest.importorskip("tensorboard")
    (finished_copy / "metrics.jsonl").write_text("")
    grown: list[str] = []

    def is_training() -> bool:
        grown.append(lines[len(grown)])
        (finished_copy / "metrics.jsonl").write_text("".join(grown))
        return len(grown) < len(lines)

    tensorboard.follow([tensorboard.EventFile(finished_copy)], is_training, 0.0)
    assert [step for step, _ in read(finished_copy)["loss/train"]] == [3, 6, 9, 12]


@pytest.mark.slow
@pytest.mark.parametrize("interrupt", [False, True])
def test_follow_as_a_user_runs_it(finished_copy, lines, read, interrupt):
    pytest.importorskip("tensorboard")
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
        while "loss/train" not in read(finished_copy) and time.monotonic() < wait_until:
            time.sleep(0.1)
        if interrupt:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=30)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == (130 if interrupt else 0)
    assert errors == f"View: tensorboard --logdir {finished_copy.parent}\n"
    assert [step for step, _ in read(finished_copy)["loss/train"]] == [3, 6, 9, 12]


@pytest.mark.slow
def test_a_damaged_line_is_named(finished_copy, lines):
    pytest.importorskip("tensorboard")
    (finished_copy / "metrics.jsonl").write_text(f"{lines[0]}damaged\n{lines[1]}")
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2 is not a row of metrics"):
        tensorboard.EventFile(finished_copy).update()
    assert not event_files(finished_copy)
