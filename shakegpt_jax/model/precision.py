"""Dtype of the matmuls."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from shakegpt_jax.config import ModelConfig


def compute_dtype(config: ModelConfig) -> DTypeLike:
    """Return the dtype of matmul operands. "auto" depends on the default backend."""
    if config.compute_dtype != "auto":
        return jnp.dtype(config.compute_dtype)
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


def cast_blocks(params: Any, config: ModelConfig) -> Any:
    """Cast the linear layers of the blocks to the dtype that they compute in.

    They would be cast at every use. Decoding reads all of them for each character, so this halves
    the bytes in bfloat16; the results are the same.
    """
    dtype = compute_dtype(config)

    def cast(path: tuple[jax.tree_util.DictKey, ...], param: jax.Array) -> jax.Array:
        linear = path[0].key.startswith("block_") and path[1].key in ("attn", "mlp")
        return param.astype(dtype) if linear and param.dtype != dtype else param

    return jax.tree_util.tree_map_with_path(cast, params)
