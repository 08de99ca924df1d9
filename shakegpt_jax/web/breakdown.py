"""Losses by position in the window and by kind of character, and calibration by confidence."""

import unicodedata
from typing import Any

import numpy as np

from shakegpt_jax.inference.evaluation import Selection
from shakegpt_jax.inference.scoring import Predictions

# fmt: off
KINDS = (  # of character
    "lower-case letters", "upper-case letters", "letters without case", "digits", "spaces",
    "newlines", "punctuation and symbols", "others",
)
# fmt: on
_LOWER, _UPPER, _CASELESS, _DIGIT, _SPACE, _NEWLINE, _PUNCTUATION, _OTHER = range(len(KINDS))
# By category of Unicode or its first letter; marks (M) modify the letter before.
_BY_CATEGORY = {"Ll": _LOWER, "Lu": _UPPER, "Lt": _UPPER, "L": _CASELESS, "M": _CASELESS}
_BY_CATEGORY |= {"N": _DIGIT, "Z": _SPACE, "P": _PUNCTUATION, "S": _PUNCTUATION}
_IN_WORDS = "'\N{RIGHT SINGLE QUOTATION MARK}"  # in words, but not letters
_RANKS = ("first letters of words", "second letters", "third letters", "later letters")


def breakdowns(selection: Selection, predictions: Predictions) -> dict[str, Any]:
    """Return losses by position, kind and letter of a word, and the calibration, for JSON."""
    lm, losses, pieces = selection.lm, predictions.losses, selection.pieces
    n_time, vocabulary = lm.config.model.block_size, lm.tokenizer.vocabulary
    positions = np.concatenate(
        [window_positions(len(ids) - 1, n_time, selection.stride) for ids in pieces]
    )
    kinds = character_kinds(vocabulary)[np.concatenate([ids[1:] for ids in pieces])]
    ranks = np.concatenate([letter_ranks(ids, vocabulary)[1:] for ids in pieces])
    letters = ranks > 0
    rank_losses = group_losses(losses[letters], np.minimum(ranks[letters], 4) - 1, len(_RANKS))
    return {
        "positions": group_losses(losses, positions, n_time),
        "kinds": {"names": KINDS} | group_losses(losses, kinds, len(KINDS)),
        "letters": {"names": _RANKS} | rank_losses,
        "calibration": calibrate(predictions.confidences, predictions.correct),
    }


def group_losses(losses: np.ndarray, groups: np.ndarray, n_group: int) -> dict[str, Any]:
    """Return counts, means and standard errors of losses by group; zeros for an empty group."""
    counts = np.bincount(groups, minlength=n_group)
    divisors = np.maximum(counts, 1)
    means = np.bincount(groups, losses, n_group) / divisors
    squares = np.bincount(groups, (losses - means[groups]) ** 2, n_group)
    errors = np.sqrt(squares / np.maximum(counts - 1, 1) / divisors)
    return {"counts": counts.tolist(), "means": means.tolist(), "errors": errors.tolist()}


def window_positions(n_scored: int, n_time: int, stride: int | None) -> np.ndarray:
    """Return the positions in the window from which `character_losses` predicts."""
    i, stride = np.arange(n_scored), stride or n_time
    return np.where(i < n_time, i, n_time - stride + (i - n_time) % stride)


def character_kinds(vocabulary: str) -> np.ndarray:
    """Return the (V,) indices into KINDS of the characters of a vocabulary."""
    categories = map(unicodedata.category, vocabulary)
    kinds = [_BY_CATEGORY.get(each, _BY_CATEGORY.get(each[0], _OTHER)) for each in categories]
    control = {"\n": _NEWLINE, "\t": _SPACE}
    return np.array([control.get(c, kind) for c, kind in zip(vocabulary, kinds, strict=True)])


def letter_ranks(ids: np.ndarray, vocabulary: str) -> np.ndarray:
    """Return the (n,) positions of letters in words, runs of letters and apostrophes, or 0."""
    letters_V = np.isin(character_kinds(vocabulary), (_LOWER, _UPPER, _CASELESS))
    words_V = letters_V | np.isin(list(vocabulary), list(_IN_WORDS))
    letters_before = np.cumsum(letters_V[ids])
    before_word = np.maximum.accumulate(np.where(words_V[ids], 0, letters_before))
    return np.where(letters_V[ids], letters_before - before_word, 0)


def calibrate(confidences: np.ndarray, correct: np.ndarray, n_bin: int = 15) -> dict[str, Any]:
    """Return a reliability diagram and the expected calibration error, as in Guo et al. 2017.

    Bin m of M holds the confidences in ((m - 1) / M, m / M].
    """
    confidences = confidences.astype(np.float64)
    bins = np.clip(np.ceil(confidences * n_bin).astype(int) - 1, 0, n_bin - 1)
    counts = np.bincount(bins, minlength=n_bin)
    sums = (np.bincount(bins, values, n_bin) for values in (confidences, correct))
    mean_confidences, accuracies = (total / np.maximum(counts, 1) for total in sums)
    return {
        "counts": counts.tolist(),
        "confidences": mean_confidences.tolist(),
        "accuracies": accuracies.tolist(),
        "error": float(counts @ np.abs(accuracies - mean_confidences) / len(confidences)),
    }
