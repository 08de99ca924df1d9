"""Decoder-only Transformer with the conventions of GPT-2 (Radford et al. 2019).

Axes: B rows, T characters, S cache slots, D = n_embd, H heads, N = B * H (rows and heads merged),
K = D / H, V vocabulary.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from shakegpt_jax.config import ModelConfig, validate_section
from shakegpt_jax.errors import UserError
from shakegpt_jax.model.attention import (
    attend,
    attend_causally,
    attend_causally_by_cudnn,
    cudnn_attends,
)
from shakegpt_jax.model.layers import Dropout
from shakegpt_jax.model.linear import Linear, compute_dtype
from shakegpt_jax.sharding import shard_batch

LAYER_NORM_EPSILON = 1e-5


class KVCache(NamedTuple):
    """Keys and values, one array per layer, and the number of characters in each row."""

    # One array per layer: XLA would copy a layer out of a stack for every decoded character. Rows
    # and heads share an axis, the layout of the attention matmuls: with a reshape in between, XLA
    # copies the cache, and decoding takes 1.6 times as long on a CPU (4 layers of 128). With slots
    # before heads, XLA transposes the cache every time.
    keys: tuple[jax.Array, ...]  # n_layer of (N, S, K)
    values: tuple[jax.Array, ...]  # n_layer of (N, S, K)
    lengths_B: jax.Array  # (B,) int32, characters in each row: the next free slot


def init_cache(config: ModelConfig, batch_size: int, n_spare: int = 0) -> KVCache:
    """Create an empty cache of block_size + n_spare slots for `batch_size` rows."""
    n_slot = config.block_size + n_spare
    shape = (batch_size * config.n_head, n_slot, config.n_embd // config.n_head)
    empty = jnp.zeros(shape, compute_dtype(config))
    layers = (empty,) * config.n_layer
    return KVCache(layers, layers, jnp.zeros(batch_size, jnp.int32))


class LayerCache(NamedTuple):
    """Cached keys and values of one layer, and where the input goes."""

    keys_NxSxK: jax.Array
    values_NxSxK: jax.Array
    starts_N: jax.Array  # slot of each row's first input character
    mask_NxTxS: jax.Array  # True where a character may attend


def _layer_norm(config: ModelConfig, dtype: DTypeLike) -> nn.LayerNorm:
    """LayerNorm with float32 statistics."""
    return nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, dtype=dtype, use_bias=config.bias)


class CausalSelfAttention(nn.Module):
    """Multi-head attention. Each character attends to itself and to those before it."""

    config: ModelConfig

    def setup(self) -> None:
        n_embd = self.config.n_embd
        self.c_attn = Linear(self.config, n_embd, n_part=3)
        self.c_proj = Linear(self.config, n_embd, residual=True)

    def __call__(
        self, x_BxTxD: jax.Array, cached: LayerCache | None = None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """Attend to the input, or add it to a cache, attend to that and return it as well."""
        n_batch, n_time, _ = x_BxTxD.shape
        shape_BxTxHxK = (n_batch, n_time, self.config.n_head, -1)
        qkv = [part_BxTxD.reshape(shape_BxTxHxK) for part_BxTxD in self.c_attn(x_BxTxD)]
        whole_window = cached is None and n_time == self.config.block_size
        if whole_window and cudnn_attends(self.config):
            y_BxTxHxK = attend_causally_by_cudnn(*qkv)
            return self.c_proj(y_BxTxHxK.reshape(x_BxTxD.shape)), None
        qkv_BxHxTxK = [part.transpose(0, 2, 1, 3) for part in qkv]
        cache = None
        if cached is None:
            y_BxHxTxK = attend_causally(*qkv_BxHxTxK)
        else:
            shape_NxTxK = (-1, n_time, self.config.n_embd // self.config.n_head)
            q_NxTxK, k_NxTxK, v_NxTxK = (part.reshape(shape_NxTxK) for part in qkv_BxHxTxK)
            zero = jnp.int32(0)
            write = jax.vmap(lambda old, new, i: jax.lax.dynamic_update_slice(old, new, (i, zero)))
            cache = (
                write(cached.keys_NxSxK, k_NxTxK, cached.starts_N),
                write(cached.values_NxSxK, v_NxTxK, cached.starts_N),
            )
            y_BxHxTxK = attend(q_NxTxK, *cache, cached.mask_NxTxS).reshape(qkv_BxHxTxK[0].shape)
        return self.c_proj(y_BxHxTxK.transpose(0, 2, 1, 3).reshape(x_BxTxD.shape)), cache


@functools.partial(jax.checkpoint, static_argnums=1)
def _gelu(x: jax.Array, approximate: bool) -> jax.Array:
    """GELU; its gradient recomputes the tanh or erf: faster than storing what it needs."""
    return nn.gelu(x, approximate)


class MLP(nn.Module):
    """Two linear layers with a GELU between them (Hendrycks and Gimpel 2016)."""

    config: ModelConfig

    def setup(self) -> None:
        n_embd = self.config.n_embd
        self.c_fc = Linear(self.config, 4 * n_embd)
        self.c_proj = Linear(self.config, n_embd, residual=True)

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        """Map (B, T, D) to (B, T, D)."""
        return self.c_proj(_gelu(self.c_fc(x_BxTxD), self.config.activation == "gelu_tanh"))


class Block(nn.Module):
    """Pre-LayerNorm attention and MLP, each with a residual connection."""

    config: ModelConfig

    def setup(self) -> None:
        self.ln_1 = _layer_norm(self.config, compute_dtype(self.config))
        self.attn = CausalSelfAttention(self.config)
        self.ln_2 = _layer_norm(self.config, compute_dtype(self.config))
        self.mlp = MLP(self.config)
        self.drop = Dropout(self.config.dropout)

    def __call__(
        self, x_BxTxD: jax.Array, cached: LayerCache | None = None, train: bool = False
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """Map (B, T, D) to (B, T, D). See `CausalSelfAttention` for the rest."""
        # Otherwise XLA takes over the sharding of the parameters, and moves activations instead.
        x_BxTxD = shard_batch(x_BxTxD)
        y_BxTxD, kv = self.attn(self.ln_1(x_BxTxD), cached)
        x_BxTxD = x_BxTxD + self.drop(y_BxTxD, deterministic=not train)
        y_BxTxD = self.mlp(self.ln_2(x_BxTxD))
        return x_BxTxD + self.drop(y_BxTxD, deterministic=not train), kv


def check_ids(ids: Any, vocab_size: int) -> None:
    """Raise a `UserError` if an id is outside the vocabulary."""
    ids = np.asarray(ids)
    if len(bad := ids[(ids < 0) | (ids >= vocab_size)]):
        raise UserError(f"id {bad[0]} is outside the vocabulary's [0, {vocab_size})")


class GPT(nn.Module):
    """The decoder: `__call__` processes whole windows, `extend` continues from a cache."""

    config: ModelConfig
    vocab_size: int

    def __post_init__(self) -> None:
        validate_section("model", self.config)
        super().__post_init__()

    def setup(self) -> None:
        config = self.config
        init = nn.initializers.normal(config.init_stddev)
        self.wte = nn.Embed(self.vocab_size, config.n_embd, embedding_init=init)
        self.wpe = nn.Embed(config.block_size, config.n_embd, embedding_init=init)
        self.drop = Dropout(config.dropout)
        # The third argument, after self, is `train`.
        block_class = nn.remat(Block, static_argnums=(3,)) if config.remat else Block
        self.block = [block_class(config) for _ in range(config.n_layer)]
        self.ln_f = _layer_norm(config, jnp.float32)
        # By default, GPUs would round the operands to TF32.
        self.lm_head = nn.Dense(
            self.vocab_size,
            use_bias=False,
            kernel_init=init,
            dtype=jnp.float32,
            precision=jax.lax.Precision.HIGHEST,
        )

    def __call__(self, idx_BxT: jax.Array, *, train: bool = False) -> jax.Array:
        """Compute the (B, T, V) float32 logits of the next character at every position.

        T is at most block_size. `train` applies dropout, which requires an rng named "dropout".

        Raises:
            UserError: if T is too large or, outside `jit`, an id is not in [0, vocab_size).
        """
        n_time = idx_BxT.shape[1]
        if n_time > self.config.block_size:
            raise UserError(f"{n_time} characters exceed block_size {self.config.block_size}")
        if not isinstance(idx_BxT, jax.core.Tracer):
            check_ids(idx_BxT, self.vocab_size)
        x_BxTxD = self._embed(idx_BxT, jnp.arange(n_time, dtype=jnp.int32)[None])
        x_BxTxD = self.drop(x_BxTxD, deterministic=not train)
        for block in self.block:
            x_BxTxD, _ = block(x_BxTxD, None, train)
        return self.head(x_BxTxD)

    def extend(self, idx_BxT: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
        """Add T characters to each row of a cache, which needs T free slots.

        `head` maps the resulting (B, T, D) to the logits after each; those beyond block_size are
        meaningless. To take padding or rejected characters back, lower the lengths of the cache.
        """
        n_slot, n_position = cache.keys[0].shape[1], self.config.block_size
        slots_BxT = cache.lengths_B[:, None] + jnp.arange(idx_BxT.shape[1], dtype=jnp.int32)[None]
        slots_NxT = jnp.repeat(slots_BxT, self.config.n_head, axis=0)
        mask_NxTxS = jnp.arange(n_slot)[None, None] <= slots_NxT[:, :, None]
        x_BxTxD = self._embed(idx_BxT, jnp.minimum(slots_BxT, n_position - 1))
        layers = []
        for block, keys, values in zip(self.block, cache.keys, cache.values, strict=True):
            cached = LayerCache(keys, values, slots_NxT[:, 0], mask_NxTxS)
            x_BxTxD, kv = block(x_BxTxD, cached, False)  # remat needs all, by position
            layers.append(kv)
        new_keys, new_values = zip(*layers, strict=True)
        new_cache = KVCache(new_keys, new_values, cache.lengths_B + idx_BxT.shape[1])
        return x_BxTxD, new_cache

    def _embed(self, idx: jax.Array, positions: jax.Array) -> jax.Array:
        """Start the residual stream, which has the dtype of activations."""
        return (self.wte(idx) + self.wpe(positions)).astype(compute_dtype(self.config))

    def head(self, x: jax.Array) -> jax.Array:
        """Map (..., D) to (..., V) float32 logits."""
        return self.lm_head(self.ln_f(x))


def init_params(model: GPT, key: jax.Array) -> Any:
    """Initialize the parameters of a model: a pytree of float32 arrays."""
    return model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]


def abstract_params(config: ModelConfig, vocab_size: int) -> Any:
    """Return the parameters of a model as a pytree of `ShapeDtypeStruct`."""
    return jax.eval_shape(lambda: init_params(GPT(config, vocab_size), jax.random.key(0)))


def train_flops_per_character(config: ModelConfig, vocab_size: int) -> float:
    """Count the FLOPs of both passes: 6 per weight, and attention over a whole window.

    So counted by Chowdhery et al. 2022 (PaLM), appendix B.
    """
    weights = config.n_layer * 12 * config.n_embd**2 + vocab_size * config.n_embd
    return 6 * weights + 12 * config.n_layer * config.n_embd * config.block_size
