"""Import of a folder of Hugging Face transformers: GPT-2 with a tokenizer of single characters.

Nothing here imports transformers, tokenizers or torch.
"""

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

from shakegpt_jax.checkpoints.reader import is_valid_metrics
from shakegpt_jax.checkpoints.run_folder import RunMetadata
from shakegpt_jax.cli.command import import_extra
from shakegpt_jax.errors import UserError
from shakegpt_jax.interop.huggingface import (
    ACTIVATIONS,
    CONFIG,
    RUN_ENTRY,
    WEIGHTS,
    without_folders,
)
from shakegpt_jax.interop.huggingface_tokenizer import read_characters
from shakegpt_jax.interop.imported_model import (
    BUFFERS,
    ImportedModel,
    foreign_metadata,
    is_step,
    read_params,
)
from shakegpt_jax.interop.stored_array import StoredArray, open_regular, read_json
from shakegpt_jax.model.gpt import LAYER_NORM_EPSILON

# What other values of `GPT2Config` compute, `GPT` does not. The first is the default.
_FIXED: dict[str, tuple[Any, ...]] = {
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "layer_norm_epsilon": (LAYER_NORM_EPSILON,),
}
_FIELDS = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "block_size": "n_positions",
    "dropout": "resid_pdrop",
    "init_stddev": "initializer_range",
}
_DEFAULTS = {
    "n_layer": 12,
    "n_head": 12,
    "n_embd": 768,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "initializer_range": 0.02,
    "activation_function": "gelu_new",
    "tie_word_embeddings": True,
}  # of `GPT2Config`, for fields that a config.json leaves out
_ACTIVATIONS = {theirs: ours for ours, theirs in ACTIVATIONS.items()} | {
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python": "gelu_exact",
}
_FLOATS = ("F32", "F16", "BF16")


def read_huggingface(path: str) -> ImportedModel:
    """Read a folder that `python -m shakegpt_jax.export` or `save_pretrained` has written.

    Args:
        path: the folder, with config.json, tokenizer.json and model.safetensors.

    Raises:
        UserError: if a file is missing or corrupt, or `GPT` cannot compute what the model does.
    """
    folder = Path(path)
    config = _DEFAULTS | read_json(folder / CONFIG)
    fields = _model_fields(config, str(folder / CONFIG))
    characters = read_characters(folder / "tokenizer.json")
    if (n_token := config.get("vocab_size")) != len(characters):
        right = f"{len(characters)}, as many as there are characters in tokenizer.json"
        raise UserError(f"{folder / CONFIG}: vocab_size is {_shown(n_token)}; it must be {right}")
    foreign = foreign_metadata(fields, characters, 1, str(folder / CONFIG))
    weights = _find_weights(folder)
    own = _own_entry(config.get(RUN_ENTRY), weights, foreign)
    metadata = foreign if own is None else own[0]
    params = _read_weights(weights, metadata, characters, tied=bool(config["tie_word_embeddings"]))
    if own is None:
        changed = ", which has changed since its export" if RUN_ENTRY in config else ""
        return ImportedModel(metadata, params, 1, None, f"Hugging Face transformers{changed}")
    return ImportedModel(metadata, params, *own[1:], f"an export of step {own[1]}")


def _model_fields(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the fields of `ModelConfig` after checking all that it has no field for."""
    accepted = _FIXED | {
        "model_type": ("gpt2",),
        "activation_function": tuple(_ACTIVATIONS),
        "n_inner": (None, 4 * config["n_embd"] if type(config["n_embd"]) is int else None),
        "tie_word_embeddings": (True, False),
    }
    for field, values in accepted.items():
        value = config.get(field, values[0])
        if not any(value == right and type(value) is type(right) for right in values):
            right = " or ".join(_shown(right) for right in values)
            raise UserError(f"{name}: {field} is {_shown(value)}; it must be {right}")
    fields = {ours: config[theirs] for ours, theirs in _FIELDS.items()}
    return fields | {"activation": _ACTIVATIONS[config["activation_function"]]}


def _shown(value: Any) -> str:
    """Return a value as an error message shows it."""
    return f"{value!r:.60}"


def _find_weights(folder: Path) -> Path:
    if (folder / WEIGHTS).exists():
        return folder / WEIGHTS
    if (folder / f"{WEIGHTS}.index.json").exists():
        right = "join its parts: save_pretrained(DIR, max_shard_size='100GB') in transformers"
    elif (folder / "pytorch_model.bin").exists():
        right = (
            "pytorch_model.bin could execute code; convert it with transformers: "
            "GPT2LMHeadModel.from_pretrained(DIR).save_pretrained(DIR)"
        )
    else:
        right = "give a folder that save_pretrained has written"
    raise UserError(f"{folder} has no {WEIGHTS}; {right}")


def _own_entry(
    entry: Any, weights: Path, foreign: RunMetadata
) -> tuple[RunMetadata, int, dict[str, float] | None] | None:
    """Return metadata, step and metrics of an export; None for other models and changed ones."""
    if not isinstance(entry, dict) or entry.get("weights_sha256") != _digest(weights):
        return None
    name = weights.parent / CONFIG
    try:
        metadata = RunMetadata.from_json(entry)
    except UserError as error:
        raise UserError(f"{name}: in {RUN_ENTRY}, {error}") from error
    if (metadata.config.model, metadata.vocabulary) != (
        metadata.config.replace(_changes(foreign)).model,
        foreign.vocabulary,
    ):
        raise UserError(f"{name}: its entry {RUN_ENTRY} describes another model")
    step, metrics = entry.get("step"), entry.get("metrics") or None
    if step is not None and not is_step(step):
        right = "it must be a whole number from 1 to 2147483647"
        raise UserError(f"{name}: in {RUN_ENTRY}, step is {_shown(step)}; {right}")
    if metrics is not None and not is_valid_metrics(metrics):
        raise UserError(f"{name}: in {RUN_ENTRY}, metrics are not finite numbers")
    config = without_folders(metadata.config)
    return dataclasses.replace(metadata, config=config), step or 1, metrics


def _changes(metadata: RunMetadata) -> dict[str, Any]:
    names = (*_FIELDS, "activation")
    return {f"model.{name}": getattr(metadata.config.model, name) for name in names}


def _digest(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_weights(path: Path, metadata: RunMetadata, characters: str, *, tied: bool) -> Any:
    safetensors = import_extra("safetensors", extra="hf")
    import ml_dtypes  # noqa: F401  # registers bfloat16 with NumPy, which safetensors needs

    with open_regular(path):  # errors of the operating system as ours
        pass
    try:
        with safetensors.safe_open(path, framework="np") as file:
            arrays = {}
            for key in file.keys():  # noqa: SIM118  # not a dict
                part = file.get_slice(key)
                if part.get_dtype() not in _FLOATS and not key.endswith(BUFFERS):
                    right = " or ".join(_FLOATS)
                    raise UserError(f"{path}: {key:.80} is {part.get_dtype()}; it must be {right}")
                is_bare = not key.startswith(("transformer.", "lm_head."))  # of a GPT2Model
                name = f"transformer.{key}" if is_bare else key
                read = functools.partial(_read_float32, file, key)
                arrays[name] = StoredArray(tuple(part.get_shape()), read)
            if tied and (embedding := arrays.get("transformer.wte.weight")):
                arrays["lm_head.weight"] = embedding
            return read_params(metadata, arrays, path, characters)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is corrupt: {str(error)[:200]}") from error


def _read_float32(file: Any, key: str) -> Any:
    return file.get_tensor(key).astype("float32")
