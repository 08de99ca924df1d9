"""Text generation: a jitted prefill, then a jitted `lax.scan` of cached decode steps.

The text of a row depends only on its own prompt, seed and options (up to rounding), not on the
other rows of the batch or on the chunk length.

Axes: B rows, T characters, S cache slots (block_size), V vocabulary.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from shakegpt_jax.model.gpt import GPT
from shakegpt_jax.model.kv_cache import KVCache, init_cache
from shakegpt_jax.parallel.dispatch import one_ahead

# Characters per dispatch, and per streamed piece. Small models (fewer parameters than _SMALL_MODEL)
# use longer chunks: dispatch overhead would otherwise take a third of their time.
_CHUNK, _SMALL_MODEL_CHUNK, _SMALL_MODEL = 16, 32, 10_000_000


class Sampling(NamedTuple):
    """Sampling options. Numbers are traced: only changing one to or from None recompiles."""

    temperature: float = 1.0  # divides the logits; 0: the most probable character
    top_k: int | None = None  # sample from the k most probable characters; None: all
    top_p: float | None = None  # sample from the smallest set with probability p; None: all


class SamplerState(NamedTuple):
    """Decoding state, carried from one `decode` to the next."""

    cache: KVCache
    last_B: jax.Array  # (B,) int32, latest character, not in the cache yet
    keys_B: jax.Array  # (B,) one random key per row
    n_generated: jax.Array  # () int32


def sample_token(noise_BxV: jax.Array, logits_BxV: jax.Array, sampling: Sampling) -> jax.Array:
    """Sample one character per row: temperature, then top-k, then top-p, then Gumbel-max.

    Args:
        noise_BxV: independent standard Gumbel noise; unused if the temperature is 0.
        logits_BxV: float32; -inf is never sampled.
        sampling: options; top-p (Holtzman et al. 2020) renormalizes after top-k.

    Returns:
        (B,) int32 ids.
    """
    greedy = jnp.asarray(sampling.temperature) == 0
    # With a maximum of 0, dividing by a small temperature cannot overflow.
    logits_BxV = logits_BxV - logits_BxV.max(axis=-1, keepdims=True)
    logits_BxV = logits_BxV / jnp.where(greedy, 1.0, sampling.temperature)
    if sampling.top_k is not None or sampling.top_p is not None:
        order_BxV = jnp.argsort(-logits_BxV, axis=-1)
        rank_BxV = jnp.argsort(order_BxV, axis=-1)
        if sampling.top_k is not None:
            logits_BxV = jnp.where(rank_BxV < sampling.top_k, logits_BxV, -jnp.inf)
        if sampling.top_p is not None:
            probs_BxV = jnp.take_along_axis(jax.nn.softmax(logits_BxV), order_BxV, axis=-1)
            before_BxV = jnp.cumsum(probs_BxV, axis=-1) - probs_BxV
            keep_BxV = jnp.take_along_axis(before_BxV < sampling.top_p, rank_BxV, axis=-1)
            logits_BxV = jnp.where(keep_BxV, logits_BxV, -jnp.inf)
    noisy_BxV = logits_BxV + jnp.where(greedy, 0.0, noise_BxV)
    return jnp.argmax(noisy_BxV, axis=-1).astype(jnp.int32)


def context_length(length: int, block_size: int, window_stride: int) -> int:
    """Return how many of the last characters of a text are context for the next one.

    A text of up to block_size characters is used whole. A longer one keeps its last `block_size -
    window_stride` characters and fills the window again, since learned positions do not allow the
    cache to slide. The result depends on the length of the text alone.
    """
    if length <= block_size:
        return length
    return block_size - window_stride + 1 + (length - block_size - 1) % window_stride


def generate_ids(
    model: GPT,
    params: Any,
    prompts: Sequence[np.ndarray],
    seeds: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling,
    window_stride: int,
) -> Iterator[np.ndarray]:
    """Continue each prompt, all in one batch.

    Args:
        model: a `GPT`, or anything with its `extend` and `config`.
        params: its parameters.
        prompts: B arrays of ids, each of length 1 or more.
        seeds: B seeds, one per row.
        max_new_tokens: characters to generate per row.
        sampling: sampling options.
        window_stride: characters to drop when the window is full, in [1, block_size]. 1 is
            exact but prefills the window again for every character; larger is faster.

    Yields:
        (B, n) int32 new ids as soon as they are generated; the n add up to max_new_tokens.
    """
    n_slot = model.config.block_size
    n_row = len(prompts)
    # A power of two, so that few batch sizes are compiled; the last prompt fills the other rows.
    rows = [min(row, n_row - 1) for row in range(1 << (n_row - 1).bit_length())]
    seeds_B = np.array([seeds[row] for row in rows], np.uint32)
    tails = [np.asarray(prompts[row], np.int32)[-n_slot:] for row in rows]
    lengths = np.array([len(prompts[row]) for row in rows])
    n_weight = sum(p.size for p in jax.tree.leaves(params))
    n_chunk = _SMALL_MODEL_CHUNK if n_weight < _SMALL_MODEL else _CHUNK
    # With a short stride, the rest of a longer chunk would be discarded every time.
    n_chunk = min(n_chunk, 1 << max(0, window_stride - 2).bit_length())
    count = 0
    while count < max_new_tokens:
        context_lengths_B = np.array([context_length(n, n_slot, window_stride) for n in lengths])
        # A power of two, so that few lengths are compiled.
        n_time = min(n_slot, max(_CHUNK, 1 << (int(context_lengths_B.max()) - 1).bit_length()))
        window_BxT = np.zeros((len(tails), n_time), np.int32)
        for row, tail, n_context in zip(window_BxT, tails, context_lengths_B, strict=True):
            row[:n_context] = tail[-n_context:]
        # The last character of a full window still predicts one more.
        room = min(n_slot - int(context_lengths_B.max()) + 1, max_new_tokens - count)
        state, first_Bx1 = prefill(
            model, params, window_BxT, context_lengths_B, seeds_B, count, sampling
        )
        chunks = _decode_chunks(model, params, state, sampling, room - 1, n_chunk)
        left = room
        for ids_BxT in one_ahead(itertools.chain([first_Bx1], chunks)):
            new_BxT = np.asarray(ids_BxT)[:, :left]
            left -= new_BxT.shape[1]
            tails = [
                np.append(tail, new)[-n_slot:] for tail, new in zip(tails, new_BxT, strict=True)
            ]
            yield new_BxT[:n_row]
        lengths += room
        count += room


def _decode_chunks(
    model: GPT, params: Any, state: SamplerState, sampling: Sampling, n_new: int, n_chunk: int
) -> Iterator[jax.Array]:
    """Dispatch chunks until they add up to `n_new` characters or more."""
    for _ in range(0, n_new, n_chunk):
        state, ids_BxT = decode(model, params, state, sampling, n_chunk)
        yield ids_BxT


@functools.partial(jax.jit, static_argnames="model")
def prefill(
    model: GPT,
    params: Any,
    window_BxT: jax.Array,
    context_lengths_B: jax.Array,
    seeds_B: jax.Array,
    count: jax.Array,
    sampling: Sampling,
) -> tuple[SamplerState, jax.Array]:
    """Process the context of each row in one pass and sample one character.

    Args:
        model: see `generate_ids`.
        params: its parameters.
        window_BxT: ids, left-aligned context of each row, then padding.
        context_lengths_B: number of context characters in each row, at least 1.
        seeds_B: uint32, one per row.
        count: () characters generated before this one.
        sampling: sampling options.

    Returns:
        The state to continue from and the (B, 1) int32 ids.
    """
    cache = init_cache(model.config, window_BxT.shape[0])
    logits_BxV, cache = _extend(
        model, params, window_BxT, cache, context_lengths_B.astype(jnp.int32)
    )
    keys_B = jax.vmap(jax.random.key)(seeds_B)
    noise_1xBxV = _gumbel(keys_B, count, (1, *logits_BxV.shape))
    last_B = sample_token(noise_1xBxV[0], logits_BxV, sampling)
    return SamplerState(cache, last_B, keys_B, jnp.int32(count + 1)), last_B[:, None]


@functools.partial(jax.jit, static_argnames=("model", "n_chunk"), donate_argnames="state")
def decode(
    model: GPT, params: Any, state: SamplerState, sampling: Sampling, n_chunk: int
) -> tuple[SamplerState, jax.Array]:
    """Generate `n_chunk` characters, one cached step each; the state is donated.

    Returns:
        The next state and the (B, n_chunk) int32 ids. Past the last cache slot both are
        meaningless; the caller must discard them.
    """

    def step(carry: tuple[KVCache, jax.Array], noise_BxV: jax.Array) -> tuple[Any, jax.Array]:
        cache, last_B = carry
        logits_BxV, cache = _extend(model, params, last_B[:, None], cache)
        last_B = sample_token(noise_BxV, logits_BxV, sampling)
        return (cache, last_B), last_B

    shape = (n_chunk, len(state.last_B), model.vocab_size)
    noise_TxBxV = _gumbel(state.keys_B, state.n_generated, shape)
    (cache, last_B), ids_TxB = jax.lax.scan(step, (state.cache, state.last_B), noise_TxBxV)
    return SamplerState(cache, last_B, state.keys_B, state.n_generated + n_chunk), ids_TxB.T


def _gumbel(keys_B: jax.Array, first: jax.Array, shape_TxBxV: tuple[int, ...]) -> jax.Array:
    """Draw the noise of characters `first`, `first` + 1, ..., each row from its own key."""
    n_time, _, vocab_size = shape_TxBxV

    def draw(key: jax.Array, count: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(key, count), (vocab_size,))

    return jax.vmap(jax.vmap(draw, (0, None)), (None, 0))(keys_B, first + jnp.arange(n_time))


def _extend(model: GPT, params: Any, *args: Any) -> tuple[jax.Array, KVCache]:
    return cast(tuple[jax.Array, KVCache], model.apply({"params": params}, *args, method="extend"))
