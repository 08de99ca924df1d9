"""The tokenizer.json of the `tokenizers` library, for tokens that are single characters."""

from pathlib import Path
from typing import Any

from shakegpt_jax.errors import UserError

# What splits a text into single code points, line breaks too.
_EACH = ({"Regex": r"[\s\S]"}, {"Regex": "(?m)."}, {"Regex": ""}, {"String": ""})
_ISOLATED = {"behavior": "Isolated", "invert": False}
_TOKENIZER = ("added_tokens", "normalizer", "pre_tokenizer", "post_processor")
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
        "pre_tokenizer": {"type": "Split", "pattern": _EACH[0], **_ISOLATED},
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"},
    }


def read_characters(tokenizer: dict[str, Any], path: Path) -> str:
    """Read the characters of a tokenizer in the order of their ids.

    Accepts the models WordLevel, after a split into characters, and BPE without merges.

    Raises:
        UserError: naming `path`, if the tokenizer does anything else.
    """
    model = tokenizer.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise UserError(f"{path}: it has no model with a vocab; {_RIGHT}")
    values = {name: tokenizer.get(name) for name in _TOKENIZER}
    values |= {f"model.{name}": model.get(name) for name in ("type", *_MODEL)}
    splitter, kind = values["pre_tokenizer"], values["model.type"]
    accepted = {
        "pre_tokenizer": _splits_each(splitter) or (splitter is None and kind == "BPE"),
        "post_processor": _adds_nothing(values["post_processor"]),
        "model.type": kind in ("WordLevel", "BPE"),
    }
    for name, value in values.items():
        if not accepted.get(name, not value):
            raise UserError(f"{path}: {name} is {value!r:.60}; {_RIGHT}")
    vocab = model["vocab"]
    if bad := [token for token in vocab if len(token) != 1]:
        raise UserError(f"{path}: the vocab has the token {min(bad)!r:.60}; {_RIGHT}")
    by_id = {i: token for token, i in vocab.items() if type(i) is int}
    if sorted(by_id) != list(range(len(vocab))) or not vocab:
        raise UserError(f"{path}: the ids of the vocab are not 0 to {len(vocab) - 1}")
    return "".join(by_id[i] for i in range(len(vocab)))


def _splits_each(pre_tokenizer: Any) -> bool:
    return (
        isinstance(pre_tokenizer, dict)
        and pre_tokenizer.get("type") == "Split"
        and pre_tokenizer.get("pattern") in _EACH
        and _ISOLATED.items() <= ({"invert": False} | pre_tokenizer).items()
    )


def _adds_nothing(processor: Any) -> bool:
    """Accept none, and the template that transformers 5 adds without special tokens."""
    return not processor or (
        isinstance(processor, dict)
        and processor.get("type") == "TemplateProcessing"
        and processor.get("single") == [{"Sequence": {"id": "A", "type_id": 0}}]
    )
