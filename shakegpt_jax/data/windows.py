"""Random training windows, gathered on the device or on the host.

Axes: K steps, B windows per batch, T characters per window.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np

_ROUNDS = 32  # of a permutation; after them, the place of an index is uniform up to 2**-32


def gather_windows(ids: jax.Array, starts: jax.Array, block_size: int) -> jax.Array:
    """Gather windows on the device.

    Args:
        ids: (n,) on the device.
        starts: (...) start of each window, in [0, n - block_size).
        block_size: T.

    Returns:
        (..., T + 1), of the type of `ids`.
    """
    gather = jnp.vectorize(
        lambda start: jax.lax.dynamic_slice(ids, (start,), (block_size + 1,)), signature="()->(t)"
    )
    return gather(starts)


def split_windows(windows_BxT1: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Split windows of T + 1 characters into inputs and targets.

    Returns:
        (B, T) int32 each; targets[:, i] follows inputs[:, i] in the text.
    """
    windows_BxT1 = windows_BxT1.astype(jnp.int32)
    return windows_BxT1[:, :-1], windows_BxT1[:, 1:]


def sample_starts(key: jax.Array, n: int, batch_size: int, block_size: int) -> jax.Array:
    """Sample (B,) starts uniformly over every window of n characters, with replacement."""
    return jax.random.randint(key, (batch_size,), 0, n - block_size)


def shuffled_starts(
    key: jax.Array, step: int | jax.Array, n: int, batch_size: int, block_size: int
) -> jax.Array:
    """Return the starts of a step that visits a text without replacement, epoch after epoch.

    Each epoch cuts the text at a random offset into adjacent windows, in random order, and leaves
    out fewer than 2 * T characters at its ends. After 2**32 windows the order repeats.

    Args:
        key: random key of all steps.
        step: the step.
        n: characters of the text.
        batch_size: B.
        block_size: T.

    Returns:
        (B,), in [0, n - T).
    """
    # One fewer than fit, so that the borders of windows can be anywhere.
    n_windows = max(1, n // block_size - 1)

    def start(position: jax.Array) -> jax.Array:
        epoch_key = jax.random.fold_in(key, position // n_windows)
        index = (position % n_windows).astype(jnp.int32)
        offset_key, order_key = jax.random.split(epoch_key)
        offset = jax.random.randint(offset_key, (), 0, n - n_windows * block_size)
        return offset + block_size * permute(order_key, index, n_windows)

    first = jnp.uint32(step) * jnp.uint32(batch_size)
    return jax.vmap(start)(first + jnp.arange(batch_size, dtype=jnp.uint32))


def permute(key: jax.Array, index: jax.Array, n: int) -> jax.Array:
    """Return where a random permutation moves an index.

    Unlike `jax.random.permutation`, it does not store the permutation, which may be of as many
    windows as a long text has. Each round pairs the indices and swaps about half of the pairs: the
    swap-or-not shuffle of Hoang, Morris and Rogaway 2012.

    Args:
        key: random key of the permutation.
        index: () int32 in [0, n).
        n: number of indices.
    """
    sum_key, swap_key = jax.random.split(key)
    sums = jax.random.randint(sum_key, (_ROUNDS,), 0, n)  # of the indices of a pair, modulo n

    def swap(index: jax.Array, pairing: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        key, sum_ = pairing
        partner = (sum_ - index) % n
        swaps = jax.random.bernoulli(jax.random.fold_in(key, jnp.maximum(index, partner)))
        return jnp.where(swaps, partner, index), None

    return jax.lax.scan(swap, index, (jax.random.split(swap_key, _ROUNDS), sums))[0]


def gather_on_host(ids: np.ndarray, starts_KxB: np.ndarray, block_size: int) -> np.ndarray:
    """Gather the windows of several steps.

    Args:
        ids: (n,) in memory, or mapped from the start of a file.
        starts_KxB: start of each window, in [0, n - block_size).
        block_size: T.

    Returns:
        (K, B, T + 1), of the type of `ids`.

    Raises:
        OSError: if the file is no longer what it was.
    """
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
