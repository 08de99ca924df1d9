"""A run that is killed, again and again, ends as one that was never stopped."""

import itertools
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

from shakegpt_jax import sharding
from shakegpt_jax.checkpoint import Checkpoints
from shakegpt_jax.config import Config
from shakegpt_jax.data import load_corpus
from shakegpt_jax.metrics import MetricsFile
from shakegpt_jax.train import train
from shakegpt_jax.trainer import Trainer

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
    """Let a process train for a moment, and kill it; was it in the middle of a save?"""

    def until(condition) -> None:
        deadline = time.monotonic() + 60
        while process.is_alive() and time.monotonic() < deadline and not condition():
            time.sleep(0.001)

    def latest() -> int:
        return max(Checkpoints(workdir).steps, default=0)

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


@pytest.mark.parametrize("n_kill", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_kills_leave_no_trace(config, tmp_path, text, context, n_kill):
    (tmp_path / "text.txt").write_text(text)
    config.data.path = str(tmp_path / "text.txt")
    config.model.dropout = 0.1
    config.train.num_steps, config.train.eval_every = 20 * n_kill, 10
    config.train.steps_per_dispatch = 5
    config.freeze()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = context.Process(target=_train, args=(config, whole))
    process.start()
    process.join()
    assert process.exitcode == 0

    draw = random.Random(0)
    interrupted = []
    for _ in range(n_kill):
        process = context.Process(target=_train, args=(config, killed))
        process.start()
        interrupted.append(_kill(process, killed, draw))
        steps = [row["step"] for row in MetricsFile.read(killed)]
        assert steps == [*range(5, 5 * len(steps) + 1, 5)]
    assert sum(interrupted) >= n_kill / 4
    assert len(steps) * 5 < config.train.num_steps
    process = context.Process(target=_train, args=(config, killed))
    process.start()
    process.join()
    assert process.exitcode == 0

    def rows(workdir):
        kept = MetricsFile.read(workdir)
        return [{k: v for k, v in row.items() if k not in _UNEQUAL} for row in kept]

    assert rows(killed) == rows(whole)
    trainer = Trainer(config, load_corpus(config.data.path, 8), sharding.make_mesh(config))
    states = []
    for workdir in (killed, whole):
        assert not (workdir / "checkpoints" / "tmp").exists()
        trainer.restore(Checkpoints(workdir), config.train.num_steps)
        states.append(jax.tree.leaves(trainer.state))
    for ours, theirs in zip(*states, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    print(n_kill, "kills, of which in a save:", sum(interrupted), "at step", len(steps) * 5)


def _train_until(config: Config, workdir: Path, where: str, count: int) -> None:
    """Train, and die at the start of the nth call of a function."""
    module, name = where.rsplit(".", 1)
    owner = pydoc.locate(module)
    function = getattr(owner, name)
    calls = itertools.count(1)

    def die(*args, **kwargs):
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(owner, name, die)
    _train(config, workdir)


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("shakegpt_jax.manifest.write", 2),  # the arrays are written, the list is not
        ("shakegpt_jax.manifest.sync", 20),  # the list is written, and perhaps not on the disk
        ("pathlib.Path.rename", 2),  # all is written, and not in its place
        ("pathlib.Path.rename", 4),  # before one is pruned
        ("shutil.rmtree", 1),  # out of sight, and not removed
        ("shakegpt_jax.metrics.MetricsFile.flush", 7),
    ],
)
def test_a_kill_at_every_point_of_a_save(config, tmp_path, text, context, where, count):
    (tmp_path / "text.txt").write_text(text)
    config.data.path = str(tmp_path / "text.txt")
    config.train.num_steps, config.train.keep_checkpoints = 30, 1
    workdir = tmp_path / "run"
    process = context.Process(target=_train_until, args=(config.freeze(), workdir, where, count))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert Checkpoints(workdir).find("best") >= 6
    train(config, workdir)
    assert [row["step"] for row in MetricsFile.read(workdir)] == [*range(3, 31, 3)]
    assert Checkpoints(workdir).find("latest") == 30
