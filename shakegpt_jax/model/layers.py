"""Dropout, and what is known of each parameter: its sharding, and what exporters accept."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from shakegpt_jax.config import ModelConfig
from shakegpt_jax.errors import UserError


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) that draws 8 random bits per element, not 32: less time.

    The rate is rounded to a multiple of 1/256, and what is kept is scaled accordingly.
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


# Mesh axis of each dimension, by the names of the layer and the parameter. Embeddings and head are
# replicated: a vocabulary of characters is small.
_AXES: dict[str, tuple[str | None, ...]] = {
    "c_attn/kernel": ("fsdp", None),  # its columns are not in the order of the heads
    "c_fc/kernel": ("fsdp", "tensor"),
    "c_fc/bias": ("tensor",),
    "c_proj/kernel": ("tensor", "fsdp"),
}


def parameter_axes(path: jax.tree_util.KeyPath) -> tuple[str | None, ...]:
    """Return the mesh axes of a parameter, or of a moment of it; () if it is replicated."""
    return _AXES.get(jax.tree_util.keystr(path[-2:], simple=True, separator="/"), ())


def is_block_matrix(path: jax.tree_util.KeyPath, param: jax.Array) -> bool:
    """Return whether a parameter is a kernel of the blocks, which Muon updates."""
    return param.ndim == 2 and jax.tree_util.keystr(path[:1], simple=True).startswith("block_")


# What exporters, the page and the report know: the fields of the config, and the parameters.
_FIELDS = {"n_layer", "n_head", "n_embd", "block_size", "activation"}
_FIELDS |= {"dropout", "init_stddev", "compute_dtype", "remat", "bias"}
_PARAMETERS = ("wte/embedding", "wpe/embedding", "lm_head/kernel")
_NORMS, _MATRICES = ("ln_1", "ln_2"), ("attn/c_attn", "attn/c_proj", "mlp/c_fc", "mlp/c_proj")


def gpt2_parameters(config: ModelConfig, params: Any, what: str) -> dict[str, Any]:
    """Return all parameters of a model that computes what GPT-2 does, by path.

    A model without biases gets biases of zero. One with a field, even at its default, or a
    parameter that `what` would ignore is refused.
    """
    for name, value in dataclasses.asdict(config).items():
        if name not in _FIELDS:
            raise UserError(f"config.model.{name} is {value!r:.80}; {what} does not support it")
    weights = {"ln_f": "scale"}  # of each layer with a bias
    for i in range(config.n_layer):
        weights |= {f"block_{i}/{name}": "scale" for name in _NORMS}
        weights |= {f"block_{i}/{name}": "kernel" for name in _MATRICES}
    paths = {*_PARAMETERS, *(f"{layer}/{weight}" for layer, weight in weights.items())}
    if config.bias:
        paths |= {f"{layer}/bias" for layer in weights}
    found = dict(flatten_dict(params, sep="/"))
    if different := paths ^ found.keys():
        raise UserError(f"{what} and the model differ in the parameter {min(different)}")
    sizes = {layer: found[f"{layer}/{weight}"].shape[-1] for layer, weight in weights.items()}
    return {f"{layer}/bias": np.zeros(size, np.float32) for layer, size in sizes.items()} | found
