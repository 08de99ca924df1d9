"""Random keys and training windows: functions of the seed and the step alone.

Axes: K steps, B windows per batch.
"""

import functools
from typing import Literal

import jax

from shakegpt_jax.config import DataConfig
from shakegpt_jax.data.windows import sample_starts, shuffled_starts

_STREAMS = ("params", "windows", "dropout")


def random_key(
    seed: int | jax.Array, stream: Literal["params", "windows", "dropout"], step: int | jax.Array
) -> jax.Array:
    """Return the random key of a step, from an independent stream per purpose."""
    return jax.random.fold_in(
        jax.random.fold_in(jax.random.key(seed), _STREAMS.index(stream)), step
    )


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def window_starts(
    seed: int | jax.Array, steps_K: jax.Array, n: int, data: DataConfig, block_size: int
) -> jax.Array:
    """Return the (K, B) starts of the windows that steps draw from n characters."""
    sizes = n, data.batch_size, block_size

    def draw(step: jax.Array) -> jax.Array:
        if data.replacement:
            return sample_starts(random_key(seed, "windows", step), *sizes)
        return shuffled_starts(random_key(seed, "windows", 0), step, *sizes)

    return jax.vmap(draw)(steps_K)
