"""Keys and values of the characters a model has read, for decoding.

Axes: B rows, S cache slots, N = B * H (rows and heads merged), K = head dimension.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from shakegpt_jax.config import ModelConfig
from shakegpt_jax.model.precision import compute_dtype


class KVCache(NamedTuple):
    """Keys and values, one array per layer, and the number of characters in each row.

    One array per layer, not one stacked array: XLA would copy a layer out of the stack for every
    decoded character. Rows and heads share one axis, the layout of the attention matmuls: with a
    reshape in between, XLA copies the cache instead of updating it in place, and decoding takes
    1.6 times as long on a CPU (4 layers of 128). Slots come after heads: with slots first, XLA
    transposes the cache every time.
    """

    keys: tuple[jax.Array, ...]  # n_layer of (N, S, K)
    values: tuple[jax.Array, ...]  # n_layer of (N, S, K)
    lengths_B: jax.Array  # (B,) int32, characters in each row: the next free slot


def init_cache(config: ModelConfig, batch_size: int, n_spare: int = 0) -> KVCache:
    """Create an empty cache of block_size + n_spare slots for `batch_size` rows."""
    n_slot = config.block_size + n_spare
    shape = (batch_size * config.n_head, n_slot, config.n_embd // config.n_head)
    empty = jnp.zeros(shape, compute_dtype(config))
    layers = (empty,) * config.n_layer
    return KVCache(layers, layers, jnp.zeros(batch_size, jnp.int32))
