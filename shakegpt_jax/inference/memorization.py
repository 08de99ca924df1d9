"""Memorization: the longest training text that a model reproduces verbatim."""

from typing import NamedTuple

import numpy as np

from shakegpt_jax.errors import UserError
from shakegpt_jax.inference.language_model import LanguageModel

N_GENERATED = 10_000  # characters to search

SHORTEST_STRETCH = 20  # characters; shorter ones are common phrases

_LONGEST_SEARCH = 2**27  # characters of text; it is held in memory and searched many times


def longest_copy(text: str, source: str) -> str:
    """Return the longest substring of `text` that occurs in `source`; the first of several."""
    length, end = 0, 0
    for i in range(1, len(text) + 1):
        if text[i - length - 1 : i] in source:
            length, end = length + 1, i
    return text[end - length : end]


class Stretch(NamedTuple):
    """A stretch of text, text[start:end], that stands in another text."""

    start: int
    end: int
    place: int  # where it first stands in the other text


def copied_stretches(text: str, source: str, shortest: int = SHORTEST_STRETCH) -> list[Stretch]:
    """Return the maximal stretches of `text` that occur in `source`, in order.

    Args:
        text: the text to search for copies; its distinct stretches are held in memory.
        source: the text that they may be from.
        shortest: characters of a stretch, 1 or more. Stretches that are part of another stretch
            are left out. Others may overlap.
    """
    n_gram = len(text) - shortest + 1
    grams = {text[i : i + shortest] for i in range(n_gram)}
    windows = (source[i : i + shortest] for i in range(len(source) - shortest + 1))
    found = {gram for gram in windows if gram in grams}
    stretches: list[Stretch] = []
    for start in range(n_gram):
        if text[start : start + shortest] not in found:
            continue
        # The last stretch contains text[start:end] at least if it reaches as far.
        reached = max(start + shortest, stretches[-1].end if stretches else 0)
        end = reached
        if text[reached + 1 - shortest : reached + 1] in found:  # else it cannot go on
            end += _longest_extension(text, source, start, reached)
        if not stretches or end > stretches[-1].end:
            stretches.append(Stretch(start, end, source.find(text[start:end])))
    return stretches


def _longest_extension(text: str, source: str, start: int, end: int) -> int:
    """Return by how much text[start:end], which occurs in `source`, can grow and still occur."""
    low, high = 0, 1
    while end + high <= len(text) and text[start : end + high] in source:
        low, high = high, 2 * high
    high = min(high, len(text) - end + 1)
    while high - low > 1:  # it occurs with `low` more, and not with `high` more
        middle = (low + high) // 2
        if text[start : end + middle] in source:
            low = middle
        else:
            high = middle
    return low


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
    check_searchable(len(train_ids))
    train_text, val_text = (lm.tokenizer.decode(ids) for ids in (train_ids, val_ids))
    prompt = val_text[0]
    generated = lm.generate(prompt, N_GENERATED)[len(prompt) :]
    return {
        "longest_copy": longest_copy(generated, train_text),
        "in_validation_text": longest_copy(val_text[:N_GENERATED], train_text),
    }


def check_searchable(n_character: int) -> None:
    """Raise a UserError if a training text is too long to search for copies."""
    if n_character > _LONGEST_SEARCH:
        raise UserError(
            f"the training text has {n_character:,} characters; at most {_LONGEST_SEARCH:,} can "
            "be searched for copies"
        )
