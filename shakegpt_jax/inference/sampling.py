"""Sampling of one character: temperature, top-k and top-p, reproducible noise; stop strings.

Axes: B rows, T characters, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Sampling(NamedTuple):
    """Sampling options, one for all rows or (B,) arrays of one each.

    Numbers are traced: only changing one to or from None recompiles. A row of an array is not
    filtered if its `top_k` is V or its `top_p` is infinite.
    """

    temperature: float | np.ndarray = 1.0  # divides the logits; 0: the most probable character
    top_k: int | np.ndarray | None = None  # sample from the k most probable characters; None: all
    top_p: float | np.ndarray | None = None  # from the smallest set with probability p; None: all


def sample_token(noise_BxV: jax.Array, logits_BxV: jax.Array, sampling: Sampling) -> jax.Array:
    """Sample one character per row: temperature, then top-k, then top-p, then Gumbel-max.

    B may be any number of axes.

    Args:
        noise_BxV: independent standard Gumbel noise; unused if the temperature is 0.
        logits_BxV: float32; -inf is never sampled.
        sampling: options; top-p (Holtzman et al. 2020) renormalizes after top-k.

    Returns:
        (B,) int32 ids.
    """
    sampling = jax.tree.map(_by_row, sampling)
    greedy = sampling.temperature == 0
    # With a maximum of 0, dividing by a small temperature cannot overflow.
    logits_BxV = logits_BxV - logits_BxV.max(axis=-1, keepdims=True)
    logits_BxV = logits_BxV / jnp.where(greedy, 1.0, sampling.temperature)
    if sampling.top_k is not None or sampling.top_p is not None:
        # Sorting takes long for large batches.
        used = _any_filtered(sampling, logits_BxV.shape[-1])
        logits_BxV = jax.lax.cond(used, _apply_filters, lambda x, _: x, logits_BxV, sampling)
    noisy_BxV = logits_BxV + jnp.where(greedy, 0.0, noise_BxV)
    return jnp.argmax(noisy_BxV, axis=-1).astype(jnp.int32)


def _any_filtered(sampling: Sampling, vocab_size: int) -> jax.Array:
    """Return whether the top-k or the top-p of any row excludes characters."""
    top_k = vocab_size if sampling.top_k is None else sampling.top_k
    top_p = jnp.inf if sampling.top_p is None else sampling.top_p
    return jnp.any(top_k < vocab_size) | jnp.any(top_p < jnp.inf)


def _apply_filters(logits_BxV: jax.Array, sampling: Sampling) -> jax.Array:
    """Set the logits of characters outside the top k, and then outside the top p, to -inf."""
    order_BxV = jnp.argsort(-logits_BxV, axis=-1)
    rank_BxV = jnp.argsort(order_BxV, axis=-1)
    if sampling.top_k is not None:
        logits_BxV = jnp.where(rank_BxV < sampling.top_k, logits_BxV, -jnp.inf)
    if sampling.top_p is not None:
        probs_BxV = jnp.take_along_axis(jax.nn.softmax(logits_BxV), order_BxV, axis=-1)
        before_BxV = jnp.cumsum(probs_BxV, axis=-1) - probs_BxV
        keep_BxV = jnp.take_along_axis(before_BxV < sampling.top_p, rank_BxV, axis=-1)
        logits_BxV = jnp.where(keep_BxV, logits_BxV, -jnp.inf)
    return logits_BxV


def _by_row(option: jax.Array | float) -> jax.Array:
    """Return an option as an array that broadcasts with (B, V)."""
    option = jnp.asarray(option)
    return option[:, None] if option.ndim else option


def gumbel_noise(keys_B: jax.Array, indices_BxT: jax.Array, vocab_size: int) -> jax.Array:
    """Draw the noise of characters by their index in the continuation, each row from its key.

    Returns:
        (B, T, V) standard Gumbel noise.
    """

    def draw(key: jax.Array, index: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(key, index), (vocab_size,))

    return jax.vmap(jax.vmap(draw, (None, 0)))(keys_B, indices_BxT)


def truncate_at_stops(
    chunks: Iterable[list[str]], stops: Sequence[str], count: int
) -> Iterator[list[str]]:
    """Truncate each text of a batch at its first stop string; end when all are truncated.

    Args:
        chunks: one new piece of text per row.
        stops: non-empty stop strings.
        count: number of rows.

    Yields:
        One piece per row, without stop strings and what follows them.
    """
    filters = [StopFilter(stops) for _ in range(count)]
    for chunk in chunks:
        yield [each.feed(piece) for each, piece in zip(filters, chunk, strict=True)]
        if all(each.stopped for each in filters):
            return
    yield [each.flush() for each in filters]


class StopFilter:
    """Passes generated text on up to the first stop string.

    Text that may be the beginning of a stop string is held back until the next piece decides.
    """

    def __init__(self, stops: Sequence[str]):
        """Filter one text; `stops` are non-empty."""
        self._stops = stops
        self._held = ""
        self.stopped = False

    def feed(self, piece: str) -> str:
        """Add a piece of text and return what can be passed on."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        n_held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def flush(self) -> str:
        """Return the text held back, once nothing more is to come."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
