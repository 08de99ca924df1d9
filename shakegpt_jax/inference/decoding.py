"""Cached decoding on the device: a jitted prefill, then jitted loops over characters.

Axes: B rows, T characters of a pass, S cache slots, V vocabulary, C characters of a chunk.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from shakegpt_jax.inference.ngram import NGram
from shakegpt_jax.inference.sampling import Sampling, gumbel_noise, sample_token
from shakegpt_jax.model.gpt import GPT, KVCache, init_cache
from shakegpt_jax.model.linear import cast_blocks, mixes_dtypes


class DecodingState(NamedTuple):
    """State of plain decoding, carried from one dispatch to the next."""

    cache: KVCache
    last_B: jax.Array  # (B,) int32, latest character, not in the cache yet
    keys_B: jax.Array  # (B,) one random key per row
    n_generated_B: jax.Array  # (B,) int32


class DraftingState(NamedTuple):
    """State of drafted decoding."""

    decoding: DecodingState
    contexts_B: jax.Array  # (B,) int32, n-gram's context of the text before the latest character
    left_B: jax.Array  # (B,) int32, characters to generate


start_drafting = jax.jit(DraftingState, donate_argnums=0)


def for_decoding(model: GPT, params: Any) -> tuple[GPT, Any]:
    """Return a model and its parameters in the form that reads and writes single texts fastest."""
    config = model.config
    # Few rows are multiplied faster in float32 by weights that the cache of a CPU holds.
    if mixes_dtypes(config) and config.compute_dtype == "auto" and is_small(params):
        config = dataclasses.replace(config, compute_dtype="float32")
        return model.clone(config=config), params
    return model, cast_blocks(params, config)


def is_small(params: Any) -> bool:
    """Return whether a model has fewer than 10 million parameters."""
    return sum(p.size for p in jax.tree.leaves(params)) < 10_000_000


@functools.partial(jax.jit, static_argnames=("model", "n_spare", "with_log_probs"))
def prefill(
    model: GPT,
    params: Any,
    window_BxT: jax.Array,
    context_lengths_B: jax.Array,
    seeds_B: jax.Array,
    count: jax.Array,
    sampling: Sampling,
    *,
    n_spare: int = 0,
    with_log_probs: bool = False,
) -> tuple[DecodingState, jax.Array, jax.Array | None]:
    """Process the left-aligned context of each row in one pass and sample one character.

    `count`, () or (B,), is how many characters came before it; `n_spare` more cache slots take
    rejected drafts. Returns the state, (B, 1) int32 ids, and with `with_log_probs` (B, 1, V)
    log-probabilities of all characters.
    """
    n_row = len(window_BxT)
    cache = init_cache(model.config, n_row, n_spare)
    x_BxTxD, cache = _extend(model, params, window_BxT, cache)
    cache = cache._replace(lengths_B=context_lengths_B.astype(jnp.int32))
    keys_B = jax.vmap(jax.random.key)(seeds_B)
    count_B = jnp.broadcast_to(jnp.asarray(count, jnp.int32), n_row)
    noise_BxV = gumbel_noise(keys_B, count_B[:, None], model.vocab_size)[:, 0]
    logits_BxV = _head(model, params, x_BxTxD[jnp.arange(n_row), context_lengths_B - 1])
    last_B = sample_token(noise_BxV, logits_BxV, sampling)
    log_probs_Bx1xV = jax.nn.log_softmax(logits_BxV)[:, None] if with_log_probs else None
    return DecodingState(cache, last_B, keys_B, count_B + 1), last_B[:, None], log_probs_Bx1xV


@functools.partial(
    jax.jit, static_argnames=("model", "n_chunk", "with_log_probs"), donate_argnames="state"
)
def decode(
    model: GPT,
    params: Any,
    state: DecodingState,
    sampling: Sampling,
    n_chunk: int,
    *,
    with_log_probs: bool = False,
) -> tuple[DecodingState, jax.Array, jax.Array | None]:
    """Generate C = `n_chunk` characters, one pass each; returns what `prefill` does.

    The state is donated. What comes past the last cache slot is meaningless.
    """

    def step(carry: tuple[KVCache, jax.Array], noise_BxV: jax.Array) -> tuple[Any, Any]:
        cache, last_B = carry
        x_Bx1xD, cache = _extend(model, params, last_B[:, None], cache)
        logits_BxV = _head(model, params, x_Bx1xD[:, 0])
        last_B = sample_token(noise_BxV, logits_BxV, sampling)
        log_probs_BxV = jax.nn.log_softmax(logits_BxV) if with_log_probs else None
        return (cache, last_B), (last_B, log_probs_BxV)

    indices_BxC = state.n_generated_B[:, None] + jnp.arange(n_chunk)[None]
    noise_CxBxV = gumbel_noise(state.keys_B, indices_BxC, model.vocab_size).swapaxes(0, 1)
    carry, written = jax.lax.scan(step, (state.cache, state.last_B), noise_CxBxV)
    state = DecodingState(*carry, state.keys_B, state.n_generated_B + n_chunk)
    ids_BxC, log_probs_BxCxV = jax.tree.map(lambda x: x.swapaxes(0, 1), written)
    return state, ids_BxC, log_probs_BxCxV


@functools.partial(
    jax.jit, static_argnames=("model", "n_verified", "n_pass"), donate_argnames="state"
)
def decode_drafted(
    model: GPT,
    params: Any,
    ngram: NGram,
    state: DraftingState,
    sampling: Sampling,
    n_verified: int,
    n_pass: int,
) -> tuple[DraftingState, jax.Array, jax.Array]:
    """Generate 1 to `n_verified` characters in each of up to `n_pass` passes.

    In each pass the n-gram drafts characters after the latest one, and the model says what it would
    have written after each. This is speculative decoding (Leviathan et al. 2023), except that both
    choose with the same noise, and a draft is accepted if the model makes the same choice. So the
    text is the one that `decode` writes, up to rounding. Rows with no characters left wait for the
    others. The state is donated. Returns the next one, ids, and how many of each row count.
    """

    def one_pass(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        i, (decoding, contexts_B, left_B), ids_BxC, counts_B = carry
        indices_BxT = decoding.n_generated_B[:, None] + jnp.arange(n_verified)[None]
        noise_BxTxV = gumbel_noise(decoding.keys_B, indices_BxT, model.vocab_size)
        noise_TxBxV = noise_BxTxV.swapaxes(0, 1)

        def draft(carry: tuple[jax.Array, jax.Array], noise_BxV: jax.Array) -> Any:
            contexts_B, last_B = carry
            contexts_B = ngram.next_GxV[contexts_B, last_B]
            logits_BxV = ngram.log_probs_GxV[contexts_B].astype(jnp.float32)
            drafted_B = sample_token(noise_BxV, logits_BxV, sampling)
            return (contexts_B, drafted_B), (contexts_B, last_B)

        # The last draft is not used, but its context is.
        start = (contexts_B, decoding.last_B)
        _, (contexts_TxB, idx_TxB) = jax.lax.scan(draft, start, noise_TxBxV)
        x_BxTxD, cache = _extend(model, params, idx_TxB.T, decoding.cache)
        logits_TxBxV = _head(model, params, x_BxTxD.swapaxes(0, 1))
        chosen_TxB = sample_token(noise_TxBxV, logits_TxBxV, sampling)
        accepted_TxB = jnp.cumprod(chosen_TxB[:-1] == idx_TxB[1:], axis=0)
        n_new_B = jnp.minimum(1 + accepted_TxB.sum(axis=0, dtype=jnp.int32), left_B)
        # The next pass overwrites the rejected characters.
        cache = cache._replace(lengths_B=decoding.cache.lengths_B + n_new_B)
        index = (jnp.maximum(n_new_B - 1, 0), jnp.arange(len(n_new_B)))
        last_B = jnp.where(n_new_B > 0, chosen_TxB[index], decoding.last_B)
        contexts_B = jnp.where(n_new_B > 0, contexts_TxB[index], contexts_B)
        n_generated_B = decoding.n_generated_B + n_new_B
        decoding = DecodingState(cache, last_B, decoding.keys_B, n_generated_B)
        write = jax.vmap(lambda old, new, at: jax.lax.dynamic_update_slice(old, new, (at,)))
        ids_BxC = write(ids_BxC, chosen_TxB.T, counts_B)
        state = DraftingState(decoding, contexts_B, left_B - n_new_B)
        return i + 1, state, ids_BxC, counts_B + n_new_B

    def unfinished(carry: tuple[Any, ...]) -> jax.Array:
        i, state, *_ = carry
        return (i < n_pass) & (state.left_B > 0).any()

    counts_B = jnp.zeros_like(state.left_B)
    ids_BxC = jnp.zeros((len(counts_B), n_pass * n_verified), jnp.int32)
    carry = (0, state, ids_BxC, counts_B)
    _, state, ids_BxC, counts_B = jax.lax.while_loop(unfinished, one_pass, carry)
    return state, ids_BxC, counts_B


@functools.partial(jax.jit, static_argnames="model")
def acceptance_rate(
    model: GPT,
    params: Any,
    ngram: NGram,
    idx_T: jax.Array,
    contexts_T: jax.Array,
    sampling: Sampling,
) -> jax.Array:
    """Return the share of drafts, made in contexts of the n-gram, that a model would accept."""
    x_1xTxD, _ = _extend(model, params, idx_T[None].astype(jnp.int32), init_cache(model.config, 1))
    logits_TxV = _head(model, params, x_1xTxD[0])
    drafts_TxV = ngram.log_probs_GxV[contexts_T].astype(jnp.float32)
    seeds_1, indices_1xT = jnp.zeros(1, jnp.uint32), jnp.arange(len(idx_T))[None]
    noise_TxV = gumbel_noise(jax.vmap(jax.random.key)(seeds_1), indices_1xT, model.vocab_size)[0]
    chosen_T, drafted_T = (sample_token(noise_TxV, x, sampling) for x in (logits_TxV, drafts_TxV))
    return (chosen_T == drafted_T).mean()


def _extend(model: GPT, params: Any, idx_BxT: jax.Array, cache: KVCache) -> Any:
    return model.apply({"params": params}, idx_BxT, cache, method="extend")


def _head(model: GPT, params: Any, x: jax.Array) -> Any:
    return model.apply({"params": params}, x, method="head")
