"""Random training windows, gathered on the device or on the host.

Axes: K steps, B windows per batch, T characters per window.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np


def gather_windows(
    ids: jax.Array, starts_B: jax.Array, block_size: int
) -> tuple[jax.Array, jax.Array]:
    """Gather windows and their targets, which are shifted by one character.

    Args:
        ids: (n,) on the device.
        starts_B: start of each window, in [0, n - block_size).
        block_size: T.

    Returns:
        inputs and targets, (B, T) int32 each; targets[:, i] follows inputs[:, i] in the text.
    """
    windows = jax.vmap(lambda start: jax.lax.dynamic_slice(ids, (start,), (block_size + 1,)))
    return split_windows(windows(starts_B))


def split_windows(windows_BxT1: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Split windows of T + 1 characters into inputs and targets; see `gather_windows`."""
    windows_BxT1 = windows_BxT1.astype(jnp.int32)
    return windows_BxT1[:, :-1], windows_BxT1[:, 1:]


def sample_starts(key: jax.Array, n: int, batch_size: int, block_size: int) -> jax.Array:
    """Sample (B,) starts uniformly over every window of n characters, with replacement."""
    return jax.random.randint(key, (batch_size,), 0, n - block_size)


def sample_windows(
    key: jax.Array, ids: jax.Array, batch_size: int, block_size: int
) -> tuple[jax.Array, jax.Array]:
    """Sample windows uniformly over every start in the text (stride 1), with replacement.

    Args:
        key: random key.
        ids: (n,) on the device, n > block_size.
        batch_size: B.
        block_size: T.

    Returns:
        inputs and targets, see `gather_windows`.
    """
    return gather_windows(ids, sample_starts(key, len(ids), batch_size, block_size), block_size)


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
