"""Memorization: the longest training text that a model reproduces verbatim."""

import numpy as np

from shakegpt_jax.errors import UserError
from shakegpt_jax.inference.language_model import LanguageModel

N_GENERATED = 10_000  # characters to search

_LONGEST_SEARCH = 2**27  # characters of text; it is held in memory and searched many times


def longest_copy(text: str, source: str) -> str:
    """Return the longest substring of `text` that occurs in `source`; the first of several."""
    length, end = 0, 0
    for i in range(1, len(text) + 1):
        if text[i - length - 1 : i] in source:
            length, end = length + 1, i
    return text[end - length : end]


def longest_copies(lm: LanguageModel, train_ids: np.ndarray, val_ids: np.ndarray) -> dict[str, str]:
    """Find the longest copy of the training text in text that a model generates.

    Args:
        lm: the model; generates N_GENERATED characters with the default options.
        train_ids: the text that it was trained on.
        val_ids: the validation text, a baseline for matches by chance.

    Returns:
        `longest_copy`, and `in_validation_text`, the longest copy in as many characters of the
        validation text.

    Raises:
        UserError: if the training text is too long to search.
    """
    if len(train_ids) > _LONGEST_SEARCH:
        raise UserError(
            f"the training text has {len(train_ids):,} characters; --memorization can search at "
            f"most {_LONGEST_SEARCH:,}"
        )
    train_text, val_text = (lm.tokenizer.decode(ids) for ids in (train_ids, val_ids))
    prompt = val_text[0]
    generated = lm.generate(prompt, N_GENERATED)[len(prompt) :]
    return {
        "longest_copy": longest_copy(generated, train_text),
        "in_validation_text": longest_copy(val_text[:N_GENERATED], train_text),
    }
