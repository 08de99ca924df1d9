"""The characters of a tokenizer.json, if each of its tokens is one character.

The file is that of the `tokenizers` library.
"""

from pathlib import Path
from typing import Any

from shakegpt_jax.errors import UserError
from shakegpt_jax.interop.stored_array import read_json

# What splits a text into single code points, line breaks too.
_EACH = ({"Regex": r"[\s\S]"}, {"Regex": "(?m)."}, {"Regex": ""}, {"String": ""})
_RIGHT = "its tokens must be single characters, without special tokens"


def read_characters(path: Path) -> str:
    """Read the characters of a tokenizer in the order of their ids.

    Accepts the models WordLevel, after a split into characters, and BPE without merges.

    Raises:
        UserError: if the file cannot be read, or the tokenizer does anything else.
    """
    tokenizer = read_json(path)
    model = tokenizer.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise UserError(f"{path}: it has no model with a vocab; {_RIGHT}")
    for field in ("added_tokens", "normalizer", "post_processor"):
        if tokenizer.get(field) and not _adds_nothing(tokenizer[field]):
            raise UserError(f"{path}: {field} is {tokenizer[field]!r:.60}; {_RIGHT}")
    pre_tokenizer = tokenizer.get("pre_tokenizer")
    if not (_splits_each(pre_tokenizer) or (pre_tokenizer is None and model.get("type") == "BPE")):
        raise UserError(f"{path}: pre_tokenizer is {pre_tokenizer!r:.60}; {_RIGHT}")
    if model.get("type") not in ("WordLevel", "BPE"):
        raise UserError(f"{path}: model.type is {model.get('type')!r:.60}; {_RIGHT}")
    for field in ("merges", "dropout", "byte_fallback", "end_of_word_suffix"):
        if model.get(field):
            raise UserError(f"{path}: model.{field} is {model[field]!r:.60}; {_RIGHT}")
    if model.get("continuing_subword_prefix"):
        raise UserError(f"{path}: model has a continuing_subword_prefix; {_RIGHT}")
    by_id = {i: token for token, i in model["vocab"].items() if type(i) is int}
    if bad := [token for token in model["vocab"] if len(token) != 1]:
        raise UserError(f"{path}: the vocab has the token {min(bad)!r:.60}; {_RIGHT}")
    if sorted(by_id) != list(range(len(model["vocab"]))) or not by_id:
        raise UserError(f"{path}: the ids of the vocab are not 0 to {len(model['vocab']) - 1}")
    return "".join(by_id[i] for i in range(len(by_id)))


def _splits_each(pre_tokenizer: Any) -> bool:
    return (
        isinstance(pre_tokenizer, dict)
        and pre_tokenizer.get("type") == "Split"
        and pre_tokenizer.get("pattern") in _EACH
        and pre_tokenizer.get("behavior") == "Isolated"
        and not pre_tokenizer.get("invert")
    )


def _adds_nothing(processor: Any) -> bool:
    """Recognize the template that transformers 5 adds where there are no special tokens."""
    return (
        isinstance(processor, dict)
        and processor.get("type") == "TemplateProcessing"
        and processor.get("single") == [{"Sequence": {"id": "A", "type_id": 0}}]
    )
