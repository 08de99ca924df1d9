"""A character n-gram of the training text: it drafts what a larger model then verifies.

Axes: G contexts of the n-gram, V vocabulary, B rows of a batch, N characters of text.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_ORDER = 4  # characters of context
_MAX_CHARACTERS = 4_000_000  # of text
_MAX_ENTRIES = 2**24  # G x V, of 6 bytes each


class NGram(NamedTuple):
    """An automaton of the contexts in a text: the longest suffixes of up to 4 characters."""

    log_probs_GxV: jax.Array  # float16, of the next character; context 0 is empty
    next_GxV: jax.Array  # int32, the context after that character

    def contexts(self, texts: list[np.ndarray]) -> jax.Array:
        """Return the (B,) int32 contexts of B texts."""
        next_GxV = np.asarray(self.next_GxV)
        contexts = [0] * len(texts)
        for b, text in enumerate(texts):
            for character in text[-_ORDER:]:
                contexts[b] = next_GxV[contexts[b], character]
        return jnp.array(contexts, jnp.int32)


def build_ngram(ids: np.ndarray, vocab_size: int) -> NGram:
    """Estimate an n-gram with interpolated Witten-Bell smoothing (Chen and Goodman 1999).

    Of the (N,) ids only the last 4 million count, and large vocabularies get fewer characters of
    context, so that the result takes 100 MB or less.
    """
    ids = ids[-_MAX_CHARACTERS:].astype(np.int32)
    contexts_N = np.zeros_like(ids)  # context before each character
    counts_GxV = np.bincount(ids, minlength=vocab_size)[None]  # of one order
    probs_GxV = _interpolate(counts_GxV, np.full((1, vocab_size), 1 / vocab_size, np.float32))
    next_GxV = np.zeros((1, vocab_size), np.int32)
    for order in range(1, _ORDER + 1):
        first = len(probs_GxV)
        contexts_G, characters_G = np.nonzero(counts_GxV)
        contexts_G += first - len(counts_GxV)
        n_context = len(contexts_G)
        if (first + n_context) * vocab_size > _MAX_ENTRIES:
            break
        suffixes_G = next_GxV[contexts_G, characters_G]
        next_GxV[contexts_G, characters_G] = np.arange(first, first + n_context)
        next_GxV = np.concatenate([next_GxV, next_GxV[suffixes_G]])
        contexts_N = next_GxV[contexts_N[:-1], ids[order - 1 : -1]]
        codes_N = (contexts_N - first) * vocab_size + ids[order:]
        counts_GxV = np.bincount(codes_N, minlength=n_context * vocab_size).reshape(
            n_context, vocab_size
        )
        probs_GxV = np.concatenate([probs_GxV, _interpolate(counts_GxV, probs_GxV[suffixes_G])])
    return NGram(jnp.log(probs_GxV).astype(jnp.float16), jnp.asarray(next_GxV))


def _interpolate(counts_GxV: np.ndarray, shorter_GxV: np.ndarray) -> np.ndarray:
    """Mix counts with the probabilities after the contexts that are one character shorter."""
    distinct_Gx1 = np.maximum((counts_GxV > 0).sum(axis=1, keepdims=True), 1)
    mixed_GxV = counts_GxV + distinct_Gx1 * shorter_GxV
    return (mixed_GxV / mixed_GxV.sum(axis=1, keepdims=True)).astype(np.float32)


def drafting_pays(n_params: int, n_row: int, n_new: int, window_stride: int) -> bool:
    """Return whether drafting is faster than one pass per character."""
    # Measured on two CPU cores (docs/results.md), where drafting saves about 1e-10 s per parameter
    # and character and takes 0.5 s to read the text and to build the n-gram.
    large = n_params >= 10_000_000 and n_params * n_new >= 5e9
    return large and n_row <= 8 and window_stride >= 16
