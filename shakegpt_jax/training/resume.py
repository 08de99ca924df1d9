"""Whether a run may start or resume in a folder: same config and text, one process at a time."""

import contextlib
import fcntl
import importlib.metadata
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import jax

from shakegpt_jax.checkpoints.reader import CheckpointReader
from shakegpt_jax.checkpoints.run_folder import RunMetadata
from shakegpt_jax.config import Config
from shakegpt_jax.data.corpus import Corpus
from shakegpt_jax.distributed import (
    check_equal,
    from_primary,
    highest,
    is_primary,
    primary_first,
)
from shakegpt_jax.errors import CorruptCheckpointError, UserError
from shakegpt_jax.training.init_from import PretrainedCheckpoint

# Fields that may change when a run resumes. The text is identified by its digest.
_RESUMABLE_FIELDS = {
    "data.path",
    "train.eval_every",
    "train.eval_characters",
    "train.target_loss",
    "train.steps_per_dispatch",
    "train.keep_checkpoints",
    "train.sample_length",
    "train.accumulate_steps",
    "model.remat",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
}


def recorded_config(config: Config, saved: RunMetadata | None) -> Config:
    """Return the config that the checkpoints of a run record.

    Paths are absolute, so that `evaluate` finds the text from any folder. A resumed run does not
    read the run that it started from, which may have moved: the path recorded first is kept.

    Args:
        config: frozen config of a run.
        saved: metadata of the checkpoint that the run resumes from; None: it is new.
    """
    given = {"data.path": config.data.path, "train.init_from": config.train.init_from}
    paths = {
        name: str(Path(os.path.expanduser(path)).absolute()) for name, path in given.items() if path
    }
    if saved and saved.config.train.init_from and config.train.init_from:
        paths["train.init_from"] = saved.config.train.init_from
    return config.replace(paths)


def check_resumable(checkpoints: CheckpointReader, metadata: RunMetadata) -> None:
    """Check that the checkpoints in a run folder belong to the run that is about to train.

    Raises:
        UserError: naming the fields that differ.
    """
    saved = saved_metadata(checkpoints)
    if saved and (differences := _differences(metadata, saved)):
        raise UserError(
            f"{checkpoints.workdir} holds another run, with a different "
            f"{', '.join(differences)}; choose another --workdir, or the config that the "
            "run was started with"
        )


def saved_metadata(checkpoints: CheckpointReader) -> RunMetadata | None:
    """Return the metadata of the newest checkpoint that has any; None without checkpoints.

    Raises:
        UserError: if the model there was imported, so that no run can resume.
    """
    for step in reversed(checkpoints.steps):
        with contextlib.suppress(CorruptCheckpointError):  # try an older one
            if not checkpoints.has_optimizer_state(step):
                raise UserError(
                    f"{checkpoints.workdir} holds an imported model, without an optimizer state to "
                    "resume from; train on in another --workdir, with "
                    f"--config.train.init_from={checkpoints.workdir}"
                )
            return checkpoints.run_metadata(step)
    return None


def _differences(ours: RunMetadata, theirs: RunMetadata) -> list[str]:
    saved = {path: value for path, _, value in theirs.config.fields()}
    fields = [
        f"{path} (saved {saved[path]!r}, now {value!r})"
        for path, _, value in ours.config.fields()
        if path not in _RESUMABLE_FIELDS and saved[path] != value
    ]
    other_text = ours.text_sha256 != theirs.text_sha256
    return fields + [f"text (now {ours.config.data.path or 'Tiny Shakespeare'})"] * other_text


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


def check_same_run(
    config: Config, corpus: Corpus, workdir: str | Path, source: PretrainedCheckpoint | None
) -> None:
    """Check that all processes have the same config, text, folder and packages. All must call it.

    Args:
        config: frozen config; only its `data.path` may differ.
        corpus: the text.
        workdir: run folder.
        source: checkpoint that the run starts from; None: it starts from scratch or resumes.

    Raises:
        UserError: in all processes, naming each difference from process 0.
    """
    values: dict[str, Any] = {
        f"config.{path}": value for path, _, value in config.fields() if path != "data.path"
    }
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    values |= {name: importlib.metadata.version(name) for name in packages}
    values |= {"text": corpus.sha256, "vocabulary": corpus.tokenizer.vocabulary}
    values |= {"the checkpoint to start from": source and str(source.path)}
    check_equal("start", values | {"--workdir": str(workdir)})


def check_shared(workdir: str | Path) -> None:
    """Check that all processes see the run folder of process 0. All must call it.

    Raises:
        UserError: in all processes, if one of them sees another folder.
    """
    if jax.process_count() == 1:
        return
    marker = Path(workdir) / from_primary("marker", f".shared-{secrets.token_hex(8)}")
    primary_first(marker.touch)
    missing = highest(not marker.exists())
    if is_primary():
        marker.unlink()
    if missing:
        raise UserError(f"{workdir} is not the same folder for all processes; share --workdir")
