"""Dropout with few random bits."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) that draws 8 random bits per element instead of 32.

    Random bits are a large part of its cost. The rate is rounded to a multiple of 1/256, from
    1/256 to 255/256, and what is kept is scaled accordingly.
    """

    rate: float

    def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
        """Set a random part of (..., D) to zero and scale the rest; needs an rng "dropout"."""
        if deterministic or not self.rate:
            return x
        n_zero = min(max(1, round(256 * self.rate)), 255)  # of 256
        n_word = -(-x.shape[-1] // 4)
        words = jax.random.bits(self.make_rng("dropout"), (*x.shape[:-1], n_word), jnp.uint32)
        bytes_ = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*x.shape[:-1], 4 * n_word)
        return jnp.where(bytes_[..., : x.shape[-1]] < n_zero, 0, x * (256 / (256 - n_zero)))
