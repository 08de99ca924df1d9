"""A model as the files of Hugging Face transformers: GPT-2 with a tokenizer of single characters.

Nothing here imports transformers or torch.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from shakegpt_jax.checkpoints.reader import Metrics
from shakegpt_jax.checkpoints.run_folder import RunMetadata
from shakegpt_jax.config import Config
from shakegpt_jax.errors import UserError
from shakegpt_jax.inference import TEMPERATURE
from shakegpt_jax.inference.language_model import LanguageModel
from shakegpt_jax.interop.gpt2_names import gpt2_names
from shakegpt_jax.model.gpt import LAYER_NORM_EPSILON

CONFIG, WEIGHTS = "config.json", "model.safetensors"
RUN_ENTRY = "shakegpt_jax"  # of config.json: what only this package reads

ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu_exact": "gelu"}  # their names there


def parameters(lm: LanguageModel) -> dict[str, np.ndarray]:
    """Return the float32 parameters under their names in GPT-2."""
    params = flatten_dict(lm.params)
    named = {name.name: (params[name.path], name) for name in gpt2_names(lm.config.model.n_layer)}
    assert len(named) == len(params)
    return {
        key: np.ascontiguousarray(np.asarray(param).T if name.transposed else param)
        for key, (param, name) in named.items()
    }


def json_files(
    lm: LanguageModel, step: int | None, metrics: Metrics, weights_sha256: str
) -> dict[str, dict[str, Any]]:
    """Return the contents of the JSON files by name.

    Args:
        lm: the model.
        step: of its checkpoint, if known.
        metrics: validation metrics of the checkpoint; may be empty.
        weights_sha256: of the file with the parameters; tells an import that it has not changed.

    Raises:
        UserError: if a character cannot be written in UTF-8.
    """
    vocabulary = lm.tokenizer.vocabulary
    if bad := [c for c in vocabulary if "\ud800" <= c <= "\udfff"]:
        raise UserError(f"the vocabulary has a lone surrogate ({bad[0]!r}), which UTF-8 forbids")
    entry = _run_entry(lm, step, metrics) | {"weights_sha256": weights_sha256}
    return {
        CONFIG: _config(lm) | {RUN_ENTRY: entry},
        "generation_config.json": {
            "do_sample": True,
            "temperature": TEMPERATURE,
            "top_k": 0,  # without it, transformers samples from the 50 most probable characters
            "max_length": lm.config.model.block_size,
        },
        "tokenizer.json": _tokenizer(vocabulary),
        "tokenizer_config.json": {
            # Otherwise transformers would take the tokenizer of GPT-2.
            "tokenizer_class": "PreTrainedTokenizerFast",
            # Otherwise it would pass token_type_ids, which GPT-2 adds to the embeddings.
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": lm.config.model.block_size,
            "padding_side": "left",
            "truncation_side": "left",
            "clean_up_tokenization_spaces": False,
        },
    }


def to_json(content: dict[str, Any]) -> str:
    """Return the text of a file, in ASCII."""
    return json.dumps(content, indent=2) + "\n"


def _config(lm: LanguageModel) -> dict[str, Any]:
    """Return the config of `transformers.GPT2LMHeadModel`."""
    model = lm.config.model
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": lm.tokenizer.vocab_size,
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
        "dtype": "float32",
    }


def _run_entry(lm: LanguageModel, step: int | None, metrics: Metrics) -> dict[str, Any]:
    """Return what a checkpoint says of its run, and its step."""
    config = without_folders(lm.config)
    metadata = RunMetadata(config, lm.tokenizer.vocabulary, lm.text_sha256)
    return metadata.to_json() | {"metrics": metrics, "step": step}


def without_folders(config: Config) -> Config:
    """Return a config whose paths are names.

    Folders would tell strangers how the user's disk is laid out; those of strangers could make a
    command open any file.
    """
    paths = {"data.path": config.data.path, "train.init_from": config.train.init_from}
    return config.replace({name: Path(path).name for name, path in paths.items()})


def _tokenizer(vocabulary: str) -> dict[str, Any]:
    r"""Return a tokenizer for the `tokenizers` library: each code point is a word.

    `[UNK]` is not in the vocabulary, so that an unknown character raises. `[\s\S]` is any code
    point, where `.` would leave out the newline.
    """
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": r"[\s\S]"},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "WordLevel",
            "vocab": {c: i for i, c in enumerate(vocabulary)},
            "unk_token": "[UNK]",
        },
    }
