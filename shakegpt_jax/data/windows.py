"""Random training windows, gathered on the device.

Axes: B windows per batch, T characters per window.
"""

import jax
import jax.numpy as jnp


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
    windows_BxT1 = windows(starts_B).astype(jnp.int32)
    return windows_BxT1[:, :-1], windows_BxT1[:, 1:]


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
    starts_B = jax.random.randint(key, (batch_size,), 0, len(ids) - block_size)
    return gather_windows(ids, starts_B, block_size)
