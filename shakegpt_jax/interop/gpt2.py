"""GPT-2 as Hugging Face stores it: names of parameters, and tokenizers of single characters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from shakegpt_jax.config import ModelConfig
from shakegpt_jax.errors import UserError
from shakegpt_jax.model.gpt import abstract_params
from shakegpt_jax.model.layers import gpt2_parameters

ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu_exact": "gelu"}  # their names in transformers
SHAPE = ("n_layer", "n_head", "n_embd", "block_size")
EMBEDDING, HEAD = "transformer.wte.weight", "lm_head.weight"
UNK, PAD, EOS = SPECIAL_TOKENS = ("[UNK]", "[PAD]", "[EOS]")
BUFFERS = (".attn.bias", ".attn.masked_bias")  # ends of the names of causal masks


def gpt2_names(config: ModelConfig, params: Any) -> dict[str, tuple[str, ...]]:
    """Map the names in a state dict of GPT-2 to paths in the parameters of `GPT`."""
    names = {}
    for path in gpt2_parameters(config, params, "GPT-2"):
        module, _, parameter = path.replace("block_", "h.").replace("/", ".").rpartition(".")
        name = f"{module}.{'bias' if parameter == 'bias' else 'weight'}"
        names[name if name == HEAD else f"transformer.{name}"] = tuple(path.split("/"))
    return names


def read_params(
    arrays: Mapping[str, np.ndarray],
    config: ModelConfig,
    rows: Mapping[str, int],
    n_row: int,
    source: str | Path,
    *,
    torch_linear: bool = False,
) -> Any:
    """Build the parameters of `GPT` from a state dict of GPT-2, float32 without causal masks.

    `rows` maps characters to their rows among the `n_row` of embedding and head; the result has
    them alone, sorted. With `torch_linear`, matrices are (out, in), not (in, out) as in GPT-2.
    """
    abstract = abstract_params(config, n_row)
    shapes = flatten_dict(abstract)
    names = {name: path for name, path in gpt2_names(config, abstract).items() if path in shapes}
    if different := names.keys() ^ arrays.keys():
        problem = "has an unknown" if different <= arrays.keys() else "lacks"
        name = min(different - arrays.keys() or different)
        raise UserError(f"{source} {problem} {name:.80}, so it does not match its config")
    order = [rows[character] for character in sorted(rows)]
    params = {}
    for name, path in names.items():
        values, expected = arrays[name], shapes[path].shape
        if transposed := name == HEAD or (torch_linear and path[-1] == "kernel"):
            expected = expected[::-1]
        if values.shape != expected:
            right = f"its config needs {expected}"
            raise UserError(f"{source}: {name} has the shape {values.shape}; {right}")
        if not np.isfinite(values).all():
            raise UserError(f"{source}: {name} has values that are not finite")
        if path[0] in ("wte", "lm_head"):  # a row for each character
            values = values[order]
        params[path] = np.ascontiguousarray(values.T if transposed else values)
    return unflatten_dict(params)


# What splits a text into single code points, line breaks too.
_SPLITS = [
    {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    for pattern in ({"Regex": r"[\s\S]"}, {"Regex": "(?m)."}, {"Regex": ""}, {"String": ""})
]
_ALONE = [{"Sequence": {"id": "A", "type_id": 0}}]  # no special token before or after a text
_MODEL = ("merges", "dropout", "byte_fallback", "end_of_word_suffix", "continuing_subword_prefix")
_RIGHT = "its tokens must be single characters and special tokens"


def tokenizer_json(vocabulary: str, *, special_tokens: bool) -> dict[str, Any]:
    r"""Return a tokenizer whose words are single code points.

    Without special tokens, `[UNK]` is not in the vocabulary and an unknown character raises.
    `[\s\S]` is any code point, where `.` would leave out the newline.
    """
    special = SPECIAL_TOKENS if special_tokens else ()
    vocab = {token: i for i, token in enumerate([*vocabulary, *special])}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": vocab[t], "content": t, **flags, "special": True} for t in special]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": _SPLITS[0],
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": UNK},
    }


def read_characters(tokenizer: dict[str, Any], path: Path) -> tuple[dict[str, int], list[str]]:
    """Return the ids of the characters of a tokenizer, and its special tokens."""
    model = tokenizer.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise UserError(f"{path}: it has no model with a vocab; {_RIGHT}")
    splitter, template = tokenizer.get("pre_tokenizer"), tokenizer.get("post_processor")
    kind, added = model.get("type"), tokenizer.get("added_tokens") or []
    accepted = {
        "added_tokens": isinstance(added, list)
        and all(isinstance(t, dict) and isinstance(t.get("content"), str) for t in added),
        "normalizer": not tokenizer.get("normalizer"),
        "pre_tokenizer": splitter in _SPLITS or (splitter is None and kind == "BPE"),
        # transformers 5 writes a template even where it adds no special tokens.
        "post_processor": not template
        or (isinstance(template, dict) and template.get("single") == _ALONE),
        "model.type": kind in ("WordLevel", "BPE"),
    } | {f"model.{name}": not model.get(name) for name in _MODEL}
    values = tokenizer | {f"model.{name}": value for name, value in model.items()}
    if wrong := [name for name, is_right in accepted.items() if not is_right]:
        raise UserError(f"{path}: {wrong[0]} is {values.get(wrong[0])!r:.60}; {_RIGHT}")
    vocab = model["vocab"] | {token["content"]: token.get("id") for token in added}
    special = {model.get("unk_token")} | {t["content"] for t in added if t.get("special") is True}
    # A character that is used as a special token, such as a newline, remains a character.
    ids = {token: i for token, i in vocab.items() if len(token) == 1 or token not in special}
    if bad := [token for token in ids if len(token) != 1]:
        raise UserError(f"{path}: the vocab has the token {min(bad)!r:.60}; {_RIGHT}")
    found = sorted(i for i in vocab.values() if type(i) is int)
    if found != list(range(len(vocab))) or not ids:
        raise UserError(f"{path}: the ids of the vocab are not 0 to {len(vocab) - 1}")
    return ids, sorted(vocab.keys() - ids.keys())
