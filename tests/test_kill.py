"""A run that is killed again and again ends like one that was never stopped."""

import os
import pydoc
import random
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_checkpoints import check_intact, save

from shakegpt_jax import load
from shakegpt_jax.checkpoints.reader import CheckpointReader
from shakegpt_jax.config import Config
from shakegpt_jax.data.corpus import load_corpus
from shakegpt_jax.reporting.metrics import MetricsFile, read_metrics
from shakegpt_jax.sharding import make_mesh
from shakegpt_jax.training.run import train
from shakegpt_jax.training.trainer import Trainer

_UNEQUAL = ("train_time", "wall_time", "characters_per_second")


def _train(config: Config, workdir: Path) -> None:
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # ends with the process
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    train(config, workdir)


def _saving(workdir: Path) -> list[str]:
    try:
        return os.listdir(workdir / "checkpoints" / "tmp")
    except FileNotFoundError:
        return []


def _kill(process, workdir: Path, draw: random.Random) -> bool:
    """Let a process train for a moment and kill it; return whether it was saving."""

    def until(condition) -> None:
        deadline = time.monotonic() + 60
        while process.is_alive() and time.monotonic() < deadline and not condition():
            time.sleep(0.001)

    def latest() -> int:
        return max(CheckpointReader(workdir).steps, default=0)

    lock, begun = workdir / "lock", latest()
    until(lambda: lock.exists() and lock.read_text() == str(process.pid))
    n_save = draw.randrange(2)
    until(lambda: latest() >= begun + 10 * n_save)
    time.sleep(draw.uniform(0, 0.05))
    if n_save and draw.random() < 0.7:
        until(lambda: _saving(workdir))
        time.sleep(draw.uniform(0, 0.02))
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return bool(_saving(workdir))


@pytest.mark.slow
def test_kills_leave_no_trace(run_config, tmp_path, processes, n_kill=30):
    config = run_config
    config.model.dropout = 0.1
    config.train.num_steps, config.train.eval_every = 20 * n_kill, 10
    config.train.steps_per_dispatch = 5
    config.freeze()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = processes.Process(target=_train, args=(config, whole))
    process.start()
    process.join()
    assert process.exitcode == 0

    draw = random.Random(0)
    interrupted = []
    for _ in range(n_kill):
        process = processes.Process(target=_train, args=(config, killed))
        process.start()
        interrupted.append(_kill(process, killed, draw))
        steps = [row.step for row in read_metrics(killed)]
        assert steps == [*range(5, 5 * len(steps) + 1, 5)]
    assert sum(interrupted) >= n_kill / 4
    assert len(steps) * 5 < config.train.num_steps
    process = processes.Process(target=_train, args=(config, killed))
    process.start()
    process.join()
    assert process.exitcode == 0

    def rows(workdir):
        kept = [row.to_json() for row in read_metrics(workdir)]
        return [{k: v for k, v in row.items() if k not in _UNEQUAL} for row in kept]

    assert rows(killed) == rows(whole)
    trainer = Trainer(config, load_corpus(config.data.path, 8), make_mesh(config))
    states = []
    for workdir in (killed, whole):
        assert not (workdir / "checkpoints" / "tmp").exists()
        trainer.restore(CheckpointReader(workdir), config.train.num_steps)
        states.append(jax.tree.leaves(trainer.state))
    for ours, theirs in zip(*states, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    print(n_kill, "kills, of which in a save:", sum(interrupted), "at step", len(steps) * 5)


def _save_until(workdir: Path, where: str, path: str) -> None:
    """Save checkpoints and die at the start of a function, once it is called with that path."""
    module, name = where.rsplit(".", 1)
    owner = pydoc.locate(module)
    function = getattr(owner, name)

    def die(argument, *args, **kwargs):
        if str(argument).endswith(path):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(argument, *args, **kwargs)

    setattr(owner, name, die)
    save(workdir, [1, 2, 3], keep_latest=1)


@pytest.mark.parametrize(
    ("where", "path", "steps", "left"),
    [
        # before the digests of checkpoint 2 are written
        ("shakegpt_jax.checkpoints.writer.write_digests", "tmp/2", [1], {"2"}),
        # before all of it is on disk
        (
            "shakegpt_jax.checkpoints.digests.sync_to_disk",
            "tmp/2/opt_state",
            [1],
            {"2", "2/SHA256SUMS"},
        ),
        # before it appears
        ("pathlib.Path.rename", "tmp/2", [1], {"2", "2/SHA256SUMS"}),
        # before checkpoint 1 disappears
        ("pathlib.Path.rename", "checkpoints/1", [1, 2], set()),
        # before its files are removed
        ("shutil.rmtree", "tmp/1.old", [2], {"1.old", "1.old/SHA256SUMS"}),
    ],
)
def test_kill_while_saving(tmp_path, processes, where, path, steps, left):
    process = processes.Process(target=_save_until, args=(tmp_path, where, path))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    temporary = tmp_path / "checkpoints" / "tmp"
    found = [*temporary.glob("*"), *temporary.glob("*/SHA256SUMS")]
    assert {each.relative_to(temporary).as_posix() for each in found} == left  # where it died
    assert CheckpointReader(tmp_path).steps == steps
    for step in steps:
        check_intact(tmp_path, step)
    save(tmp_path, [3], keep_latest=1)  # reports nothing
    assert os.listdir(tmp_path / "checkpoints") == ["3"]
    check_intact(tmp_path, 3)


def _train_until_flush(config: Config, workdir: Path) -> None:
    """Train and die before the metrics of step 9 are written."""
    flush = MetricsFile.flush

    def die(file):
        if file.rows[-1].step == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        flush(file)

    MetricsFile.flush = die  # type: ignore[method-assign]
    _train(config, workdir)


def test_kill_before_metrics_are_written(run_config, tmp_path, processes, finished):
    run_config.train.eval_every = 3
    config, workdir = run_config.freeze(), tmp_path / "run"
    process = processes.Process(target=_train_until_flush, args=(config, workdir))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [row.step for row in read_metrics(workdir)] == [3, 6]
    assert CheckpointReader(workdir).find("latest") in (3, 6)  # 6 was being saved
    train(config, workdir)
    assert [row.step for row in read_metrics(workdir)] == [3, 6, 9, 12]
    ours, theirs = (load(each, step=12).params for each in (workdir, finished))
    assert jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))
