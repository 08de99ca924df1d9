"""A character n-gram of the training text: it drafts what a larger model then verifies.

Axes: R rows of the table, V vocabulary, B rows of a batch, N characters of text.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_ORDER = 4  # characters of context
_MAX_CHARACTERS = 4_000_000  # of text
_MAX_ENTRIES = 2**24  # R x V, of 6 bytes each


class NGram(NamedTuple):
    """An n-gram as an automaton with a row per context that occurs in the text.

    The row of a text is that of its longest suffix of up to 4 characters that occurs.
    """

    log_probs_RxV: jax.Array  # float16, of the next character; row 0 is the empty context
    next_RxV: jax.Array  # int32, the row after that character

    def rows(self, texts: list[np.ndarray]) -> jax.Array:
        """Return the (B,) rows of B texts."""
        rows = [0] * len(texts)
        for b, text in enumerate(texts):
            for character in text[-_ORDER:]:
                rows[b] = int(self.next_RxV[rows[b], character])
        return jnp.array(rows)


def build_ngram(ids: np.ndarray, vocab_size: int) -> NGram:
    """Estimate an n-gram with interpolated Witten-Bell smoothing (Chen and Goodman 1999).

    Args:
        ids: (N,) the text. Only the last 4 million characters count, and large vocabularies get
            fewer characters of context, so that the table takes 100 MB or less.
        vocab_size: V.
    """
    ids = ids[-_MAX_CHARACTERS:].astype(np.int32)
    rows_N = np.zeros_like(ids)  # of the context before each character
    counts_RxV = np.bincount(ids, minlength=vocab_size)[None]  # rows of one order
    probs_RxV = _interpolate(counts_RxV, np.full((1, vocab_size), 1 / vocab_size, np.float32))
    next_RxV = np.zeros((1, vocab_size), np.int32)
    for order in range(1, _ORDER + 1):
        first = len(probs_RxV)
        contexts_R, characters_R = np.nonzero(counts_RxV)
        contexts_R += first - len(counts_RxV)
        n_row = len(contexts_R)
        if (first + n_row) * vocab_size > _MAX_ENTRIES:
            break
        suffixes_R = next_RxV[contexts_R, characters_R]
        next_RxV[contexts_R, characters_R] = np.arange(first, first + n_row)
        next_RxV = np.concatenate([next_RxV, next_RxV[suffixes_R]])
        rows_N = next_RxV[rows_N[:-1], ids[order - 1 : -1]]
        codes_N = (rows_N - first) * vocab_size + ids[order:]
        counts_RxV = np.bincount(codes_N, minlength=n_row * vocab_size).reshape(n_row, vocab_size)
        probs_RxV = np.concatenate([probs_RxV, _interpolate(counts_RxV, probs_RxV[suffixes_R])])
    return NGram(jnp.log(probs_RxV).astype(jnp.float16), jnp.asarray(next_RxV))


def _interpolate(counts_RxV: np.ndarray, shorter_RxV: np.ndarray) -> np.ndarray:
    """Mix counts with the probabilities after the contexts that are one character shorter."""
    distinct_Rx1 = np.maximum((counts_RxV > 0).sum(axis=1, keepdims=True), 1)
    mixed_RxV = counts_RxV + distinct_Rx1 * shorter_RxV
    return (mixed_RxV / mixed_RxV.sum(axis=1, keepdims=True)).astype(np.float32)


def drafting_pays(n_params: int, n_row: int, n_new: int) -> bool:
    """Return whether drafting is faster than one pass per character, as measured on two CPU cores.

    Args:
        n_params: parameters of the model.
        n_row: rows of the batch.
        n_new: characters to generate per row.
    """
    return n_params >= 10_000_000 and n_row <= 8 and n_new >= 64
