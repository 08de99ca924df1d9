"""Fine-tuning: a run that starts from the parameters of another one.

Axes: T characters per window, D = n_embd, V vocabulary of the new run.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from shakegpt_jax.checkpoints.reader import CheckpointReader, SavedCheckpoint
from shakegpt_jax.checkpoints.run_folder import checkpoint_steps, find_run
from shakegpt_jax.config import Config
from shakegpt_jax.data.tokenizer import show_character
from shakegpt_jax.distributed import is_primary
from shakegpt_jax.errors import UserError
from shakegpt_jax.model.gpt import abstract_params
from shakegpt_jax.model.layers import parameter_axes
from shakegpt_jax.sharding import replicate, shard_state

# Fields of the model that may differ from the source: they do not change what parameters mean. A
# shorter window drops the positions beyond it.
_FREE_FIELDS = {"block_size", "dropout", "init_stddev", "compute_dtype", "remat"}


class PretrainedParams(NamedTuple):
    """Parameters of a source, and where its characters are in it."""

    params: Any  # pytree of float32 arrays
    ids_V: jax.Array  # id in the source of each character; -1 for those that it lacks


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
    """Find and check the checkpoint that a run starts from: the best one of `train.init_from`.

    None: the run starts from scratch, or resumes and needs no source any more.
    """
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


def merge_params(fresh: Any, start: PretrainedParams) -> Any:
    """Replace the parameters of a new model by those of a source; pure, to be traced under jit.

    New characters keep their random embeddings and columns of the head; where they are frequent,
    this trains better than the mean of the source's columns (Hewitt 2021, "Initializing new word
    embeddings for pretrained language models"; measured in docs/interop.md).
    """
    source, is_known_V = start.params, start.ids_V >= 0
    ids_V = jnp.maximum(start.ids_V, 0)
    wte_VxD = source["wte"]["embedding"][ids_V]
    head_DxV = source["lm_head"]["kernel"][:, ids_V]
    n_time = len(fresh["wpe"]["embedding"])
    return source | {
        "wte": {"embedding": jnp.where(is_known_V[:, None], wte_VxD, fresh["wte"]["embedding"])},
        "wpe": {"embedding": source["wpe"]["embedding"][:n_time]},
        "lm_head": {"kernel": jnp.where(is_known_V[None], head_DxV, fresh["lm_head"]["kernel"])},
    }
