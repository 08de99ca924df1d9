"""Trackers against the tools that read them: a run that is killed and resumed."""

import json
import os
import signal
import struct
import sys
import time
from pathlib import Path

import pytest
from fakes import one_line

from shakegpt_jax.config import Config
from shakegpt_jax.reporting.metrics import read_metrics, scalars
from shakegpt_jax.training.run import train


def train_in(folder: Path, config: Config, killed: bool) -> None:
    """Train slowly enough for the buffers of trackers, in a process of its own."""
    os.chdir(folder)
    os.environ["WANDB_MODE"], os.environ["TRACKIO_DIR"] = "offline", "trackio"
    os.environ["MLFLOW_TRACKING_URI"] = "sqlite:///mlflow.db"

    def callback(row: dict) -> None:
        time.sleep(0.5)
        if killed and row["step"] == 9:
            os.kill(os.getpid(), signal.SIGKILL)

    train(config, "run", callbacks=[callback])


def wandb_values() -> list[dict]:
    """Return what the .wandb files of a run hold, in the order of its processes."""
    module = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    run_id = Path("run/wandb.id").read_text()
    values = []
    for path in sorted(Path("wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb")):
        data, at, part = path.read_bytes(), 7, b""
        while at + 7 <= len(data):  # the log format of LevelDB, in blocks of 32 KiB
            if 0 < (left := -at % 2**15) < 7:
                at += left
            size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
            part += data[at + 7 : at + 7 + size]
            at += 7 + size
            if kind in (1, 4):  # whole, or the last part
                record = module.Record.FromString(part)
                part = b""
                items = {(i.key or "/".join(i.nested_key)): i for i in record.history.item}
                values += [{k: json.loads(v.value_json) for k, v in items.items()}] * bool(items)
    return [{"step": each.pop("_step")} | each for each in values]


def trackio_values() -> list[dict]:
    storage = pytest.importorskip("trackio").SQLiteStorage
    return storage.get_logs("shakegpt_jax", Path("run/trackio.id").read_text())


def mlflow_values() -> list[dict]:
    client = pytest.importorskip("mlflow").MlflowClient("sqlite:///mlflow.db")
    run = client.get_run(Path("run/mlflow.id").read_text())
    assert run.info.status == "FINISHED" and run.data.params["model.n_embd"] == "16"
    values: dict[int, dict] = {}
    for name in run.data.metrics:
        for each in client.get_metric_history(run.info.run_id, name):
            row = values.setdefault(each.step, {"step": each.step})
            assert name not in row
            row[name] = each.value
    return [values[step] for step in sorted(values)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the tools that read
@pytest.mark.parametrize("values", [wandb_values, trackio_values, mlflow_values])
def test_a_killed_run_goes_on_in_the_same_run_with_one_value_per_step(
    run_config, tmp_path, monkeypatch, processes, values
):
    name = values.__name__.partition("_")[0]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRACKIO_DIR", "trackio")
    pytest.importorskip(name)
    config = run_config.replace({"train.tracker": name})
    codes, ids = [], []
    for killed in (True, False):
        process = processes.Process(target=train_in, args=(tmp_path, config, killed))
        process.start()
        process.join()
        codes.append(process.exitcode)
        ids.append(Path(f"run/{name}.id").read_text())
    assert codes == [-9, 0] and ids[0] == ids[1]
    expected = [{"step": row.step} | scalars(row.to_json()) for row in read_metrics("run")]
    found = [{k: row.get(k) for k in want} for row, want in zip(values(), expected, strict=True)]
    for row, want in zip(found, expected, strict=True):
        speeds = [each.pop("characters_per_second") for each in (row, want)]
        assert row == pytest.approx(want) and min(speeds) > 0


def test_a_missing_tracker_is_said_before_anything_is_written(
    run_config, tmp_path, command, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    code, _, err = command("train", "--config.train.tracker=wandb", "--workdir", tmp_path / "run")
    assert code == 2 and "this needs wandb: pip install 'shakegpt-jax[wandb]'" in one_line(err)
    assert not (tmp_path / "run").exists()
    code, _, err = command("train", "--config.train.tracker=tb")
    assert code == 2
    assert "it must be one of none, wandb, trackio, mlflow, tensorboard" in one_line(err)
