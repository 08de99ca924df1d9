"""Export to Hugging Face transformers: a folder with GPT-2 and a tokenizer of single characters.

Nothing here imports transformers or torch.
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from shakegpt_jax.checkpoints.run_folder import RunMetadata
from shakegpt_jax.cli.command import import_extra
from shakegpt_jax.config import Config
from shakegpt_jax.errors import UserError, os_errors_name
from shakegpt_jax.inference import TEMPERATURE
from shakegpt_jax.inference.language_model import LanguageModel
from shakegpt_jax.interop.gpt2 import (
    ACTIVATIONS,
    EMBEDDING,
    EOS,
    HEAD,
    PAD,
    UNK,
    gpt2_names,
    tokenizer_json,
)
from shakegpt_jax.interop.model_card import model_card
from shakegpt_jax.model.gpt import LAYER_NORM_EPSILON
from shakegpt_jax.model.layers import gpt2_parameters

CONFIG, WEIGHTS = "config.json", "model.safetensors"
ENTRY = "shakegpt_jax"  # of config.json: what only this package reads

_GENERATION, _TOKENIZATION = "generation_config.json", "tokenizer_config.json"
_FILES = {"README.md", CONFIG, _GENERATION, WEIGHTS, "tokenizer.json", _TOKENIZATION}
_MARGIN = 30.0  # in a softmax, less than the rounding of float32; at a temperature of 2, 3e-7


def check_output(output: str, *, force: bool) -> Path:
    """Return the absolute path of the output: new, or with `force` an earlier export."""
    folder = Path(os.path.realpath(os.path.expanduser(output)))
    right = "choose another --output"
    try:
        names = {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        return folder
    except OSError as error:
        raise UserError(f"{output} is not a folder ({error.strerror}); {right}") from error
    try:
        is_export = ENTRY in json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError, TypeError):
        is_export = False
    if others := sorted(names - _FILES if is_export else names):
        raise UserError(f"{output} holds {others[0]}, which no export wrote; {right}")
    if names and not force:
        raise UserError(f"{output} holds an export already; --force replaces it")
    return folder


def export_folder(
    lm: LanguageModel, output: str, *, special_tokens: bool = True, force: bool = False
) -> dict[str, int]:
    """Export a model to a folder that transformers loads; `force` replaces an earlier export.

    With `special_tokens`, the vocabulary ends with `[UNK]`, `[PAD]` and `[EOS]`, and head and final
    LayerNorm change so that their logits are 30 below the mean of the characters' logits, which
    stay the same up to rounding. Without, the weights are the parameters bit for bit. Returns the
    size of each file in bytes, by name.
    """
    safetensors = import_extra("safetensors.numpy", extra="hf")
    folder = check_output(output, force=force)
    state = _state_dict(lm)
    if special_tokens:
        _add_special_rows(state, lm.tokenizer.vocabulary)
    weights = safetensors.save(state, {"format": "pt"})
    contents = _json_files(lm, hashlib.sha256(weights).hexdigest(), special_tokens=special_tokens)
    texts = {name: json.dumps(content, indent=2) + "\n" for name, content in contents.items()}
    texts["README.md"] = model_card(lm, folder.name, special_tokens=special_tokens)
    with os_errors_name(output):  # written beside its place and renamed once it is complete
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=folder.parent) as temporary:
            new = Path(temporary, "new")
            new.mkdir()
            for name, text in texts.items():
                (new / name).write_text(text, encoding="utf-8", errors="replace")
            (new / WEIGHTS).write_bytes(weights)
            sizes = {path.name: path.stat().st_size for path in sorted(new.iterdir())}
            if folder.exists():
                folder.rename(Path(temporary, "old"))
            new.rename(folder)
    return sizes


def _state_dict(lm: LanguageModel) -> dict[str, np.ndarray]:
    params = gpt2_parameters(lm.config.model, lm.params, "GPT-2")
    state = {}
    for name, path in gpt2_names(lm.config.model, lm.params).items():
        values = np.asarray(params["/".join(path)])
        if not np.isfinite(values).all():
            raise UserError(f"the parameter {'.'.join(path)} has values that are not finite")
        state[name] = np.ascontiguousarray(values.T if name == HEAD else values)
    return state


def _add_special_rows(state: dict[str, np.ndarray], vocabulary: str) -> None:
    """Add the rows of the special tokens, whose logits are `_MARGIN` below the characters' mean.

    The head has no bias. But before scale and bias, the output of a LayerNorm sums to 0, so its
    product with `flat` depends on the bias alone. The bias is moved until the product is 1, and
    the rows of the characters lose what that adds to their logits.
    """
    scale, bias = state["transformer.ln_f.weight"], state["transformer.ln_f.bias"]
    if abs(scale).min() < 1e-3 * abs(scale).max():  # the rows below would cancel characters
        raise UserError(
            "a scale of the final LayerNorm is close to 0; export with --nospecial_tokens"
        )
    root = len(scale) ** 0.5  # so that the rows are about as large as others: half precision works
    flat = 1 / (root * scale)
    moved = (1 - flat @ bias) / root * scale
    state["transformer.ln_f.bias"] = bias + moved
    head = state[HEAD] - np.outer(state[HEAD] @ moved, flat)
    low = head.mean(0) - _MARGIN * flat
    state[HEAD] = np.stack([*head, low, low, low])
    embedding = state[EMBEDDING]
    mean = embedding.mean(0)
    # After a newline, a model knows better than after the mean how a text begins.
    start = embedding[vocabulary.index("\n")] if "\n" in vocabulary else mean
    state[EMBEDDING] = np.stack([*embedding, mean, mean, start])


def _json_files(
    lm: LanguageModel, weights_sha256: str, *, special_tokens: bool
) -> dict[str, dict[str, Any]]:
    vocabulary = lm.tokenizer.vocabulary
    if bad := [c for c in vocabulary if "\ud800" <= c <= "\udfff"]:
        raise UserError(f"the vocabulary has a lone surrogate ({bad[0]!r}), which UTF-8 forbids")
    # GPT-2 has biases: those of a model without them are exported as zeros.
    config = without_folders(lm.config).replace({"model.bias": True})
    metadata = RunMetadata(config, vocabulary, lm.text_sha256)
    model = lm.config.model
    tokenizer = tokenizer_json(vocabulary, special_tokens=special_tokens)
    ids = tokenizer["model"]["vocab"]
    roles = {"pad_token": PAD, "bos_token": EOS, "eos_token": EOS} if special_tokens else {}
    role_ids = {f"{role}_id": ids[token] for role, token in roles.items()}
    entry = {"metrics": lm.metrics, "step": lm.step, "weights_sha256": weights_sha256}
    return {
        CONFIG: {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": len(ids),
            "n_positions": model.block_size,
            "n_embd": model.n_embd,
            "n_layer": model.n_layer,
            "n_head": model.n_head,
            "activation_function": ACTIVATIONS[model.activation],
            "layer_norm_epsilon": LAYER_NORM_EPSILON,
            "initializer_range": model.init_stddev,
            "embd_pdrop": model.dropout,
            "resid_pdrop": model.dropout,
            "attn_pdrop": 0.0,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": None,
            **role_ids,
            "dtype": "float32",
            ENTRY: metadata.to_json() | entry,
        },
        _GENERATION: {
            "do_sample": True,
            "temperature": TEMPERATURE,
            "top_k": 0,  # without it, transformers samples from the 50 most probable characters
            **role_ids,
        },
        "tokenizer.json": tokenizer,
        _TOKENIZATION: {
            # Otherwise transformers would take the tokenizer of GPT-2.
            "tokenizer_class": "PreTrainedTokenizerFast",
            # Otherwise it would pass token_type_ids, which GPT-2 adds to the embeddings.
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": model.block_size,
            "padding_side": "left",
            "truncation_side": "left",
            "clean_up_tokenization_spaces": False,
            **({"unk_token": UNK} | roles if roles else {}),
        },
    }


def without_folders(config: Config) -> Config:
    """Return a config whose paths are file names.

    Folders would show strangers the user's disk; theirs could make a command open any file.
    """
    paths = {"data.path": config.data.path, "train.init_from": config.train.init_from}
    return config.replace({name: Path(path).name for name, path in paths.items()})
