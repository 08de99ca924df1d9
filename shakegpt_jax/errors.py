"""How a command can end early, other than by a mistake in this package."""


class UserError(ValueError):
    """Bad input: the message says what is wrong, what was given and what would be right."""

    exit_code = 2


class DamagedError(UserError):
    """A checkpoint is not as it was saved; the message names the file."""


class DivergedError(Exception):
    """Training produced numbers that are not finite; the message says where."""

    exit_code = 3


class SaveError(Exception):
    """Checkpoints cannot be saved; the message says why, and which is the last."""

    exit_code = 1


class StoppedBySignalError(Exception):
    """A signal ended training, after its state was saved; the message says how to go on."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number
