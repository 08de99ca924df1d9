"""Event files against TensorBoard's own reader."""

import json
import sys

import pytest
from fakes import Crash, SmallFiles, crash_at_9

from shakegpt_jax.reporting.metrics import read_metrics
from shakegpt_jax.reporting.tensorboard import EventFile
from shakegpt_jax.training import run


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
    with SmallFiles(), pytest.raises(OSError, match="File too large") as raised:
        EventFile(finished_copy, read_metrics(finished_copy))
    assert raised.value.filename == str(finished_copy)


@pytest.mark.slow
def test_each_step_of_a_resumed_run_has_one_value_in_an_open_tensorboard(
    run_config, tmp_path, reader
):
    workdir = tmp_path / "run"
    run_config.train.tracker = "tensorboard"
    with pytest.raises(Crash):
        run.train(run_config.freeze(), workdir, callbacks=[crash_at_9])
    other = workdir / "events.out.tfevents.1.other"
    other.touch()  # of another tool
    opened = reader(workdir)
    assert [step for step, _ in scalars(opened)["loss/train"]] == [3, 6, 9]
    run.train(run_config, workdir)
    losses = scalars(opened)["loss/train"]
    rows = [(row.step, pytest.approx(row.train_loss)) for row in read_metrics(workdir)]
    assert losses == rows == scalars(reader(workdir))["loss/train"]  # opened later
    assert other.exists()
