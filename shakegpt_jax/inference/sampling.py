"""Sampling of one character: temperature, top-k, top-p, min-p, reproducible noise; stop strings.

Axes: B rows, T characters, V vocabulary.
"""

import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Self, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from shakegpt_jax.errors import UserError

_MAX_TEMPERATURE = 1e6  # above, sampling is nearly uniform


class Options(TypedDict, total=False):
    """Options of `LanguageModel.stream` besides the prompt and the number of characters."""

    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    seed: int | Sequence[int]
    stop: str | Sequence[str]
    window_stride: int | None
    draft: bool | None


class Sampling(NamedTuple):
    """Sampling options, one for all rows or (B,) arrays of one each.

    Numbers are traced: only changing one to or from None recompiles. A row of an array is not
    filtered if its `top_k` is V, its `top_p` 1 and its `min_p` 0.
    """

    temperature: float | np.ndarray = 1.0  # divides the logits; 0: the most probable character
    top_k: int | np.ndarray | None = None  # sample from the k most probable characters; None: all
    top_p: float | np.ndarray | None = None  # from the smallest set with probability p; None: all
    min_p: float | np.ndarray | None = None  # with at least p times the highest probability

    @classmethod
    def of(cls, vocab_size: int, temperature: Any, top_k: Any, top_p: Any, min_p: Any) -> Self:
        """Check the options of a user. A `UserError` starts with the name of the option."""
        right = f"a number from 0 to {_MAX_TEMPERATURE}"
        return cls(
            as_number("temperature", temperature, 0, _MAX_TEMPERATURE, right),
            None if top_k is None else min(as_integer("top_k", top_k, 1), vocab_size),
            None if top_p in (None, 1) else as_number("top_p", top_p, 1e-30, 1, "in (0, 1]"),
            None if min_p in (None, 0) else as_number("min_p", min_p, 0, 1, "in [0, 1]"),
        )

    @classmethod
    def stack(cls, rows: Sequence[Self | None], vocab_size: int) -> Self:
        """Return the options of B rows as arrays; None is an unused row, which costs nothing."""
        off = cls(0.0, vocab_size, 1.0, 0.0)
        values = [
            [default if row is None or row[i] is None else row[i] for row in rows]
            for i, default in enumerate(off)
        ]
        return cls(*map(np.asarray, values, (np.float32, np.int32, np.float32, np.float32)))


def sample_token(noise_BxV: jax.Array, logits_BxV: jax.Array, sampling: Sampling) -> jax.Array:
    """Sample one int32 id per row: temperature, top-k, top-p, min-p, and then Gumbel-max.

    B may be any number of axes. Top-p (Holtzman et al. 2020) renormalizes after top-k; min-p
    (Nguyen et al. 2024) depends on ratios alone. The noise is standard Gumbel noise; a logit of
    -inf is never sampled. If the largest logit is not finite, the id is -1.
    """
    sampling = jax.tree.map(_by_row, sampling)
    greedy = sampling.temperature == 0
    # With a maximum of 0, dividing by a small temperature cannot overflow.
    highest_Bx1 = logits_BxV.max(axis=-1, keepdims=True)
    logits_BxV = logits_BxV - highest_Bx1
    logits_BxV = logits_BxV / jnp.where(greedy, 1.0, sampling.temperature)
    if sampling.top_k is not None or sampling.top_p is not None:
        # Sorting takes long for large batches.
        top_k = logits_BxV.shape[-1] if sampling.top_k is None else sampling.top_k
        top_p = 1.0 if sampling.top_p is None else sampling.top_p
        used = jnp.any((top_k < logits_BxV.shape[-1]) | (top_p < 1))
        logits_BxV = jax.lax.cond(used, _apply_filters, lambda x, _: x, logits_BxV, sampling)
    if sampling.min_p is not None:
        logits_BxV = jnp.where(logits_BxV >= jnp.log(sampling.min_p), logits_BxV, -jnp.inf)
    noisy_BxV = logits_BxV + jnp.where(greedy, 0.0, noise_BxV)
    ids_B = jnp.argmax(noisy_BxV, axis=-1).astype(jnp.int32)
    return jnp.where(jnp.isfinite(highest_Bx1[..., 0]), ids_B, -1)


def _apply_filters(logits_BxV: jax.Array, sampling: Sampling) -> jax.Array:
    """Set the logits of characters outside the top k, and then outside the top p, to -inf."""
    order_BxV = jnp.argsort(-logits_BxV, axis=-1)
    rank_BxV = jnp.argsort(order_BxV, axis=-1)
    if sampling.top_k is not None:
        logits_BxV = jnp.where(rank_BxV < sampling.top_k, logits_BxV, -jnp.inf)
    if sampling.top_p is not None:
        probs_BxV = jnp.take_along_axis(jax.nn.softmax(logits_BxV), order_BxV, axis=-1)
        before_BxV = jnp.cumsum(probs_BxV, axis=-1) - probs_BxV
        top_p = jnp.where(sampling.top_p < 1, sampling.top_p, jnp.inf)  # sums may round up to 1
        keep_BxV = jnp.take_along_axis(before_BxV < top_p, rank_BxV, axis=-1)
        logits_BxV = jnp.where(keep_BxV, logits_BxV, -jnp.inf)
    return logits_BxV


def _by_row(option: jax.Array | float) -> jax.Array:
    option = jnp.asarray(option, jnp.float32)
    return option[:, None] if option.ndim else option


def gumbel_noise(keys_B: jax.Array, indices_BxT: jax.Array, vocab_size: int) -> jax.Array:
    """Draw the (B, T, V) noise of characters by their index in the continuation of each row."""

    def draw(key: jax.Array, index: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(key, index), (vocab_size,), jnp.float32)

    return jax.vmap(jax.vmap(draw, (None, 0)))(keys_B, indices_BxT)


def truncate_at_stops(
    chunks: Iterable[list[str]], stops: Sequence[str], count: int
) -> Iterator[list[str]]:
    """Truncate each text of a batch as `StopFilter` does, and end when all are truncated."""
    filters = [StopFilter(stops) for _ in range(count)]
    for chunk in chunks:
        yield [each.feed(piece) for each, piece in zip(filters, chunk, strict=True)]
        if all(each.stopped for each in filters):
            return
    yield [each.flush() for each in filters]


class StopFilter:
    """Passes generated text on up to the stop string that is complete first.

    If several are complete at the same character, the longest counts. Text that may be the
    beginning of a stop string is held back, so the result does not depend on the pieces.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops = stops
        self._held = ""
        self.stopped = False

    def feed(self, piece: str) -> str:
        """Add a piece of text and return what can be passed on."""
        if self.stopped:
            return ""
        text = self._held + piece
        ends = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)[1]]
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


def require(holds: bool, name: str, value: object, right: str) -> None:
    """Raise a `UserError` unless a condition holds; `right` completes "it must be ..."."""
    if not holds:
        raise UserError(f"{name} is {value!r}; it must be {right}")


def as_integer(name: str, value: Any, least: int, most: float = math.inf) -> int:
    """Check an integer of Python, NumPy or JAX, not a boolean, and its range."""
    right = f"from {least} to {most}" if most < math.inf else f"{least} or more"
    try:
        number = operator.index(value)
        is_integer = not isinstance(value, bool)
    except TypeError:
        is_integer = False
    require(is_integer, name, value, f"a whole number, {right}")
    require(least <= number <= most, name, number, right)
    return number


def as_number(name: str, value: Any, least: float, most: float, right: str) -> float:
    """Check a number of Python, NumPy or JAX, not a boolean; `right` says what is accepted."""
    try:
        number = float(math.nan if isinstance(value, bool | str | bytes) else value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    require(least <= number <= most, name, value, right)
    return number


def as_seeds(seed: Any, count: int) -> list[int]:
    """Return one seed per prompt, from one seed for all or a sequence of them."""
    seeds = [*seed] if np.ndim(seed) == 1 else [seed] * count
    if len(seeds) != count:
        raise UserError(f"seed has {len(seeds)} values; give one, or one per prompt ({count})")
    return [as_integer("seed", each, 0, 2**32 - 1) for each in seeds]


def as_texts(name: str, value: Any) -> list[str]:
    """Check that a value is a sequence of one non-empty text or more."""
    is_sequence = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    are_texts = is_sequence and all(isinstance(text, str) for text in value)
    require(are_texts, name, value, "a list of texts")
    require(len(value) > 0, name, value, "one text or more")
    require(all(value), name, "", "one character or more")
    return list(value)
