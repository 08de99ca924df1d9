"""One training process per run folder."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from shakegpt_jax.errors import UserError

_PATIENCE_SECONDS = 0.2  # `is_locked` holds the lock for an instant


@contextmanager
def run_lock(workdir: str | Path) -> Iterator[None]:
    """Lock a run folder for this process; the folder is created if it does not exist.

    The kernel holds the lock and releases it when the process ends, however it ends.

    Raises:
        UserError: if another process holds the lock or the folder is not writable.
    """
    try:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        file = (Path(workdir) / "lock").open("a+")
    except OSError as error:
        raise UserError(f"cannot write to the run folder {workdir}: {error.strerror}") from error
    with file:
        try:
            _lock(file)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(
                f"{workdir} is in use by the training process {file.read().strip()}; "
                "wait for it, stop it, or choose another --workdir"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _lock(file: IO[str]) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def is_locked(workdir: str | Path) -> bool:
    """Return whether a process trains in a run folder."""
    try:
        file = (Path(workdir) / "lock").open()
    except OSError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back at once
        except BlockingIOError:
            return True
    return False
