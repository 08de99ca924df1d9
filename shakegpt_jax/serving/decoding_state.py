"""The decoding state of a batch whose rows come and go.

Axes: B rows of the batch, N rows of a prefill, H heads.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from shakegpt_jax.inference.decoding import DecodingState
from shakegpt_jax.model.gpt import init_cache


@functools.partial(jax.jit, static_argnums=(0, 1))
def empty_state(model: Any, n_row: int) -> DecodingState:
    """Return the state of a number of free rows."""
    zeros_B = jnp.zeros(n_row, jnp.int32)
    keys_B = jax.vmap(jax.random.key)(zeros_B)
    return DecodingState(init_cache(model.config, n_row), zeros_B, keys_B, zeros_B)


@functools.partial(jax.jit, donate_argnums=0)
def put_rows(state: DecodingState, new: DecodingState, places_N: jax.Array) -> DecodingState:
    """Copy the rows of `new` to their places in a state; those outside of it are left out."""

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        # In the cache, the first axis is rows times heads.
        new_NxH = new.reshape(len(places_N), -1, *new.shape[1:])
        old_BxH = old.reshape(-1, *new_NxH.shape[1:])
        return old_BxH.at[places_N].set(new_NxH, mode="drop").reshape(old.shape)

    return jax.tree.map(put, state, new)


@jax.jit
def take_rows(state: DecodingState, rows_B: jax.Array) -> DecodingState:
    """Return a state of some rows of another."""

    def take(old: jax.Array) -> jax.Array:
        old_BxH = old.reshape(len(state.last_B), -1, *old.shape[1:])
        return old_BxH[rows_B].reshape(-1, *old.shape[1:])

    return jax.tree.map(take, state)
