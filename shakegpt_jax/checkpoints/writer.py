"""Writing the checkpoints of a run with Orbax."""

import contextlib
import json
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import jax
from orbax.checkpoint import v1 as ocp

from shakegpt_jax.checkpoints.digests import (
    METADATA,
    sync_to_disk,
    verify_digests,
    write_digests,
)
from shakegpt_jax.checkpoints.reader import CheckpointReader, Metrics
from shakegpt_jax.checkpoints.run_folder import CHECKPOINTS, RunMetadata, checkpoint_steps
from shakegpt_jax.distributed import highest, is_primary, primary_first
from shakegpt_jax.errors import CorruptCheckpointError, SaveError, UserError

_MAX_FAILURES = 3  # consecutive failed saves


class CheckpointWriter(CheckpointReader):
    """Writes the checkpoints of a run; a context manager that waits for saves to finish.

    A checkpoint is written to a temporary folder and renamed once it is complete and on disk. One
    save runs at a time, in a background thread that touches no attribute of this object.
    """

    def __init__(self, workdir: str | Path, keep_latest: int, report: Callable[[str], object]):
        """Open a run folder and move corrupt checkpoints out of the way.

        Args:
            workdir: the run folder.
            keep_latest: how many of the latest checkpoints to keep, besides the best by
                validation loss. Orbax's preservation policies know nothing of the digests and
                the final rename.
            report: called with a line about each corrupt checkpoint and each failed save.

        Raises:
            UserError: if no valid checkpoint remains or one cannot be read. In that case nothing
                on disk changes.
        """
        super().__init__(workdir)
        self._keep_latest, self._report = keep_latest, report
        self._saving: tuple[int, RunMetadata, Metrics, Future[None]] | None = None
        self._n_failure = 0
        self._known: dict[int, tuple[RunMetadata, Metrics]] = {}
        self._temporary = self.workdir / CHECKPOINTS / "tmp"
        primary_first(self._clean_up)
        if not is_primary():
            for step in checkpoint_steps(workdir):
                self._known[step] = super()._read(step)
        self._pool = ThreadPoolExecutor(1)

    def _clean_up(self) -> None:
        self._set_aside_corrupt()
        self._temporary.mkdir(parents=True, exist_ok=True)
        self._clear_temporary()  # left by a process that was killed

    def _set_aside_corrupt(self) -> None:
        corrupt: dict[int, CorruptCheckpointError] = {}
        for step in checkpoint_steps(self.workdir):
            try:
                verify_digests(self.path(step))
                self._known[step] = super()._read(step)
            except CorruptCheckpointError as error:
                corrupt[step] = error
        if corrupt and not self._known:
            raise UserError(
                f"{corrupt[max(corrupt)]}; no valid checkpoint remains: remove {self.workdir}, or "
                "choose another --workdir, to start over"
            )
        for step, reason in corrupt.items():
            aside = self.path(step).with_suffix(".corrupt")
            shutil.rmtree(aside, ignore_errors=True)
            self.path(step).rename(aside)
            self._report(f"{reason}; renamed the checkpoint of step {step} to {aside}")

    def __enter__(self) -> Self:
        logging.getLogger("absl").addFilter(_is_not_from_orbax)
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            if exception[0] is None:
                self.wait()
            elif jax.process_count() == 1:
                with contextlib.suppress(SaveError):  # the other exception ends the run
                    self.wait()
            elif self._saving:  # the other processes may not have this exception
                self._saving[-1].exception()
        finally:
            self._pool.shutdown()
            if is_primary():
                shutil.rmtree(self._temporary, ignore_errors=True)
            if not self._n_failure:  # threads of a failed save may log later
                logging.getLogger("absl").removeFilter(_is_not_from_orbax)

    @property
    def steps(self) -> list[int]:
        """Steps of the valid checkpoints, in ascending order."""
        return sorted(self._known)

    @property
    def latest_step(self) -> int:
        """Step of the latest checkpoint; 0 if there is none."""
        return max(self._known, default=0)

    def _read(self, step: int) -> tuple[RunMetadata, Metrics]:
        return self._known[step]

    def save(
        self, step: int, params: Any, opt_state: Any, metrics: Metrics | None, metadata: RunMetadata
    ) -> None:
        """Start saving. The arrays may be donated or changed as soon as this returns.

        If a save fails, it is reported and earlier checkpoints are kept.

        Args:
            step: names the checkpoint, which must not exist.
            params: pytree of arrays, sharded or not.
            opt_state: pytree of arrays, the optimizer state; None if training cannot resume here.
            metrics: finite validation metrics, `loss` among them, which selects the best
                checkpoint; None if there are none.
            metadata: stored beside the arrays.

        Raises:
            SaveError: if this save or the one before it is the third consecutive failure, or the
                first with several processes.
        """
        self.wait()
        # Threads of a failed save may still write to its folder: a second attempt has another.
        folder = self._temporary / f"{step}.{self._n_failure}"
        content = json.dumps(metadata.to_json() | {"metrics": metrics}, allow_nan=False)
        context = ocp.Context()
        context.array.saving.use_compression = False  # compressed: 8% smaller, 1.6 times slower
        arrays = {"params": params}
        if opt_state is not None:
            arrays["opt_state"] = opt_state
        try:
            self._temporary.stat()  # if the run folder was removed, Orbax would create it again
            with context:
                response = ocp.save_checkpointables_async(folder.absolute(), arrays)
        except Exception as error:  # Orbax and TensorStore raise many types
            self._handle_failure(step, error)
            return

        def finish() -> None:
            response.result()
            if not is_primary():
                return
            (folder / METADATA).write_text(content, encoding="utf-8")
            write_digests(folder)
            folder.rename(self.path(step))
            sync_to_disk(self.path(step).parent)

        self._saving = step, metadata, metrics or {}, self._pool.submit(finish)

    def wait(self) -> None:
        """Wait for the current save to finish, and remove checkpoints that are not kept.

        Raises:
            SaveError: if the save is the third consecutive failure.
        """
        if self._saving is None:
            return
        (step, metadata, metrics, future), self._saving = self._saving, None
        failure = future.exception()
        if failure:
            self._handle_failure(step, failure)
            return
        highest(0)  # the checkpoint is there once process 0 says so
        self._n_failure = 0
        self._known[step] = metadata, metrics
        best = self.find("best")
        for old in self.steps[: -self._keep_latest]:
            if old != best:
                self._remove(old)

    def describe_last_good(self) -> str:
        """Return a phrase that names the latest valid checkpoint, for error messages."""
        if not self._known:
            return "there is no earlier checkpoint"
        return f"the last good checkpoint is that of step {self.latest_step}"

    def _handle_failure(self, step: int, error: BaseException) -> None:
        self._n_failure += 1
        if is_primary():
            self._clear_temporary()  # on a full disk, the remains would make the next save fail
        reason = str(error).strip().split("\n")[0][:300] or type(error).__name__
        message = f"could not save the checkpoint of step {step} ({reason}); "
        if self._n_failure >= _MAX_FAILURES:
            message += f"this is the third failure in a row; {self.describe_last_good()}"
            raise SaveError(message) from error
        if jax.process_count() > 1:  # in Orbax, the others would wait for this one
            raise SaveError(message + self.describe_last_good()) from error
        self._report(message + self.describe_last_good())

    def _remove(self, step: int) -> None:
        # Renamed first: a partly deleted checkpoint would look corrupt.
        del self._known[step]
        if not is_primary():
            return
        trash = self._temporary / f"{step}.old"
        try:
            self.path(step).rename(trash)
            shutil.rmtree(trash)
        except OSError as error:
            self._report(f"could not remove the checkpoint of step {step}: {error.strerror}")

    def _clear_temporary(self) -> None:
        for path in self._temporary.glob("*"):
            shutil.rmtree(path, ignore_errors=True)


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    """Orbax logs some 400 lines about a failed save, besides raising the error."""
    return "orbax" not in Path(record.pathname).parts
