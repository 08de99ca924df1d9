"""Whether a run may start or resume in a folder: same config and text, one process at a time."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shakegpt_jax.checkpoints.reader import CheckpointReader
from shakegpt_jax.checkpoints.run_folder import RunMetadata
from shakegpt_jax.config import Config
from shakegpt_jax.errors import UserError

# Fields that may change when a run resumes. The text is identified by its digest.
_RESUMABLE = {
    "data.path",
    "model.remat",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    "train.eval_every",
    "train.eval_characters",
    "train.target_loss",
    "train.steps_per_dispatch",
    "train.keep_checkpoints",
    "train.sample_length",
    "train.accumulate_steps",
}


def recorded_config(config: Config, saved: RunMetadata | None) -> Config:
    """Return the config that the checkpoints of a run record; `saved` is what they have so far."""
    # Absolute, so that `evaluate` finds the text from any folder.
    given = {"data.path": config.data.path, "train.init_from": config.train.init_from}
    paths = {n: str(Path(os.path.expanduser(path)).absolute()) for n, path in given.items() if path}
    # A resumed run does not read the run that it started from, which may have moved.
    if saved and saved.config.train.init_from and config.train.init_from:
        paths["train.init_from"] = saved.config.train.init_from
    return config.replace(paths)


def check_resumable(checkpoints: CheckpointReader, metadata: RunMetadata) -> None:
    """Check that the checkpoints in a run folder belong to the run that is about to train."""
    saved, workdir = saved_metadata(checkpoints), checkpoints.workdir
    if not saved or not (differences := _differences(metadata, saved)):
        return
    remedy = "choose another --workdir, or the config that the run was started with"
    if metadata.config.train.num_steps > saved.config.train.num_steps:
        remedy += (
            "; to train it for longer, start from its parameters: "
            f"--config.train.init_from={workdir} and another --workdir"
        )
    raise UserError(
        f"{workdir} holds another run, with a different {', '.join(differences)}; {remedy}"
    )


def saved_metadata(checkpoints: CheckpointReader) -> RunMetadata | None:
    """Return the metadata of the latest checkpoint; None without checkpoints.

    Raises:
        UserError: if the model there was imported, so that no run can resume.
        CorruptCheckpointError: if it is damaged.
    """
    if not checkpoints.steps:
        return None
    latest = checkpoints.read("latest")
    if not checkpoints.has_optimizer_state(latest.step):
        raise UserError(
            f"{checkpoints.workdir} holds an imported model, without an optimizer state to "
            "resume from; train on in another --workdir, with "
            f"--config.train.init_from={checkpoints.workdir}"
        )
    return latest.metadata


def _differences(ours: RunMetadata, theirs: RunMetadata) -> list[str]:
    saved = {path: value for path, _, value in theirs.config.fields()}
    fields = [
        f"{path} (saved {saved[path]!r}, now {value!r})"
        for path, _, value in ours.config.fields()
        if path not in _RESUMABLE and saved[path] != value
    ]
    other_text = ours.text_sha256 != theirs.text_sha256
    return fields + [f"text (now {ours.config.data.path or 'Tiny Shakespeare'})"] * other_text


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
            if locked := _lock(file.fileno(), fcntl.LOCK_EX):
                break
            time.sleep(0.01)
        if not locked:
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
            return not _lock(file.fileno(), fcntl.LOCK_SH)  # given back at once
    except OSError:
        return False


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
