"""Reading the checkpoints of a run.

A run folder holds `metrics.jsonl` and `checkpoints/<step>`. A checkpoint holds two folders of
arrays, `params` and `opt_state`; `metadata.json` with the config, the vocabulary and the
validation metrics; and `SHA256SUMS` with the digests of all of them. That of an imported model has
no `opt_state`.
"""

import contextlib
import json
import math
import re
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from shakegpt_jax.checkpoints.digests import METADATA, listed_digests, verify_digests
from shakegpt_jax.checkpoints.run_folder import CHECKPOINTS, RunMetadata, checkpoint_steps
from shakegpt_jax.distributed import is_primary
from shakegpt_jax.errors import CorruptCheckpointError, UserError

ARRAYS = ("params", "opt_state")

Metrics = dict[str, float]

Result = TypeVar("Result")


class SavedCheckpoint(NamedTuple):
    """Contents of a checkpoint other than its arrays."""

    step: int
    path: Path
    metadata: RunMetadata
    metrics: Metrics  # validation metrics; empty if it was saved without any


class CheckpointReader:
    """Reads the checkpoints of a run folder while another process may be training there.

    A damaged checkpoint ends in a `CorruptCheckpointError`, which names the file and the newest
    intact step. One that this version cannot read ends in a `UserError`.
    """

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
        """Resolve "best" (by validation loss) or "latest", or check that a step exists."""
        steps = self.steps
        if not steps:
            raise UserError(f"{self.workdir} has no checkpoint yet")
        if step == "latest":
            return steps[-1]
        if step == "best":
            losses = {s: found["loss"] for s in steps if (found := self.read(s).metrics)}
            return min(losses, key=losses.__getitem__) if losses else steps[-1]
        if step not in steps:
            raise UserError(f"no checkpoint of step {step}; there are: {steps}")
        return step

    def read(self, step: int | Literal["best", "latest"]) -> SavedCheckpoint:
        """Return the step, the folder, the metadata and the metrics of a checkpoint."""
        step = self.find(step)
        self.verify(step, skip=ARRAYS)
        try:
            content = json.loads((self.path(step) / METADATA).read_bytes())
            metadata, metrics = RunMetadata.from_json(content), content.get("metrics")
            if metrics is not None and not is_valid_metrics(metrics):
                raise UserError("its metrics must map names to finite numbers and include loss")
        except ValueError as error:  # UserError is one
            raise UserError(f"cannot use the checkpoint {self.path(step)}: {error}") from error
        return SavedCheckpoint(step, self.path(step), metadata, metrics or {})

    def has_optimizer_state(self, step: int) -> bool:
        """Return whether training can resume from a checkpoint."""
        return any(name.startswith("opt_state/") for name in listed_digests(self.path(step)))

    def read_stable(self, read: Callable[[], Result]) -> Result:
        """Call a function that finds and reads a checkpoint, again if training replaces one."""
        while True:
            steps = self.steps
            try:
                return read()
            except Exception:
                if steps == self.steps:
                    raise

    def verify(self, step: int, skip: Collection[str] = ()) -> None:
        """Check the digest of every file, except in the folders of arrays to skip."""
        try:
            verify_digests(self.path(step), skip)
        except CorruptCheckpointError as error:
            advice = "no other checkpoint is intact"
            for other in checkpoint_steps(self.workdir):
                with contextlib.suppress(CorruptCheckpointError, OSError):
                    verify_digests(self.path(other))
                    advice = (
                        f"the newest intact checkpoint is that of step {other}; remove "
                        f"{self.path(step)} to go on without this one"
                    )
            raise CorruptCheckpointError(f"{error}; {advice}") from error
        except OSError as error:  # not damage: it may be temporary, or a matter of permissions
            name = error.filename or self.path(step)
            raise UserError(f"cannot read {name}: {error.strerror}") from error

    def restore(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        """Verify and restore arrays, which must be finite, with the shardings in `abstract`.

        `abstract` holds `params`, `opt_state` or both, each a pytree of `ShapeDtypeStruct`. Other
        arrays are neither verified nor read.
        """
        if is_primary():
            self.verify(step, skip=set(ARRAYS) - abstract.keys())
        restored = {}
        with literal_path(self.path(step)) as path:
            for name, arrays in abstract.items():
                # Orbax casts other dtypes silently and reports other shapes in many lines.
                have = _shapes(ocp.metadata(path, checkpointable_name=name).metadata)
                want = _shapes(arrays)
                for leaf in sorted(have.keys() | want.keys()):
                    if have.get(leaf) != want.get(leaf):
                        raise UserError(
                            f"{self.path(step) / name} does not match its config: {leaf} is "
                            f"{have.get(leaf, 'missing')} and should be {want.get(leaf, 'absent')}"
                        )
                restored[name] = ocp.load(path, arrays, checkpointable_name=name)
        if broken := [leaf for leaf, a in _leaves(restored).items() if not _is_finite(a)]:
            raise UserError(
                f"{self.path(step)} cannot be used: {broken[0]} has non-finite values (NaN or "
                "infinity); remove it, or choose another checkpoint"
            )
        return restored


def is_valid_metrics(metrics: Any) -> bool:
    """Return whether a value is what a checkpoint may hold as validation metrics."""
    return (
        isinstance(metrics, dict)
        and "loss" in metrics
        and all(type(v) in (int, float) and -math.inf < v < math.inf for v in metrics.values())
    )


# Orbax globs brackets, stars and question marks, and takes "gs:/" anywhere for Google Cloud.
# TensorStore turns backslashes into slashes and accepts only UTF-8.
_MISREAD = re.compile(r"[][*?\\]|gs:/|[\ud800-\udfff]")


@contextlib.contextmanager
def literal_path(folder: Path) -> Iterator[Path]:
    """Yield an absolute path that Orbax takes literally: if need be, a temporary link."""
    folder = folder.absolute()
    if not (found := _MISREAD.search(str(folder))):
        yield folder
        return
    if jax.process_count() > 1:
        raise UserError(
            f"several processes cannot use {folder}: its path holds {found[0]!r}; choose another "
            "--workdir"
        )
    if found := _MISREAD.search(tempfile.gettempdir()):
        raise UserError(
            f"TMPDIR is {tempfile.gettempdir()}; for the run folder {folder}, its path must not "
            f"hold {found[0]!r}"
        )
    with tempfile.TemporaryDirectory(prefix="shakegpt-") as parent:
        link = Path(parent) / "link"
        link.symlink_to(folder, target_is_directory=True)
        yield link


def _leaves(arrays: Any) -> dict[str, Any]:
    """Map the path of every leaf to it."""
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _shapes(arrays: Any) -> dict[str, str]:
    return {name: f"{a.dtype}{list(a.shape)}" for name, a in _leaves(arrays).items()}


def _is_finite(array: jax.Array) -> bool:
    """Return whether the part of an array that only this process checks is finite."""
    parts = [shard.data for shard in array.addressable_shards if shard.replica_id == 0]
    return all(np.isfinite(part).all() for part in parts)
