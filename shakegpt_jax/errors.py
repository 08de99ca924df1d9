"""Exceptions that end a command early, each with its exit code, and errors of the system."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """Invalid input. The message says what is wrong, what was given and what is accepted."""

    exit_code = 2


class CorruptCheckpointError(UserError):
    """A checkpoint differs from what was saved. The message names the file."""


class DivergedError(Exception):
    """Training produced a non-finite loss or gradient. The message says at which steps."""

    exit_code = 3


class SaveError(Exception):
    """Checkpoints cannot be saved. The message says why and names the last good checkpoint."""

    exit_code = 1


class StoppedBySignalError(Exception):
    """A signal ended training after its state was saved. The message says how to resume."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number


@contextmanager
def os_errors_name(path: str | Path) -> Iterator[None]:
    """Make an OSError name the path that the user gave, not a temporary file."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise
