"""Checks that a config resumes the run in a folder, and what may change."""

import contextlib
import os
from pathlib import Path

from shakegpt_jax.checkpoints.reader import CheckpointReader
from shakegpt_jax.checkpoints.run_metadata import RunMetadata
from shakegpt_jax.config import Config
from shakegpt_jax.errors import CorruptCheckpointError, UserError

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
