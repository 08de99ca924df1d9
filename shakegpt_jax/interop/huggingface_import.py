"""Import from Hugging Face transformers: GPT-2 with a tokenizer of single characters."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from shakegpt_jax.checkpoints.reader import Metrics, is_valid_metrics
from shakegpt_jax.checkpoints.run_folder import RunMetadata
from shakegpt_jax.cli.command import import_extra
from shakegpt_jax.errors import UserError
from shakegpt_jax.interop import gpt2
from shakegpt_jax.interop.huggingface_export import CONFIG, ENTRY, WEIGHTS, without_folders
from shakegpt_jax.interop.imported_run import ImportedModel, foreign_metadata, is_step
from shakegpt_jax.model.gpt import LAYER_NORM_EPSILON

# Fields of `GPT2Config`, each with its default, which a config.json may leave out.
_FIELDS = {
    "n_layer": ("n_layer", 12),
    "n_head": ("n_head", 12),
    "n_embd": ("n_embd", 768),
    "block_size": ("n_positions", 1024),
    "dropout": ("resid_pdrop", 0.1),
    "init_stddev": ("initializer_range", 0.02),
    "activation": ("activation_function", "gelu_new"),
}
_ACTIVATIONS = {theirs: ours for ours, theirs in gpt2.ACTIVATIONS.items()} | {
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python": "gelu_exact",
}
_FLOATS = ("F32", "F16", "BF16")


def read_huggingface(path: str) -> ImportedModel:
    """Read a folder that `shakegpt export` or `save_pretrained` has written."""
    folder = Path(path)
    config: dict[str, Any] = dict(_FIELDS.values()) | _read_json(folder / CONFIG)
    fields = _model_fields(config, folder / CONFIG)
    tokenizer = folder / "tokenizer.json"
    rows, special = gpt2.read_characters(_read_json(tokenizer), tokenizer)
    n_row: Any = config.get("vocab_size")
    n_token = len(rows) + len(special)
    if type(n_row) is not int or n_row < n_token:  # more rows fill up a multiple of 64, say
        right = f"at least {n_token}, as many as there are tokens in {tokenizer.name}"
        raise UserError(f"{folder / CONFIG}: vocab_size is {n_row!r:.60}; it must be {right}")
    metadata = foreign_metadata(fields, "".join(rows), 1, str(folder / CONFIG))
    weights = folder / WEIGHTS
    if not weights.is_file():
        right = "load the model in transformers and save it with save_pretrained, in one file"
        raise UserError(f"{folder} has no {WEIGHTS}; {right}")
    own = _own_entry(config.get(ENTRY), weights, metadata)
    arrays = _read_arrays(weights, tied=config.get("tie_word_embeddings", True))
    params = gpt2.read_params(arrays, metadata.config.model, rows, n_row, weights)
    if own is None:
        changed = ", which has changed since its export" if ENTRY in config else ""
        without = f", without its tokens {' '.join(special)}" if special else ""
        origin = f"Hugging Face transformers{changed}{without}"
        return ImportedModel(metadata, params, 1, None, origin)
    metadata, step, metrics = own
    return ImportedModel(metadata, params, step, metrics, f"an export of step {step}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object")
    return content


def _model_fields(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the fields of `ModelConfig`, once `GPT` is known to compute the same."""
    n_embd = config["n_embd"]
    accepted: dict[str, tuple[Any, ...]] = {  # the default first
        "model_type": ("gpt2",),
        "activation_function": tuple(_ACTIVATIONS),
        "n_inner": (None, 4 * n_embd if type(n_embd) is int else None),
        "tie_word_embeddings": (True, False),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "layer_norm_epsilon": (LAYER_NORM_EPSILON,),
    }
    for field, values in accepted.items():
        value = config.get(field, values[0])
        if not any(value == right and type(value) is type(right) for right in values):
            right = " or ".join(f"{right!r}" for right in values)
            raise UserError(f"{path}: {field} is {value!r:.60}; it must be {right}")
    fields = {ours: config[theirs] for ours, (theirs, _) in _FIELDS.items()}
    return fields | {"activation": _ACTIVATIONS[config["activation_function"]]}


def _own_entry(
    entry: Any, weights: Path, foreign: RunMetadata
) -> tuple[RunMetadata, int, Metrics | None] | None:
    """Return metadata, step and metrics of an export; None for other models and changed ones."""
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not isinstance(entry, dict) or entry.get("weights_sha256") != digest:
        return None
    name = weights.parent / CONFIG
    try:
        metadata = RunMetadata.from_json(entry)
    except UserError as error:
        raise UserError(f"{name}: in {ENTRY}, {error}") from error
    models = metadata.config.model, foreign.config.model
    same = all(getattr(models[0], name) == getattr(models[1], name) for name in _FIELDS)
    if not same or metadata.vocabulary != foreign.vocabulary:
        raise UserError(f"{name}: its entry {ENTRY} describes another model")
    step, metrics = entry.get("step"), entry.get("metrics") or None
    if not (step is None or is_step(step)) or not (metrics is None or is_valid_metrics(metrics)):
        wrong = f"step is {step!r:.40} and metrics are {metrics!r:.80}"
        raise UserError(f"{name}: in {ENTRY}, {wrong}; they must be those of a checkpoint")
    config = without_folders(metadata.config)
    return dataclasses.replace(metadata, config=config), step or 1, metrics


def _read_arrays(path: Path, *, tied: bool) -> dict[str, np.ndarray]:
    """Return the arrays as float32 by their names in `GPT2LMHeadModel`, without causal masks."""
    safetensors = import_extra("safetensors", extra="hf")
    arrays = {}
    try:
        with safetensors.safe_open(path, framework="np") as file:
            for key in file.keys():  # noqa: SIM118  # not a dict
                if key.endswith(gpt2.BUFFERS):
                    continue
                if (dtype := file.get_slice(key).get_dtype()) not in _FLOATS:
                    right = " or ".join(_FLOATS)
                    raise UserError(f"{path}: {key:.80} is {dtype}; it must be {right}")
                is_bare = not key.startswith(("transformer.", "lm_head."))  # of a GPT2Model
                name = f"transformer.{key}" if is_bare else key
                arrays[name] = file.get_tensor(key).astype(np.float32, copy=False)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is corrupt: {str(error)[:200]}") from error
    if tied and (embedding := arrays.get(gpt2.EMBEDDING)) is not None:
        arrays[gpt2.HEAD] = embedding
    return arrays
