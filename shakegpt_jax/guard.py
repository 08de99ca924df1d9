"""What keeps a run whole: one process per folder, and an end in good order on a signal."""

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from shakegpt_jax.errors import UserError


@contextmanager
def only_one(workdir: str | Path) -> Iterator[None]:
    """Hold a run folder, which is created where it is missing, for this process alone.

    The lock is the kernel's: it ends with the process, however that ends.

    Raises:
        UserError: naming the process that holds it, or if the folder cannot be written.
    """
    try:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW  # a link could lead out of the folder
        file = open(os.open(Path(workdir) / "lock", flags, 0o666), "r+")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"cannot write to the run folder {workdir}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(
                f"{workdir} is being trained in by process {file.read().strip()}; "
                "wait for it, stop it, or give another --workdir"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


class StopSignals:
    """Takes note of SIGTERM and Ctrl-C instead of dying of them; a second one does kill."""

    received: int | None = None

    def __enter__(self) -> "StopSignals":
        self._before = {n: signal.signal(n, self._note) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
