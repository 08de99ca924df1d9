"""The attention weights of a trained model, for people to look at.

Axes: B rows, L layers, H heads, T characters, S characters attended to, K head dimension.
"""

import functools
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from shakegpt_jax.model.attention import attend
from shakegpt_jax.model.gpt import GPT, QKV


@functools.partial(jax.jit, static_argnames="model")
def attention_weights(model: GPT, params: Any, idx_BxT: jax.Array) -> jax.Array:
    """Compute how much each character attends to itself and to each one before it.

    The model runs as usual, and flax.linen captures its queries and keys.

    Args:
        model: the model.
        params: its parameters.
        idx_BxT: integer ids, T at most block_size.

    Returns:
        (B, L, H, T, S) float32 weights, S = T. The sum over S is 1; later characters have 0.
    """
    _, captured = model.apply(
        {"params": params},
        idx_BxT,
        capture_intermediates=_is_qkv,
        mutable=["intermediates"],
    )
    n_time = idx_BxT.shape[1]
    mask_1x1xTxT = jnp.tril(jnp.ones((1, 1, n_time, n_time), bool))
    layers = []
    for i in range(model.config.n_layer):
        (qkv,) = captured["intermediates"][f"block_{i}"]["attn"]["c_attn"]["__call__"]
        q_BxHxTxK, k_BxHxTxK = (part.transpose(0, 2, 1, 3) for part in qkv[:2])
        # With the identity as values, the output of attention is its weights.
        identity = jnp.broadcast_to(jnp.eye(n_time), (*q_BxHxTxK.shape[:2], n_time, n_time))
        layers.append(attend(q_BxHxTxK, k_BxHxTxK, identity, mask_1x1xTxT))
    return cast(jax.Array, jnp.stack(layers, axis=1))


def _is_qkv(module: nn.Module, method: str) -> bool:
    return isinstance(module, QKV)
