"""Start of a run: what it trains, resuming it, or taking the parameters of another run.

Axes: V vocabulary of the new run.
"""

import dataclasses
import os
import shlex
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from shakegpt_jax.checkpoints.reader import CheckpointReader, SavedCheckpoint
from shakegpt_jax.checkpoints.run_folder import RunMetadata, checkpoint_steps, find_run
from shakegpt_jax.config import Config
from shakegpt_jax.data.corpus import Corpus
from shakegpt_jax.data.tokenizer import show_character
from shakegpt_jax.distributed import is_primary
from shakegpt_jax.errors import UserError
from shakegpt_jax.model.gpt import abstract_params
from shakegpt_jax.model.layers import parameter_axes
from shakegpt_jax.model.linear import describe_dtypes
from shakegpt_jax.sharding import replicate, shard_state
from shakegpt_jax.training.step import PretrainedParams

# Fields that may change when a run resumes. The text is identified by its digest.
_RESUMABLE = {
    "data.path",
    "model.remat",
    "train.eval_every",
    "train.eval_characters",
    "train.target_loss",
    "train.steps_per_dispatch",
    "train.keep_checkpoints",
    "train.sample_length",
    "train.tracker",
    "train.accumulate_steps",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
}


def saved_run(workdir: str | Path) -> RunMetadata | None:
    """Return the metadata of the run that would resume in a folder; None without checkpoints."""
    checkpoints = CheckpointReader(workdir)
    if not checkpoints.steps:
        return None
    latest = checkpoints.read_stable(lambda: checkpoints.read("latest"))
    if not checkpoints.has_optimizer_state(latest.step):
        raise UserError(
            f"{workdir} holds an imported or saved model, without an optimizer state to resume "
            f"from; continue in another --workdir, with --config.train.init_from={workdir}"
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
        for path, _, value in config.fields()
        if before[path] != value and path not in _RESUMABLE
    ]
    if saved.text_sha256 != text_sha256:
        differences.append(f"text (now {config.data.path or 'Tiny Shakespeare'})")
    if differences:
        other, run = shlex.quote(f"{workdir}-2"), shlex.quote(str(workdir))
        advice = f"to train another model, add --workdir={other}"
        if saved.config.model == config.model:
            advice += f", and --config.train.init_from={run} to start from these parameters"
        raise UserError(
            f"{workdir} holds another run, with a different {', '.join(differences)}; {advice}; to "
            "go on with this run, choose the config that it was started with"
        )


def describe_run(config: Config, corpus: Corpus, mesh: Mesh) -> str:
    """Return lines on what a run trains: all that is known before its program is compiled."""
    model, n_step, batch_size = config.model, config.train.num_steps, config.data.batch_size
    params = abstract_params(model, corpus.tokenizer.vocab_size)
    n_parameter = sum(each.size for each in jax.tree.leaves(params))
    n_train, n_val = len(corpus.train_ids), len(corpus.val_ids)
    name, most = config.data.path or "Tiny Shakespeare", config.train.eval_characters
    part = f" (evaluations score about {most:,})" if 0 < most < n_val - 1 else ""
    axes = [f", {axis} {size}" for axis, size in mesh.shape.items() if size > 1]
    epochs = n_step * batch_size * model.block_size / n_train
    return "\n".join(
        [
            f"model    {n_parameter:,} parameters: n_layer {model.n_layer}, n_head {model.n_head}, "
            f"n_embd {model.n_embd}",
            f"device   {mesh.size} x {mesh.devices.flat[0].device_kind}{''.join(axes)}; "
            f"matmuls in {describe_dtypes(model)}",
            f"text     {name}",
            f"         {n_train + n_val:,} characters, vocabulary of {corpus.tokenizer.vocab_size}",
            f"split    {n_train:,} to train, {n_val:,} to validate{part}",
            f"steps    {n_step:,} with {batch_size:,} windows of {model.block_size:,} characters "
            f"each: {epochs:.3g} epochs",
        ]
    )


# Fields of the model that may differ from the source: they do not change what parameters mean. A
# shorter window drops the positions beyond it.
_FREE_FIELDS = {"block_size", "dropout", "init_stddev", "compute_dtype", "remat"}


def load_params(source: SavedCheckpoint, vocabulary: str, mesh: Mesh) -> PretrainedParams:
    """Read the parameters of a source, sharded like those of a run with this vocabulary."""
    theirs = source.metadata.vocabulary
    params = abstract_params(source.metadata.config.model, len(theirs))
    abstract = {"params": shard_state(mesh, params, parameter_axes)}
    restored = CheckpointReader(source.path.parents[1]).restore(source.step, abstract)
    ids_V = np.array([theirs.find(character) for character in vocabulary], np.int32)
    return PretrainedParams(restored["params"], replicate(mesh, ids_V))


def describe(source: SavedCheckpoint, vocabulary: str) -> str:
    """Return a line that says where a run with this vocabulary starts, and what is new."""
    line = f"starts from {source.path}"
    if new := [c for c in vocabulary if c not in source.metadata.vocabulary]:
        line += f", with new rows for {len(new)} characters that it lacks: "
        line += " ".join(map(show_character, new[:20])) + " ..." * (len(new) > 20)
    return line


def find_pretrained(config: Config, workdir: str | Path) -> SavedCheckpoint | None:
    """Find and check the best checkpoint of `train.init_from`, if the run is new and has one."""
    if not config.train.init_from or checkpoint_steps(workdir):
        return None
    path = os.path.expanduser(config.train.init_from)
    try:
        checkpoints = CheckpointReader(find_run(path))
    except UserError as error:
        raise UserError(f"config.train.init_from: {error}") from error

    def find_best() -> SavedCheckpoint:
        best = checkpoints.read("best")
        if is_primary():
            checkpoints.verify(best.step, skip=["opt_state"])  # before anything is written
        return best

    source = checkpoints.read_stable(find_best)
    ours, theirs = (dataclasses.asdict(c.model) for c in (config, source.metadata.config))
    names = [n for n in ours if n not in _FREE_FIELDS and ours[n] != theirs[n]]
    if ours["block_size"] > theirs["block_size"]:  # it lacks the positions beyond its own
        names.append("block_size")
    if names:
        given = ", ".join(f"{name} {ours[name]}" for name in names)
        right = " ".join(f"--config.model.{name}={theirs[name]}" for name in names)
        raise UserError(
            f"config.model has {given}, unlike the model of {path} (config.train.init_from); "
            f"add {right}"
        )
    return source
