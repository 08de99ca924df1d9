"""Writing text: one jitted prefill, one jitted `lax.scan` of cached decode steps.

What a row writes depends on its own text, seed and options alone (up to rounding): not on the
rows beside it, nor on how the work is cut into chunks.

Axes: B rows, T characters, S cache slots (block_size), V vocabulary.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from shakegpt_jax.dispatch import one_ahead
from shakegpt_jax.model import GPT, KVCache, init_cache

# Characters written per dispatch, and so the grain of streaming: a small model writes so fast
# that dispatches would take a third of its time.
_CHUNK, _SMALL_MODEL_CHUNK, _SMALL_MODEL = 16, 32, 10_000_000


class Sampling(NamedTuple):
    """How the next character is chosen from its logits; None leaves a cut out.

    Values are traced, so another temperature, k or p does not recompile.
    """

    temperature: float = 1.0  # logits are divided by it; 0: the most probable character
    top_k: int | None = None  # choose among the k most probable
    top_p: float | None = None  # choose among the fewest whose probabilities reach p


class SamplerState(NamedTuple):
    """What one decode step hands to the next."""

    cache: KVCache
    last_B: jax.Array  # (B,) int32, written but not yet read
    keys_B: jax.Array  # (B,) one random key per row
    written: jax.Array  # () int32, characters that every row has written


def choose(noise_BxV: jax.Array, logits_BxV: jax.Array, sampling: Sampling) -> jax.Array:
    """Choose one character per row: temperature, then top-k, then top-p, then a draw.

    The draw is the Gumbel-max trick: the largest of log-probability plus noise.

    Args:
        noise_BxV: independent standard Gumbel noise; unused where the temperature is 0.
        logits_BxV: float32; -inf is never chosen.
        sampling: how; top-p (Holtzman et al. 2020) counts what top-k has left.

    Returns:
        (B,) int32 ids.
    """
    greedy = jnp.asarray(sampling.temperature) == 0
    # The largest is 0 before the division, so that no temperature overflows it.
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
    """Return how many of a text's last characters the model looks at to write the next one.

    All of them up to block_size. Past it, learned positions cannot slide inside a cache: when
    the window is full it is cut to its last `block_size - window_stride` characters and grows
    again. It depends on the text's length alone, so a text goes on alike however it came to be.
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
    """Write on from each prompt, all in one batch.

    Args:
        model: a `GPT`, or anything with its `extend` and `config`.
        params: its parameters.
        prompts: B arrays of ids, of any length from 1.
        seeds: B seeds; a row's text depends on its own.
        max_new_tokens: characters to write for each.
        sampling: how each is chosen.
        window_stride: characters dropped when the window is full, in [1, block_size].
            1 is exact and reads the window anew for every character; larger is faster.

    Yields:
        (B, n) int32 new ids, as they are written; the n add up to max_new_tokens.
    """
    n_slot = model.config.block_size
    seeds_B = np.asarray(seeds, np.uint32)
    tails = [np.asarray(prompt, np.int32)[-n_slot:] for prompt in prompts]
    lengths = np.array([len(prompt) for prompt in prompts])
    n_weight = sum(p.size for p in jax.tree.leaves(params))
    n_chunk = _SMALL_MODEL_CHUNK if n_weight < _SMALL_MODEL else _CHUNK
    # Where windows are short of a chunk, the rest of it would be thrown away at each.
    n_chunk = min(n_chunk, 1 << max(0, window_stride - 2).bit_length())
    count = 0
    while count < max_new_tokens:
        contexts_B = np.array([context_length(n, n_slot, window_stride) for n in lengths])
        # A power of two, so that few lengths are ever compiled.
        n_time = min(n_slot, max(_CHUNK, 1 << (int(contexts_B.max()) - 1).bit_length()))
        window_BxT = np.zeros((len(tails), n_time), np.int32)
        for row, tail, n_context in zip(window_BxT, tails, contexts_B, strict=True):
            row[:n_context] = tail[-n_context:]
        # The window's last character is read to write one more.
        room = min(n_slot - int(contexts_B.max()) + 1, max_new_tokens - count)
        state, first_Bx1 = prefill(model, params, window_BxT, contexts_B, seeds_B, count, sampling)
        chunks = _decode_chunks(model, params, state, sampling, room - 1, n_chunk)
        left = room
        for ids_BxT in one_ahead(itertools.chain([first_Bx1], chunks)):
            new_BxT = np.asarray(ids_BxT)[:, :left]
            left -= new_BxT.shape[1]
            tails = [
                np.append(tail, new)[-n_slot:] for tail, new in zip(tails, new_BxT, strict=True)
            ]
            yield new_BxT
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
    contexts_B: jax.Array,
    seeds_B: jax.Array,
    count: jax.Array,
    sampling: Sampling,
) -> tuple[SamplerState, jax.Array]:
    """Read each row's context in one pass and write one character.

    Args:
        model: as in `generate_ids`.
        params: its parameters.
        window_BxT: ids, each row's context from the left and padding after it.
        contexts_B: how many of them are context, at least 1.
        seeds_B: uint32, one per row.
        count: () characters written before this one.
        sampling: how it is chosen.

    Returns:
        The state to decode from and the (B, 1) int32 ids.
    """
    cache = init_cache(model.config, window_BxT.shape[0])
    logits_BxV, cache = _extend(model, params, window_BxT, cache, contexts_B.astype(jnp.int32))
    keys_B = jax.vmap(jax.random.key)(seeds_B)
    noise_1xBxV = _gumbel(keys_B, count, (1, *logits_BxV.shape))
    last_B = choose(noise_1xBxV[0], logits_BxV, sampling)
    return SamplerState(cache, last_B, keys_B, jnp.int32(count + 1)), last_B[:, None]


@functools.partial(jax.jit, static_argnames=("model", "n_chunk"), donate_argnames="state")
def decode(
    model: GPT, params: Any, state: SamplerState, sampling: Sampling, n_chunk: int
) -> tuple[SamplerState, jax.Array]:
    """Write `n_chunk` characters, each from a cached step; the state is donated.

    Returns:
        The state after it and the (B, n_chunk) int32 ids. Those written past the last slot are
        meaningless and for the caller to drop, with the state.
    """

    def step(carry: tuple[KVCache, jax.Array], noise_BxV: jax.Array) -> tuple[Any, jax.Array]:
        cache, last_B = carry
        logits_BxV, cache = _extend(model, params, last_B[:, None], cache)
        last_B = choose(noise_BxV, logits_BxV, sampling)
        return (cache, last_B), last_B

    shape = (n_chunk, len(state.last_B), model.vocab_size)
    noise_TxBxV = _gumbel(state.keys_B, state.written, shape)
    (cache, last_B), ids_TxB = jax.lax.scan(step, (state.cache, state.last_B), noise_TxBxV)
    return SamplerState(cache, last_B, state.keys_B, state.written + n_chunk), ids_TxB.T


def _gumbel(keys_B: jax.Array, first: jax.Array, shape_TxBxV: tuple[int, ...]) -> jax.Array:
    """Draw the noise of characters `first`, `first` + 1, ...; each row's from its own key."""
    n_time, _, vocab_size = shape_TxBxV

    def draw(key: jax.Array, count: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(key, count), (vocab_size,))

    return jax.vmap(jax.vmap(draw, (0, None)), (None, 0))(keys_B, first + jnp.arange(n_time))


def _extend(model: GPT, params: Any, *args: Any) -> tuple[jax.Array, KVCache]:
    return cast(tuple[jax.Array, KVCache], model.apply({"params": params}, *args, method="extend"))
