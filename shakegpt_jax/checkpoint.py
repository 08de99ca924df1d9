"""Saving and restoring a run: the only file that imports Orbax.

A run folder holds `metrics.jsonl` and `checkpoints/<step>`. A checkpoint holds two folders of
arrays, `params` and `rest` (of the train state); `metadata.json`, the config, the vocabulary and
the validation figures; and the digests of all of them. It comes into being by a rename, whole.
"""

import dataclasses
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Self

import jax
from orbax.checkpoint import v1 as ocp

from shakegpt_jax import manifest
from shakegpt_jax.config import Config
from shakegpt_jax.errors import DamagedError, SaveError, UserError

_FORMAT_VERSION = 1
_FOLDER = "checkpoints"
_METADATA = "metadata.json"
_ARRAYS = ("params", "rest")
_MOST_FAILURES = 3  # in a row

Metrics = dict[str, float]


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What is the same in every checkpoint of a run."""

    config: Config
    vocabulary: str  # the tokenizer's characters, in order of their ids
    text_sha256: str  # of the UTF-8 text it was trained on

    def to_json(self) -> dict[str, Any]:
        """Make the metadata to store."""
        return {
            "format_version": _FORMAT_VERSION,
            "config": self.config.to_dict(),
            "vocabulary": self.vocabulary,
            "text_sha256": self.text_sha256,
        }

    @classmethod
    def from_json(cls, metadata: Any) -> Self:
        """Read what `to_json` made, trusting none of it.

        Raises:
            UserError: if it was made by another version of the format, or is not what any made.
        """
        version = metadata.get("format_version") if isinstance(metadata, dict) else None
        if type(version) is int and version > _FORMAT_VERSION:
            raise UserError(
                f"its format is version {version} and this shakegpt_jax reads {_FORMAT_VERSION}; "
                "a newer one will read it"
            )
        if version != _FORMAT_VERSION:
            raise UserError(f"its format_version is {version!r}, not {_FORMAT_VERSION}")
        config = Config.from_dict(metadata.get("config"))
        vocabulary, digest = metadata.get("vocabulary"), metadata.get("text_sha256")
        if not isinstance(vocabulary, str) or "".join(sorted(set(vocabulary))) != vocabulary:
            raise UserError("its vocabulary is not a sorted text without repetitions")
        if not vocabulary:
            raise UserError("its vocabulary is empty")
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            raise UserError("its text_sha256 is not one")
        return cls(config, vocabulary, digest)


class Checkpoints:
    """The checkpoints of a run folder, to read; another process may be training there."""

    def __init__(self, workdir: str | Path):
        self.workdir = Path(workdir)

    @property
    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, ascending."""
        return _steps(self.workdir)

    def path(self, step: int) -> Path:
        """Return where a step's checkpoint lies."""
        return self.workdir / _FOLDER / str(step)

    def find(self, step: int | Literal["best", "latest"]) -> int:
        """Turn "best" (by validation loss) or "latest" into a step, or check that one is there.

        Raises:
            UserError: if it is not, or there is none at all.
            DamagedError: if a checkpoint cannot be believed, and so not be compared.
        """
        steps = self.steps
        if not steps:
            raise UserError(f"{self.workdir} holds no finished checkpoint")
        if step == "latest":
            return steps[-1]
        if step == "best":
            losses = {step: found["loss"] for step in steps if (found := self.metrics(step))}
            return min(losses, key=lambda step: losses[step]) if losses else steps[-1]
        if step not in steps:
            raise UserError(f"no checkpoint of step {step}; there are: {steps}")
        return step

    def run_info(self, step: int) -> RunInfo:
        """Return the config and the vocabulary of a step; errors as in `metrics`."""
        return self._read(step)[0]

    def metrics(self, step: int) -> Metrics:
        """Return the validation figures saved with a step; none if a signal made it.

        Raises:
            UserError: if this version cannot read the checkpoint.
            DamagedError: if it is not as it was saved.
        """
        return self._read(step)[1]

    def _read(self, step: int) -> tuple[RunInfo, Metrics]:
        self._verify(step, leave_out=_ARRAYS)
        path = self.path(step) / _METADATA
        try:
            metadata = json.loads(path.read_text(encoding="utf-8"))
            info = RunInfo.from_json(metadata)
            metrics = metadata.get("metrics")
            if metrics is not None and not _are_metrics(metrics):
                raise UserError("its metrics are not finite numbers by name, loss among them")
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} cannot be used: {error}") from error
        return info, metrics or {}

    def _verify(self, step: int, leave_out: tuple[str, ...]) -> None:
        try:
            manifest.verify(self.path(step), leave_out)
        except DamagedError as error:
            if not self.path(step).exists():
                raise UserError(f"{self.path(step)} was just removed; try again") from error
            raise

    def restore(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        """Load a step onto the devices that the abstract arrays name.

        Args:
            step: which.
            abstract: `params`, `rest` or both, as pytrees of `ShapeDtypeStruct` with sharding.

        Returns:
            The same with arrays.

        Raises:
            DamagedError: if the files are not as they were saved.
            UserError: if they hold other arrays.
        """
        self._verify(step, leave_out=tuple(name for name in _ARRAYS if name not in abstract))
        path = self.path(step).absolute()  # Orbax refuses relative paths
        saved = ocp.checkpointables_metadata(path).metadata
        for name in abstract:
            # Orbax casts another type in silence, and tells another shape in many lines.
            if _kinds(saved.get(name)) != _kinds(abstract[name]):
                raise UserError(f"{path / name} holds other arrays than its config describes")
        restored = ocp.load_checkpointables(path, abstract)
        return {name: restored[name] for name in abstract}


class CheckpointWriter(Checkpoints):
    """The checkpoints of a run in training; a context manager, whose end waits for the saves."""

    def __init__(self, workdir: str | Path, keep_latest: int, report: Callable[[str], object]):
        """Open a run folder, setting aside what is damaged in it.

        Args:
            workdir: the run folder.
            keep_latest: the newest so many are kept, and the best by validation loss. Kept
                apart: a model that overfits would otherwise lose its newest checkpoint, from
                which it continues, to its best.
            report: is told of damage found and of saves that failed.
        """
        super().__init__(workdir)
        self._keep_latest, self._report = keep_latest, report
        self._pool = ThreadPoolExecutor(1)
        self._saving: tuple[int, Future[None]] | None = None
        self._n_failure = 0
        self._known: dict[int, tuple[RunInfo, Metrics]] = {}
        self._temporary = self.workdir / _FOLDER / "tmp"
        shutil.rmtree(self._temporary, ignore_errors=True)  # left by a process that was killed
        self._temporary.mkdir(parents=True)
        for step in _steps(self.workdir):
            try:
                self._verify(step, leave_out=())
                self._known[step] = super()._read(step)
            except DamagedError as error:
                aside = self.path(step).with_suffix(".damaged")
                shutil.rmtree(aside, ignore_errors=True)
                self.path(step).rename(aside)
                report(f"{error}; the checkpoint of step {step} is now {aside}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if exception[0] is None:
            self.wait()
        self._pool.shutdown()  # waits, too
        shutil.rmtree(self._temporary, ignore_errors=True)

    @property
    def steps(self) -> list[int]:
        """The steps whose checkpoints are known to be whole, ascending."""
        return sorted(self._known)

    @property
    def latest_step(self) -> int:
        """The newest step that there is a checkpoint of; 0 if there is none."""
        return max(self._known, default=0)

    def _read(self, step: int) -> tuple[RunInfo, Metrics]:
        return self._known[step]

    def save(
        self, step: int, params: Any, rest: Any, metrics: Metrics | None, info: RunInfo
    ) -> None:
        """Start saving; the arrays may be donated or changed as soon as this returns.

        A save that fails is reported, and the older checkpoints stay.

        Args:
            step: names the checkpoint.
            params: pytree of arrays, sharded or not.
            rest: pytree of arrays that only training needs.
            metrics: validation figures, `loss` among them, by which the best is known; None if
                there are none.
            info: what loading needs.

        Raises:
            SaveError: if the save before this one failed, as the third in a row.
        """
        self.wait()
        folder = self._temporary / str(step)
        try:
            self._temporary.stat()  # were the run folder removed, Orbax would make it anew
            arrays = {"params": params, "rest": rest}
            response = ocp.save_checkpointables_async(folder.absolute(), arrays, overwrite=True)
        except Exception as error:  # of any kind: Orbax and TensorStore have many
            self._failed(step, error)
            return

        def finish() -> None:
            response.result()
            metadata = info.to_json() | {"metrics": metrics}
            (folder / _METADATA).write_text(json.dumps(metadata), encoding="utf-8")
            manifest.write(folder)
            if self.path(step).exists():
                self._remove(step)
            folder.rename(self.path(step))
            self._known[step] = info, metrics or {}
            best = self.find("best")
            for old in self.steps[: -self._keep_latest]:
                if old != best:
                    self._remove(old)

        self._saving = step, self._pool.submit(finish)

    def wait(self) -> None:
        """Wait for the save under way.

        Raises:
            SaveError: if it failed, as the third in a row.
        """
        if self._saving is None:
            return
        (step, future), self._saving = self._saving, None
        if error := future.exception():
            self._failed(step, error)
        else:
            self._n_failure = 0

    def ensure_saved(self, step: int) -> None:
        """Wait for a step's checkpoint.

        Raises:
            SaveError: if there is none.
        """
        self.wait()
        if step not in self._known:
            raise SaveError(f"step {step} is not saved; {self._last_good()}")

    def _failed(self, step: int, error: BaseException) -> None:
        self._n_failure += 1
        reason = str(error).strip().split("\n")[0][:300] or type(error).__name__
        message = f"the checkpoint of step {step} could not be saved ({reason}); "
        if self._n_failure >= _MOST_FAILURES:
            raise SaveError(f"{message}the third in a row; {self._last_good()}")
        self._report(message + self._last_good())

    def _last_good(self) -> str:
        if not self._known:
            return "there is no earlier one"
        return f"the last good checkpoint is of step {self.latest_step}"

    def _remove(self, step: int) -> None:
        self._known.pop(step, None)
        # Out of sight first: a checkpoint half deleted would look damaged.
        trash = self._temporary / f"{step}.old"
        self.path(step).rename(trash)
        shutil.rmtree(trash)


def has_checkpoint(workdir: str | Path) -> bool:
    """Tell whether a folder holds a run with at least one checkpoint, be it damaged."""
    return bool(_steps(workdir))


def _steps(workdir: str | Path) -> list[int]:
    folders = (Path(workdir) / _FOLDER).glob("[0-9]*")
    return sorted(int(path.name) for path in folders if re.fullmatch(r"0|[1-9]\d{0,9}", path.name))


def _are_metrics(metrics: Any) -> bool:
    return (
        isinstance(metrics, dict)
        and "loss" in metrics
        and all(type(value) in (int, float) and math.isfinite(value) for value in metrics.values())
    )


def _kinds(arrays: Any) -> list[tuple[tuple[int, ...], str]]:
    return sorted((array.shape, str(array.dtype)) for array in jax.tree.leaves(arrays))


def find_run(workdir: str = "", runs: str = "runs") -> Path:
    """Return the run folder to use.

    Args:
        workdir: a run folder; empty for the newest under `runs`.
        runs: where training puts its runs.

    Raises:
        UserError: if there is none.
    """
    train_one = "train one: python run_train.py --config configs/cpu.py"
    if workdir:
        if not os.path.isdir(workdir):  # Path's raises for names that are too long
            raise UserError(f"no such run folder: {workdir}; {train_one}")
        if not has_checkpoint(workdir):
            raise UserError(f"{workdir} is not a run folder: it holds no checkpoints; {train_one}")
        return Path(workdir)
    found = [path for path in Path(runs).glob("*") if path.is_dir() and has_checkpoint(path)]
    if not found:
        raise UserError(f"no run found under {runs}/; {train_one}")
    return max(found, key=lambda path: (path / _FOLDER).stat().st_mtime)
