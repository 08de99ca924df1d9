"""Losses by position in the window and by kind of character, and calibration by confidence."""

import unicodedata
from typing import NamedTuple

import numpy as np

# Kinds of character, and what they are called in the report.
KINDS = (
    "lower-case letters",
    "upper-case letters",
    "letters without case",
    "digits",
    "spaces",
    "newlines",
    "punctuation and symbols",
    "others",
)
_LOWER, _UPPER, _CASELESS, _DIGIT, _SPACE, _NEWLINE, _PUNCTUATION, _OTHER = range(len(KINDS))
_BY_CATEGORY = {"Ll": _LOWER, "Lu": _UPPER, "Lt": _UPPER}  # the others by their first letter
_BY_CLASS = {
    "L": _CASELESS,
    "M": _CASELESS,  # marks, which modify the letter before
    "N": _DIGIT,
    "Z": _SPACE,
    "P": _PUNCTUATION,
    "S": _PUNCTUATION,
}
_IN_WORDS = "'\N{RIGHT SINGLE QUOTATION MARK}"  # parts of words that are no letters

N_BIN = 15  # of the reliability diagram, as in Guo et al. 2017


class Groups(NamedTuple):
    """Losses of G groups of characters, in nats. Those of an empty group are 0."""

    counts: np.ndarray  # (G,)
    means: np.ndarray  # (G,)
    errors: np.ndarray  # (G,) standard errors of the means, treating characters as independent


class Calibration(NamedTuple):
    """Calibration: accuracy of the most probable character by its probability, in M equal bins.

    The reliability diagram and the error are those of Guo et al. 2017, "On Calibration of Modern
    Neural Networks".
    """

    counts: np.ndarray  # (M,) characters
    confidences: np.ndarray  # (M,) mean probability of the most probable character
    accuracies: np.ndarray  # (M,) how often it is right
    error: float  # expected calibration error: mean of |accuracy - confidence| over characters


def group_losses(losses: np.ndarray, groups: np.ndarray, n_group: int) -> Groups:
    """Summarize (n,) losses by their (n,) groups in [0, n_group). Sums are taken in float64."""
    counts = np.bincount(groups, minlength=n_group)
    divisors = np.maximum(counts, 1)
    means = np.bincount(groups, losses, n_group) / divisors
    variances = np.bincount(groups, (losses - means[groups]) ** 2, n_group) / divisors
    return Groups(counts, means, np.sqrt(variances / divisors))


def window_positions(n_scored: int, n_time: int, stride: int | None) -> np.ndarray:
    """Return the (n_scored,) positions in the window from which characters are predicted.

    Args:
        n_scored: characters of the text but the first.
        n_time: characters per window.
        stride: see `character_losses`.
    """
    stride = n_time if stride is None else stride
    i = np.arange(n_scored)
    return np.where(i < n_time, i, n_time - stride + (i - n_time) % stride)


def character_kinds(vocabulary: str) -> np.ndarray:
    """Return the (V,) indices into KINDS of the characters of a vocabulary."""
    return np.array([_kind(character) for character in vocabulary])


def _kind(character: str) -> int:
    if character in "\n\t":
        return _NEWLINE if character == "\n" else _SPACE
    category = unicodedata.category(character)
    return _BY_CATEGORY.get(category, _BY_CLASS.get(category[0], _OTHER))


def letter_ranks(ids: np.ndarray, vocabulary: str) -> np.ndarray:
    """Return for each letter the how manieth of its word it is, from 1, and 0 for other characters.

    A word is letters, with apostrophes among them or not.

    Args:
        ids: (n,) the text.
        vocabulary: the V characters that the ids stand for.

    Returns:
        (n,) integers.
    """
    letters_V = np.isin(character_kinds(vocabulary), (_LOWER, _UPPER, _CASELESS))
    words_V = letters_V | np.isin(list(vocabulary), list(_IN_WORDS))
    letters_before = np.cumsum(letters_V[ids])
    before_word = np.maximum.accumulate(np.where(words_V[ids], 0, letters_before))
    return np.where(letters_V[ids], letters_before - before_word, 0)


def calibrate(confidences: np.ndarray, correct: np.ndarray, n_bin: int = N_BIN) -> Calibration:
    """Compare (n,) confidences with whether each of the (n,) predictions was correct.

    Bin m of M holds the confidences in ((m - 1) / M, m / M].
    """
    confidences = confidences.astype(np.float64)
    bins = np.clip(np.ceil(confidences * n_bin).astype(int) - 1, 0, n_bin - 1)
    counts = np.bincount(bins, minlength=n_bin)
    sums = (np.bincount(bins, values, n_bin) for values in (confidences, correct))
    mean_confidences, accuracies = (total / np.maximum(counts, 1) for total in sums)
    error = float(counts @ np.abs(accuracies - mean_confidences) / len(confidences))
    return Calibration(counts, mean_confidences, accuracies, error)
