"""Dtype of the matmuls."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from shakegpt_jax.config import ModelConfig


def compute_dtype(config: ModelConfig) -> DTypeLike:
    """Return the dtype of matmul operands. "auto" depends on the default backend."""
    if config.compute_dtype != "auto":
        return jnp.dtype(config.compute_dtype)
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
