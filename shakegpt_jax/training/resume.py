"""Whether a run may start or resume in a folder: same config and text, one process at a time."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shakegpt_jax.checkpoints.reader import CheckpointReader
from shakegpt_jax.checkpoints.run_folder import RunMetadata
from shakegpt_jax.config import Config
from shakegpt_jax.errors import UserError

# Fields that may change when a run resumes. The text is identified by its digest.
_RESUMABLE = {
    "data": "path",
    "model": "remat",
    "optimizer": "",
    "train": "eval_every eval_characters target_loss steps_per_dispatch keep_checkpoints "
    "sample_length accumulate_steps",
    "mesh": "data fsdp tensor",
}


def saved_metadata(workdir: str | Path) -> RunMetadata | None:
    """Return the metadata of the run that would resume in a folder; None without checkpoints."""
    checkpoints = CheckpointReader(workdir)
    if not checkpoints.steps:
        return None
    latest = checkpoints.read("latest")
    if not checkpoints.has_optimizer_state(latest.step):
        raise UserError(
            f"{workdir} holds an imported model, without an optimizer state to resume from; train "
            f"on in another --workdir, with --config.train.init_from={workdir}"
        )
    return latest.metadata


def recorded_config(config: Config, saved: RunMetadata | None) -> Config:
    """Return the config that the checkpoints of a run record; `saved` is what they have so far."""
    # Absolute, so that `evaluate` finds the text from any folder.
    given = {"data.path": config.data.path, "train.init_from": config.train.init_from}
    paths = {n: str(Path(os.path.expanduser(path)).absolute()) for n, path in given.items() if path}
    # A resumed run does not read the run that it started from, which may have moved.
    if saved and saved.config.train.init_from and config.train.init_from:
        paths["train.init_from"] = saved.config.train.init_from
    return config.replace(paths)


def check_resumable(
    workdir: str | Path, saved: RunMetadata, config: Config, text_sha256: str
) -> None:
    """Check that the checkpoints in a run folder belong to the run that is about to train."""
    before = {path: value for path, _, value in saved.config.fields()}
    differences = [
        f"{path} (saved {before[path]!r}, now {value!r})"
        for path, field, value in config.fields()
        if before[path] != value and field.name not in _RESUMABLE[path.partition(".")[0]].split()
    ]
    if saved.text_sha256 != text_sha256:
        differences.append(f"text (now {config.data.path or 'Tiny Shakespeare'})")
    if differences:
        raise UserError(
            f"{workdir} holds another run, with a different {', '.join(differences)}; choose the "
            "config that the run was started with, or another --workdir, where "
            f"--config.train.init_from={workdir} starts from its parameters"
        )


@contextmanager
def run_lock(workdir: str | Path) -> Iterator[None]:
    """Lock a run folder, created if it does not exist, until this process ends, however it ends."""
    try:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        file = lock_path(workdir).open("a+")
    except OSError as error:
        raise UserError(f"cannot write to the run folder {workdir}: {error.strerror}") from error
    with file:
        for _ in range(20):  # `is_locked` holds the lock for an instant
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.01)
        else:
            file.seek(0)
            raise UserError(
                f"{workdir} is in use by the training process {file.read().strip()}; "
                "wait for it, stop it, or choose another --workdir"
            )
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        os.fsync(file.fileno())  # on NFS, the other processes read it
        yield


def lock_path(workdir: str | Path) -> Path:
    """Return the file of a run's lock, which holds the process id of the last run."""
    return Path(workdir) / "lock"


def is_locked(workdir: str | Path) -> bool:
    """Return whether a process trains in a run folder."""
    try:
        with lock_path(workdir).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back at once
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False
