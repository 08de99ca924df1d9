"""Checkpoints of a few numbers, which are saved and restored in a moment."""

from pathlib import Path

import jax
import numpy as np

from shakegpt_jax.checkpoints.reader import CheckpointReader
from shakegpt_jax.checkpoints.run_folder import RunMetadata
from shakegpt_jax.checkpoints.writer import CheckpointWriter
from shakegpt_jax.config import Config
from shakegpt_jax.sharding import on_one_device

ARRAYS = {
    "params": {"w": np.arange(12, dtype=np.float32)},
    "opt_state": (np.arange(3, dtype=np.int32),),
}


def metadata() -> RunMetadata:
    return RunMetadata(Config().freeze(), "ab", "0" * 64)


def save(workdir: Path, steps: list[int], keep_latest: int = 9) -> None:
    """Save checkpoints, each better than the one before it."""
    with CheckpointWriter(workdir, keep_latest) as checkpoints:
        for step in steps:
            checkpoints.save(step, *ARRAYS.values(), {"loss": 1.0 / step}, metadata())


def restore(workdir: Path, step: int) -> list[np.ndarray]:
    """Check the metadata of a checkpoint and return its arrays."""
    checkpoints = CheckpointReader(workdir)
    assert checkpoints.read(step).metadata == metadata()
    assert checkpoints.read(step).metrics == {"loss": 1.0 / step}
    return jax.tree.leaves(checkpoints.restore(step, on_one_device(jax.eval_shape(lambda: ARRAYS))))


def check_intact(workdir: Path, step: int) -> None:
    """Check that a checkpoint holds what was saved."""
    for ours, theirs in zip(restore(workdir, step), jax.tree.leaves(ARRAYS), strict=True):
        np.testing.assert_array_equal(ours, theirs)
