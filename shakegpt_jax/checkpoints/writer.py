"""Writing the checkpoints of a run with Orbax."""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from orbax.checkpoint import v1 as ocp

from shakegpt_jax.checkpoints.digests import METADATA, sync_to_disk, write_digests
from shakegpt_jax.checkpoints.reader import CheckpointReader, Metrics, SavedCheckpoint, literal_path
from shakegpt_jax.checkpoints.run_folder import CHECKPOINTS, RunMetadata
from shakegpt_jax.distributed import highest, is_primary, primary_first
from shakegpt_jax.errors import SaveError, UserError


class CheckpointWriter(CheckpointReader):
    """Writes the checkpoints of a run; a context manager that waits for the last save.

    A checkpoint is written to a temporary folder and renamed once it is complete and on disk. One
    save runs at a time, in a background thread that touches no attribute of this object.
    """

    def __init__(self, workdir: str | Path, keep_latest: int):
        """Open a run folder, to keep the latest checkpoints and the best by validation loss."""
        super().__init__(workdir)
        self._keep_latest = keep_latest
        self._temporary = self.workdir / CHECKPOINTS / "tmp"
        reader = CheckpointReader(workdir)
        self._known = {step: reader.read(step) for step in reader.steps}
        self._saving: tuple[SavedCheckpoint, Future[None]] | None = None
        primary_first(self._clear_temporary)  # left by a process that was killed
        self._closing = contextlib.ExitStack()
        if is_primary():
            self._closing.callback(shutil.rmtree, self._temporary, ignore_errors=True)
        self._folder = self._closing.enter_context(literal_path(self._temporary))
        self._pool = self._closing.enter_context(ThreadPoolExecutor(1))
        # Orbax logs some 400 lines about a failed save, besides raising the error.
        self._log = logging.getLogger("absl")
        self._log_level = self._log.level
        self._log.setLevel(logging.CRITICAL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        with self._closing:
            if kind is None:
                self.wait()
                self._log.setLevel(self._log_level)  # threads of a failed save may log later

    @property
    def steps(self) -> list[int]:
        """Steps of the checkpoints, in ascending order."""
        return sorted(self._known)

    def read(self, step: Any) -> SavedCheckpoint:
        """Return what is known of a checkpoint already."""
        return self._known[self.find(step)]

    def save(
        self, step: int, params: Any, opt_state: Any, metrics: Metrics | None, metadata: RunMetadata
    ) -> None:
        """Start saving. The arrays may be donated or changed as soon as this returns.

        Without `opt_state`, training cannot resume here. `metrics` are finite, `loss` among them. A
        `SaveError` says that this save or the one before it failed; earlier checkpoints are kept.
        """
        self.wait()
        folder, final = self._folder / str(step), self.path(step)
        content = json.dumps(metadata.to_json() | {"metrics": metrics}, allow_nan=False)
        context = ocp.Context()
        context.array.saving.use_compression = False  # compressed: 8% smaller, 1.6 times slower
        arrays = {"params": params} | ({} if opt_state is None else {"opt_state": opt_state})
        with self._save_errors(step):
            self._temporary.stat()  # if the run folder was removed, Orbax would create it again
            with context:
                response = ocp.save_checkpointables_async(folder, arrays)

        def finish() -> None:
            response.result()
            if not is_primary():
                return
            for name in arrays:  # Orbax only warns if it finds nothing to merge into this file
                (folder / name / "manifest.ocdbt").stat()
            (folder / METADATA).write_text(content, encoding="utf-8")
            write_digests(folder)
            folder.rename(final)
            sync_to_disk(final.parent)

        saved = SavedCheckpoint(step, final, metadata, metrics or {})
        self._saving = saved, self._pool.submit(finish)

    def wait(self) -> None:
        """Wait for the current save, and remove old checkpoints; raises a `SaveError`."""
        if self._saving is None:
            return
        (saved, future), self._saving = self._saving, None
        with self._save_errors(saved.step):
            future.result()
        highest(0)  # the checkpoint is there once process 0 says so
        self._known[saved.step] = saved
        best = self.find("best")
        for old in set(self.steps[: -self._keep_latest]) - {best}:
            del self._known[old]
            trash = self._temporary / f"{old}.old"
            with contextlib.suppress(OSError):  # the user has removed it
                if is_primary():  # renamed first: a partly deleted checkpoint would look corrupt
                    self.path(old).rename(trash)
                    shutil.rmtree(trash, ignore_errors=True)

    def describe_last_good(self) -> str:
        """Return a phrase that names the latest checkpoint, for error messages."""
        if not self._known:
            return "there is no earlier checkpoint"
        return f"the last good checkpoint is that of step {self.steps[-1]}"

    @contextlib.contextmanager
    def _save_errors(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise many types
            reason = str(error).strip().split("\n")[0][:300] or type(error).__name__
            line = f"could not save the checkpoint of step {step} ({reason})"
            raise SaveError(f"{line}; {self.describe_last_good()}") from error

    def _clear_temporary(self) -> None:
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir(parents=True, exist_ok=True)


def check_new(workdir: str | Path) -> Path:
    """Return the run folder to create; raises a `UserError` if something is there already."""
    folder = os.path.expanduser(workdir)
    if os.path.lexists(folder):
        raise UserError(f"{workdir} exists already; choose another folder, or remove it")
    return Path(folder)


def write_run(
    folder: Path, step: int, params: Any, metrics: Metrics | None, metadata: RunMetadata
) -> None:
    """Write a run folder with one checkpoint, without optimizer state. All of it or nothing."""
    try:
        folder.mkdir(parents=True)
    except (OSError, ValueError) as error:  # ValueError: a null byte
        reason = getattr(error, "strerror", None) or error
        right = "choose another folder"
        raise UserError(f"cannot create the run folder {folder}: {reason}; {right}") from error
    try:
        with CheckpointWriter(folder, 1) as checkpoints:
            checkpoints.save(step, params, None, metrics, metadata)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
