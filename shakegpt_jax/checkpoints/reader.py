"""Reading the checkpoints of a run.

A run folder holds `metrics.jsonl` and `checkpoints/<step>`. A checkpoint holds two folders of
arrays, `params` and `opt_state`; `metadata.json` with the config, the vocabulary and the
validation metrics; and `SHA256SUMS` with the digests of all of them. That of an imported model has
no `opt_state`.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
from orbax.checkpoint import v1 as ocp

from shakegpt_jax.checkpoints.digests import listed_digests, read_metadata, verify_digests
from shakegpt_jax.checkpoints.run_folder import CHECKPOINTS, RunMetadata, checkpoint_steps
from shakegpt_jax.distributed import is_primary
from shakegpt_jax.errors import CorruptCheckpointError, UserError

ARRAYS = ("params", "opt_state")

Metrics = dict[str, float]

Result = TypeVar("Result")


class CheckpointReader:
    """Reads the checkpoints of a run folder while another process may be training there."""

    def __init__(self, workdir: str | Path):
        self.workdir = Path(workdir)

    @property
    def steps(self) -> list[int]:
        """Steps of all checkpoints, in ascending order."""
        return checkpoint_steps(self.workdir)

    def path(self, step: int) -> Path:
        """Return the folder of a checkpoint."""
        return self.workdir / CHECKPOINTS / str(step)

    def find(self, step: int | Literal["best", "latest"]) -> int:
        """Resolve "best" (by validation loss) or "latest", or check that a step exists.

        Raises:
            UserError: if there is no such checkpoint.
            CorruptCheckpointError: if the metadata of a checkpoint is corrupt.
        """
        steps = self.steps
        if not steps:
            raise UserError(f"{self.workdir} has no checkpoint yet")
        if step == "latest":
            return steps[-1]
        if step == "best":
            losses = {step: found["loss"] for step in steps if (found := self.metrics(step))}
            return min(losses, key=lambda step: losses[step]) if losses else steps[-1]
        if step not in steps:
            raise UserError(f"no checkpoint of step {step}; there are: {steps}")
        return step

    def read_stable(self, read: Callable[[], Result]) -> Result:
        """Call a function that finds and reads a checkpoint, again if training replaces one.

        Args:
            read: the function; what it raises while the checkpoints stay the same is raised.
        """
        while True:
            steps = self.steps
            try:
                return read()
            except Exception:
                if steps == self.steps:
                    raise

    def run_metadata(self, step: int) -> RunMetadata:
        """Return the run metadata of a checkpoint; raises like `metrics`."""
        return self._read(step)[0]

    def metrics(self, step: int) -> Metrics:
        """Return the validation metrics of a checkpoint; empty if it was saved without any.

        Raises:
            UserError: if this version cannot read the checkpoint.
            CorruptCheckpointError: if its metadata is corrupt.
        """
        return self._read(step)[1]

    def is_intact(self, step: int) -> bool:
        """Return whether every file of a checkpoint has its digest, except the optimizer state."""
        try:
            verify_digests(self.path(step), skip=["opt_state"])
        except CorruptCheckpointError:
            return False
        return True

    def has_optimizer_state(self, step: int) -> bool:
        """Return whether training can resume from a checkpoint; raises like `metrics`."""
        return any(name.startswith("opt_state/") for name in listed_digests(self.path(step)))

    def _read(self, step: int) -> tuple[RunMetadata, Metrics]:
        verify_digests(self.path(step), skip=ARRAYS)
        try:
            content = json.loads(read_metadata(self.path(step)))
            metadata, metrics = RunMetadata.from_json(content), content.get("metrics")
            if metrics is not None and not is_valid_metrics(metrics):
                raise UserError("its metrics must map names to finite numbers and include loss")
        except ValueError as error:  # UserError is one
            if isinstance(error, CorruptCheckpointError):
                raise
            raise UserError(f"cannot use the checkpoint {self.path(step)}: {error}") from error
        return metadata, metrics or {}

    def restore(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        """Restore arrays with the shardings in `abstract`.

        Args:
            step: the checkpoint.
            abstract: `params`, `opt_state` or both, each a pytree of `ShapeDtypeStruct` with
                shardings. Other arrays are neither verified nor read.

        Returns:
            The same pytrees, with arrays as leaves.

        Raises:
            CorruptCheckpointError: if a file is missing or has changed.
            UserError: if the arrays in the checkpoint have other shapes or dtypes.
        """
        if is_primary():
            verify_digests(self.path(step), skip=[n for n in ARRAYS if n not in abstract])
        path = self.path(step).absolute()  # Orbax refuses relative paths
        restored = {}
        for name, arrays in abstract.items():
            # Orbax casts other dtypes silently and reports other shapes in many lines.
            have = _shapes(ocp.metadata(path, checkpointable_name=name).metadata)
            want = _shapes(arrays)
            for leaf in sorted(have.keys() | want.keys()):
                if have.get(leaf) != want.get(leaf):
                    raise UserError(
                        f"{path / name} does not match its config: {leaf} is "
                        f"{have.get(leaf, 'missing')} and should be {want.get(leaf, 'absent')}"
                    )
            restored[name] = ocp.load(path, arrays, checkpointable_name=name)
        return restored


def is_valid_metrics(metrics: Any) -> bool:
    """Return whether a value is what a checkpoint may hold as validation metrics."""
    return (
        isinstance(metrics, dict)
        and "loss" in metrics
        and all(type(v) in (int, float) and -math.inf < v < math.inf for v in metrics.values())
    )


def _shapes(arrays: Any) -> dict[str, str]:
    """Map the path of every leaf to its dtype and shape."""
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    names = (jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves)
    return {name: f"{a.dtype}{list(a.shape)}" for name, (_, a) in zip(names, leaves, strict=True)}
