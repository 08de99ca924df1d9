"""The decoder-only Transformer, with GPT-2's conventions (Radford et al. 2019).

Axes: B rows, T characters, S cache slots, D = n_embd, H heads, K = D / H, F = 4 D,
V vocabulary.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from shakegpt_jax.config import ModelConfig

_EPSILON = 1e-5  # of LayerNorm


class KVCache(NamedTuple):
    """Keys and values of the characters read so far, one array per layer.

    One array per layer, not one stacked array: XLA would copy a layer out of a stack at every
    decoded character. Heads before slots: with slots first, XLA transposes the cache at every
    character, and 32 rows decode 1.6 times slower on a CPU.
    """

    keys: tuple[jax.Array, ...]  # n_layer of (B, H, S, K)
    values: tuple[jax.Array, ...]  # n_layer of (B, H, S, K)
    lengths_B: jax.Array  # (B,) int32, characters that each row has read: its next slot


def compute_dtype(config: ModelConfig) -> DTypeLike:
    """Return the type of the matmuls' operands; "auto" depends on the default device."""
    if config.compute_dtype != "auto":
        return jnp.dtype(config.compute_dtype)
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


def init_cache(config: ModelConfig, batch_size: int) -> KVCache:
    """Make an empty cache of block_size slots for `batch_size` rows."""
    shape = (batch_size, config.n_head, config.block_size, config.n_embd // config.n_head)
    empty = jnp.zeros(shape, compute_dtype(config))
    layers = (empty,) * config.n_layer
    return KVCache(layers, layers, jnp.zeros(batch_size, jnp.int32))


def _init(config: ModelConfig, scale: float = 1.0) -> nn.initializers.Initializer:
    return nn.initializers.normal(config.init_stddev * scale)


def _dense(features: int, config: ModelConfig, *, residual: bool = False) -> nn.Dense:
    """A linear layer; those that write into the residual stream start smaller (GPT-2, 2.3)."""
    init = _init(config, (2 * config.n_layer) ** -0.5 if residual else 1.0)
    return nn.Dense(features, dtype=compute_dtype(config), kernel_init=init)


def _layer_norm(config: ModelConfig) -> nn.LayerNorm:
    """Statistics in float32; the result in the matmuls' type."""
    return nn.LayerNorm(epsilon=_EPSILON, dtype=compute_dtype(config))


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a character sees itself and those before it."""

    config: ModelConfig

    def setup(self) -> None:
        self.c_attn = _dense(3 * self.config.n_embd, self.config)
        self.c_proj = _dense(self.config.n_embd, self.config, residual=True)

    def __call__(
        self,
        x_BxTxD: jax.Array,
        mask_BxTxS: jax.Array,
        cached: tuple[jax.Array, jax.Array] | None = None,
        starts_B: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Attend over the input itself, or over a cache that it is first written into.

        Args:
            x_BxTxD: input.
            mask_BxTxS: True where a character may look; B may be 1. Without a cache S is T.
            cached: one layer's keys and values, (B, H, S, K) each.
            starts_B: slot of each row's first input character; needed with `cached`.

        Returns:
            (B, T, D), and the keys and values attended over.
        """
        n_head, head_dim = self.config.n_head, self.config.n_embd // self.config.n_head
        qkv_BxTx3xHxK = self.c_attn(x_BxTxD).reshape(*x_BxTxD.shape[:2], 3, n_head, head_dim)
        q_BxHxTxK, k_BxHxSxK, v_BxHxSxK = qkv_BxTx3xHxK.transpose(2, 0, 3, 1, 4)
        if cached is not None:
            write = jax.vmap(lambda old, new, i: jax.lax.dynamic_update_slice(old, new, (0, i, 0)))
            k_BxHxSxK = write(cached[0], k_BxHxSxK, starts_B)
            v_BxHxSxK = write(cached[1], v_BxHxSxK, starts_B)
        scores_BxHxTxS = jnp.einsum(
            "bhtk,bhsk->bhts", q_BxHxTxK, k_BxHxSxK, preferred_element_type=jnp.float32
        )
        scores_BxHxTxS = jnp.where(
            mask_BxTxS[:, None], scores_BxHxTxS * head_dim**-0.5, jnp.finfo(jnp.float32).min
        )
        weights_BxHxTxS = jax.nn.softmax(scores_BxHxTxS).astype(v_BxHxSxK.dtype)
        y_BxTxHxK = jnp.einsum("bhts,bhsk->bthk", weights_BxHxTxS, v_BxHxSxK)
        return self.c_proj(y_BxTxHxK.reshape(x_BxTxD.shape)), (k_BxHxSxK, v_BxHxSxK)


class MLP(nn.Module):
    """Two linear layers around GELU (the tanh approximation)."""

    config: ModelConfig

    def setup(self) -> None:
        self.c_fc = _dense(4 * self.config.n_embd, self.config)
        self.c_proj = _dense(self.config.n_embd, self.config, residual=True)

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        """Map (B, T, D) to (B, T, D), each character for itself."""
        return self.c_proj(nn.gelu(self.c_fc(x_BxTxD), approximate=True))


class Block(nn.Module):
    """Attention and MLP, each behind a LayerNorm and added to its input."""

    config: ModelConfig

    def setup(self) -> None:
        self.ln_1 = _layer_norm(self.config)
        self.attn = CausalSelfAttention(self.config)
        self.ln_2 = _layer_norm(self.config)
        self.mlp = MLP(self.config)
        self.drop = nn.Dropout(self.config.dropout)

    def __call__(
        self,
        x_BxTxD: jax.Array,
        mask_BxTxS: jax.Array,
        cached: tuple[jax.Array, jax.Array] | None = None,
        starts_B: jax.Array | None = None,
        *,
        train: bool = False,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Map (B, T, D) to (B, T, D); arguments and second result as in the attention."""
        y_BxTxD, kv = self.attn(self.ln_1(x_BxTxD), mask_BxTxS, cached, starts_B)
        x_BxTxD = x_BxTxD + self.drop(y_BxTxD, deterministic=not train)
        y_BxTxD = self.mlp(self.ln_2(x_BxTxD))
        return x_BxTxD + self.drop(y_BxTxD, deterministic=not train), kv


class GPT(nn.Module):
    """The decoder: `__call__` reads windows whole, `extend` reads on from a cache."""

    config: ModelConfig
    vocab_size: int

    def setup(self) -> None:
        config = self.config
        init = _init(config)
        self.wte = nn.Embed(self.vocab_size, config.n_embd, embedding_init=init)
        self.wpe = nn.Embed(config.block_size, config.n_embd, embedding_init=init)
        self.drop = nn.Dropout(config.dropout)
        self.block = [Block(config) for _ in range(config.n_layer)]
        self.ln_f = nn.LayerNorm(epsilon=_EPSILON, dtype=jnp.float32)
        self.lm_head = nn.Dense(
            self.vocab_size, use_bias=False, kernel_init=init, dtype=jnp.float32
        )

    def __call__(self, idx_BxT: jax.Array, *, train: bool = False) -> jax.Array:
        """Predict the character after each one.

        Args:
            idx_BxT: integer ids, T at most block_size.
            train: apply dropout; needs an rng named "dropout".

        Returns:
            (B, T, V) float32 logits.

        Raises:
            ValueError: if T exceeds block_size.
        """
        n_time = idx_BxT.shape[1]
        if n_time > self.config.block_size:
            raise ValueError(f"{n_time} characters do not fit block_size {self.config.block_size}")
        x_BxTxD = self.wte(idx_BxT) + self.wpe(jnp.arange(n_time)[None])
        x_BxTxD = self.drop(x_BxTxD, deterministic=not train)
        mask_1xTxT = jnp.tril(jnp.ones((1, n_time, n_time), bool))
        for block in self.block:
            x_BxTxD, _ = block(x_BxTxD, mask_1xTxT, train=train)
        return self.lm_head(self.ln_f(x_BxTxD))

    def extend(
        self, idx_BxT: jax.Array, cache: KVCache, new_B: jax.Array | None = None
    ) -> tuple[jax.Array, KVCache]:
        """Read on from a cache, and predict the character after the last one read.

        Args:
            idx_BxT: integer ids, each row's new characters from the left.
            cache: what came before; every row needs T free slots, padding included.
            new_B: how many of a row's T ids are characters, the rest being padding; None: T.

        Returns:
            (B, V) float32 logits, and the cache with the new characters in it.
        """
        n_time, n_slot = idx_BxT.shape[1], cache.keys[0].shape[2]
        starts_B = cache.lengths_B
        new_B = jnp.full_like(starts_B, n_time) if new_B is None else new_B
        slots_BxT = starts_B[:, None] + jnp.arange(n_time)[None]
        mask_BxTxS = jnp.arange(n_slot)[None, None] <= slots_BxT[:, :, None]
        x_BxTxD = self.wte(idx_BxT) + self.wpe(slots_BxT)
        layers = []
        for block, keys, values in zip(self.block, cache.keys, cache.values, strict=True):
            x_BxTxD, kv = block(x_BxTxD, mask_BxTxS, (keys, values), starts_B)
            layers.append(kv)
        last_Bx1x1 = (new_B - 1)[:, None, None]
        x_BxD = jnp.take_along_axis(x_BxTxD, last_Bx1x1, axis=1)[:, 0]
        new_keys, new_values = zip(*layers, strict=True)
        new_cache = KVCache(new_keys, new_values, starts_B + new_B)
        return self.lm_head(self.ln_f(x_BxD)), new_cache


def init_params(model: GPT, key: jax.Array) -> Any:
    """Draw a model's first parameters: a pytree of float32 arrays."""
    return model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]


def train_flops_per_character(config: ModelConfig, vocab_size: int) -> float:
    """Count the FLOPs that training spends on one character, forward and backward.

    Six per matmul weight, and the attention's two products over a whole window, as counted by
    Chowdhery et al. 2022 (PaLM), appendix B.
    """
    weights = config.n_layer * 12 * config.n_embd**2 + vocab_size * config.n_embd
    return 6 * weights + 12 * config.n_layer * config.n_embd * config.block_size
