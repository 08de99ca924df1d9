"""Checks that a config can resume the run in a folder."""

import contextlib

from shakegpt_jax.checkpoints.reader import CheckpointReader
from shakegpt_jax.checkpoints.run_metadata import RunMetadata
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
