"""Attention weights and hidden states of a model, which flax.linen captures as it runs.

Axes: B rows, T characters, L layers, H heads, D = n_embd.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from shakegpt_jax.model.attention import attend
from shakegpt_jax.model.gpt import GPT, Block


def _capture(
    model: GPT, params: Any, idx_BxT: jax.Array, wanted: Callable[[nn.Module], bool]
) -> Any:
    """Return the outputs of the modules that are wanted."""
    _, captured = model.apply(
        {"params": params},
        idx_BxT,
        capture_intermediates=lambda module, _: wanted(module),
        mutable=["intermediates"],
    )
    return captured["intermediates"]


@functools.partial(jax.jit, static_argnames="model")
def attention_weights(model: GPT, params: Any, idx_BxT: jax.Array) -> jax.Array:
    """Compute how much each character attends to itself and to each one before it.

    The model runs as usual, and flax.linen captures its queries and keys. Returns (B, L, H, T, T)
    float32 weights, whose sum over the last axis is 1.
    """
    captured = _capture(model, params, idx_BxT, lambda module: module.name == "c_attn")
    n_time = idx_BxT.shape[1]
    mask_1x1xTxT = jnp.tril(jnp.ones((1, 1, n_time, n_time), bool))
    layers = []
    for i in range(model.config.n_layer):
        (qkv_3xBxTxD,) = captured[f"block_{i}"]["attn"]["c_attn"]["__call__"]
        q_BxHxTxK, k_BxHxTxK, _ = (
            x_BxTxD.reshape(*x_BxTxD.shape[:2], model.config.n_head, -1).transpose(0, 2, 1, 3)
            for x_BxTxD in qkv_3xBxTxD
        )
        # With the identity as values, the output of attention is its weights.
        identity = jnp.broadcast_to(jnp.eye(n_time), (*q_BxHxTxK.shape[:2], n_time, n_time))
        layers.append(attend(q_BxHxTxK, k_BxHxTxK, identity, mask_1x1xTxT))
    return cast(jax.Array, jnp.stack(layers, axis=1))


@functools.partial(jax.jit, static_argnames="model")
def hidden_states(model: GPT, params: Any, idx_BxT: jax.Array) -> jax.Array:
    """Compute the input of the first block and the output of each: (B, L + 1, T, D) float32."""
    captured = _capture(
        model, params, idx_BxT, lambda module: isinstance(module, Block) or module.path == ("drop",)
    )
    states = [captured["drop"]["__call__"][0]]
    for i in range(model.config.n_layer):
        ((state_BxTxD, _),) = captured[f"block_{i}"]["__call__"]
        states.append(state_BxTxD)
    return jnp.stack(states, axis=1).astype(jnp.float32)
