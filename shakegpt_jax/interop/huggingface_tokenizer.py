"""The tokenizer.json of the `tokenizers` library, for tokens that are single characters."""

from pathlib import Path
from typing import Any

from shakegpt_jax.errors import UserError

# What splits a text into single code points, line breaks too.
_SPLITS = [
    {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    for pattern in ({"Regex": r"[\s\S]"}, {"Regex": "(?m)."}, {"Regex": ""}, {"String": ""})
]
_ALONE = [{"Sequence": {"id": "A", "type_id": 0}}]  # no special token before or after a text
_MODEL = ("merges", "dropout", "byte_fallback", "end_of_word_suffix", "continuing_subword_prefix")
_RIGHT = "its tokens must be single characters, without special tokens"


def tokenizer_json(vocabulary: str) -> dict[str, Any]:
    r"""Return a tokenizer whose words are single code points.

    `[UNK]` is not in the vocabulary, so that an unknown character raises. `[\s\S]` is any code
    point, where `.` would leave out the newline.
    """
    vocab = {c: i for i, c in enumerate(vocabulary)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": _SPLITS[0],
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"},
    }


def read_characters(tokenizer: dict[str, Any], path: Path) -> str:
    """Read the characters of a tokenizer in the order of their ids.

    Refuses everything but WordLevel after a split into characters, and BPE without merges.
    """
    model = tokenizer.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise UserError(f"{path}: it has no model with a vocab; {_RIGHT}")
    splitter, template = tokenizer.get("pre_tokenizer"), tokenizer.get("post_processor")
    kind, vocab = model.get("type"), model["vocab"]
    accepted = {
        "added_tokens": not tokenizer.get("added_tokens"),
        "normalizer": not tokenizer.get("normalizer"),
        "pre_tokenizer": splitter in _SPLITS or (splitter is None and kind == "BPE"),
        # transformers 5 writes a template even where there are no special tokens.
        "post_processor": not template
        or (isinstance(template, dict) and template.get("single") == _ALONE),
        "model.type": kind in ("WordLevel", "BPE"),
    } | {f"model.{name}": not model.get(name) for name in _MODEL}
    values = tokenizer | {f"model.{name}": value for name, value in model.items()}
    if wrong := [name for name, is_right in accepted.items() if not is_right]:
        raise UserError(f"{path}: {wrong[0]} is {values.get(wrong[0])!r:.60}; {_RIGHT}")
    if bad := [token for token in vocab if len(token) != 1]:
        raise UserError(f"{path}: the vocab has the token {min(bad)!r:.60}; {_RIGHT}")
    by_id = {i: token for token, i in vocab.items() if type(i) is int}
    if sorted(by_id) != list(range(len(vocab))) or not vocab:
        raise UserError(f"{path}: the ids of the vocab are not 0 to {len(vocab) - 1}")
    return "".join(by_id[i] for i in range(len(vocab)))
