"""Attention: in plain JAX, which runs anywhere, or by cuDNN, which stores no scores.

Axes: B rows, T characters, S characters attended to, H heads, N = B * H (rows and heads merged),
K = head dimension.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from shakegpt_jax.config import ModelConfig
from shakegpt_jax.model.linear import compute_dtype

# Queries per block at least, and blocks at most. More blocks leave out more scores, up to half of
# them, but compile more operations. configs/speedrun.py on two CPU cores: 4,190 characters/s in one
# block, 4,550 in two, 4,780 in four, 4,590 in eight.
_MIN_BLOCK, _MAX_BLOCKS = 64, 4


# JAX's own gradient would multiply in float32, as the scores are, and contract rows.
@jax.custom_vjp
def attend(
    q_NxTxK: jax.Array, k_NxSxK: jax.Array, v_NxSxK: jax.Array, mask_NxTxS: jax.Array
) -> jax.Array:
    """Attend where the mask is True, with scores and softmax in float32; returns (N, T, K)."""
    return _attend_fwd(q_NxTxK, k_NxSxK, v_NxSxK, mask_NxTxS)[0]


def _attend_fwd(
    q_NxTxK: jax.Array, k_NxSxK: jax.Array, v_NxSxK: jax.Array, mask_NxTxS: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    scores_NxTxS = _scores(q_NxTxK, k_NxSxK) * q_NxTxK.shape[-1] ** -0.5
    scores_NxTxS = jnp.where(mask_NxTxS, scores_NxTxS, jnp.finfo(jnp.float32).min)
    weights_NxTxS = jax.nn.softmax(scores_NxTxS).astype(v_NxSxK.dtype)
    y_NxTxK = jnp.einsum("...ts,...sk->...tk", weights_NxTxS, v_NxSxK)
    return y_NxTxK, (q_NxTxK, k_NxSxK, v_NxSxK, weights_NxTxS, y_NxTxK)


def _attend_bwd(residuals: tuple[jax.Array, ...], dy_NxTxK: jax.Array) -> Any:
    q_NxTxK, k_NxSxK, v_NxSxK, weights_NxTxS, y_NxTxK = residuals
    # The gradient of softmax subtracts a mean: here of K products instead of S, as in
    # FlashAttention (Dao et al. 2022, appendix B.2).
    mean_NxTx1 = jnp.sum(dy_NxTxK.astype(jnp.float32) * y_NxTxK, -1, keepdims=True)
    dscores_NxTxS = weights_NxTxS * (_scores(dy_NxTxK, v_NxSxK) - mean_NxTx1)
    dscores_NxTxS = (dscores_NxTxS * q_NxTxK.shape[-1] ** -0.5).astype(q_NxTxK.dtype)
    return (
        jnp.einsum("...ts,...sk->...tk", dscores_NxTxS, k_NxSxK),
        _contract_rows(dscores_NxTxS, q_NxTxK),
        _contract_rows(weights_NxTxS, dy_NxTxK),
        None,
    )


attend.defvjp(_attend_fwd, _attend_bwd)


def _scores(q_NxTxK: jax.Array, k_NxSxK: jax.Array) -> jax.Array:
    return jnp.einsum("...tk,...sk->...ts", q_NxTxK, k_NxSxK, preferred_element_type=jnp.float32)


def _contract_rows(a_NxSxT: jax.Array, b_NxSxK: jax.Array) -> jax.Array:
    """Multiply the transpose of (..., S, T) by (..., S, K)."""
    if a_NxSxT.dtype == jnp.float32 and jax.default_backend() == "cpu":
        # XLA hands products to YNNPACK only if the left operand is contracted over its last axis.
        a_NxTxS = jax.lax.optimization_barrier(a_NxSxT.swapaxes(-1, -2))
        return jnp.einsum("...ts,...sk->...tk", a_NxTxS, b_NxSxK)
    return jnp.einsum("...st,...sk->...tk", a_NxSxT, b_NxSxK)


def attend_causally(q_BxHxTxK: jax.Array, k_BxHxTxK: jax.Array, v_BxHxTxK: jax.Array) -> jax.Array:
    """Attend to each character itself and to those before it; returns (B, H, T, K)."""
    # Each block of queries meets the keys up to its end: four blocks compute 5/8 of the scores.
    n_time = q_BxHxTxK.shape[-2]
    size = max(_MIN_BLOCK, -(-n_time // _MAX_BLOCKS))
    blocks = []
    for start in range(0, n_time, size):
        end = min(start + size, n_time)
        q, k, v = q_BxHxTxK[..., start:end, :], k_BxHxTxK[..., :end, :], v_BxHxTxK[..., :end, :]
        mask_1x1xTxS = jnp.tril(jnp.ones((1, 1, end - start, end), bool), start)
        blocks.append(attend(q, k, v, mask_1x1xTxS))
    return jnp.concatenate(blocks, axis=-2)


def attend_causally_by_cudnn(*qkv_BxTxHxK: jax.Array) -> jax.Array:
    """Attend to each character itself and to those before it; returns (B, T, H, K)."""
    return jax.nn.dot_product_attention(*qkv_BxTxHxK, is_causal=True, implementation="cudnn")


@functools.cache
def cudnn_attends(config: ModelConfig) -> bool:
    """Return whether cuDNN can train with these heads on this machine: it tries to compile."""
    dtype = compute_dtype(config)
    if jax.default_backend() != "gpu" or dtype != jnp.bfloat16:
        return False
    head_dim = config.n_embd // config.n_head
    qkv = [jax.ShapeDtypeStruct((1, config.block_size, config.n_head, head_dim), dtype)] * 3

    def total(*qkv: jax.Array) -> jax.Array:
        return attend_causally_by_cudnn(*qkv).astype(jnp.float32).sum()

    try:
        jax.jit(jax.grad(total, (0, 1, 2))).lower(*qkv).compile()
    except Exception:  # old GPUs, no cuDNN, unsupported sizes: each has its own
        return False
    return True
