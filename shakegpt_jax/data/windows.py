"""Random training windows, gathered on the device or on the host.

Axes: K steps, B windows per batch, T characters per window.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np

_ROUNDS = 32  # of a permutation; after them, the place of an index is uniform up to 2**-32


def gather_windows(ids: jax.Array, starts: jax.Array, block_size: int) -> jax.Array:
    """Gather the (..., T + 1) windows with (...) starts from the (n,) ids on the device."""
    gather = jnp.vectorize(
        lambda start: jax.lax.dynamic_slice(ids, (start,), (block_size + 1,)), signature="()->(t)"
    )
    return gather(starts)


def split_windows(windows_BxT1: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Split windows into (B, T) int32 inputs and targets, the characters that follow them."""
    windows_BxT1 = windows_BxT1.astype(jnp.int32)
    return windows_BxT1[:, :-1], windows_BxT1[:, 1:]


def sample_starts(key: jax.Array, n: int, batch_size: int, block_size: int) -> jax.Array:
    """Sample (B,) starts uniformly over every window of n characters, with replacement."""
    return jax.random.randint(key, (batch_size,), 0, n - block_size, jnp.int32)


def shuffled_starts(
    key: jax.Array, step: int | jax.Array, n: int, batch_size: int, block_size: int
) -> jax.Array:
    """Return the starts of a step that visits a text without replacement, epoch after epoch.

    Each epoch cuts the text at a random offset into adjacent windows, in random order, and leaves
    out fewer than 2 * T characters at its ends. After 2**32 windows the order repeats. The key is
    that of all steps.
    """
    # One fewer than fit, so that the borders of windows can be anywhere.
    n_windows = max(1, n // block_size - 1)

    def start(position: jax.Array) -> jax.Array:
        epoch_key = jax.random.fold_in(key, position // n_windows)
        index = (position % n_windows).astype(jnp.int32)
        offset_key, order_key = jax.random.split(epoch_key)
        offset = jax.random.randint(offset_key, (), 0, n - n_windows * block_size, jnp.int32)
        return offset + block_size * permute(order_key, index, n_windows)

    first = jnp.uint32(step) * jnp.uint32(batch_size)
    return jax.vmap(start)(first + jnp.arange(batch_size, dtype=jnp.uint32))


def permute(key: jax.Array, index: jax.Array, n: int) -> jax.Array:
    """Return where a random permutation of [0, n), which is not stored, moves a () int32 index.

    The swap-or-not shuffle (Hoang, Morris and Rogaway 2012): each round pairs the indices and swaps
    about half of the pairs.
    """
    sum_key, swap_key = jax.random.split(key)
    # Of the indices of a pair, modulo n.
    sums = jax.random.randint(sum_key, (_ROUNDS,), 0, n, jnp.int32)

    def swap(index: jax.Array, pairing: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        key, sum_ = pairing
        partner = (sum_ - index) % n
        swaps = jax.random.bernoulli(jax.random.fold_in(key, jnp.maximum(index, partner)))
        return jnp.where(swaps, partner, index), None

    return jax.lax.scan(swap, index, (jax.random.split(swap_key, _ROUNDS), sums))[0]


def gather_on_host(ids: np.ndarray, starts_KxB: np.ndarray, block_size: int) -> np.ndarray:
    """Gather (K, B, T + 1) windows from (n,) ids in memory, or mapped from the start of a file."""
    if not isinstance(ids, np.memmap):
        return np.lib.stride_tricks.sliding_window_view(ids, block_size + 1)[starts_KxB]
    windows_KxBxT1 = np.empty((*starts_KxB.shape, block_size + 1), ids.dtype)
    rows = windows_KxBxT1.reshape(-1, block_size + 1)
    # Read, since each access to the mapping would make many pages around it resident.
    with open(str(ids.filename), "rb") as file:
        for row_T1, start in zip(rows, starts_KxB.ravel().tolist(), strict=True):
            if os.preadv(file.fileno(), [row_T1.data], start * ids.itemsize) < row_T1.nbytes:
                raise OSError(f"{ids.filename} is shorter than it was")
    return windows_KxBxT1
