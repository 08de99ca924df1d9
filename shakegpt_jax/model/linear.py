"""Linear layers of the blocks: dtypes of their products, and the forms that are fast on CPUs.

Axes: N rows and positions, merged, D inputs, E outputs.
"""

import functools
import math
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from shakegpt_jax.config import ModelConfig
from shakegpt_jax.sharding import constrain


def compute_dtype(config: ModelConfig) -> DTypeLike:
    """Return the dtype of activations: of the results of matmuls, and of keys and values."""
    return jnp.bfloat16 if _precision(config) == "bfloat16" else jnp.float32


def operand_dtype(config: ModelConfig) -> DTypeLike:
    """Return the dtype to which linear layers round their operands."""
    return jnp.float32 if _precision(config) == "float32" else jnp.bfloat16


def mixes_dtypes(config: ModelConfig) -> bool:
    """Return whether linear layers multiply bfloat16 operands into float32 results."""
    return _precision(config) == "bf16_bf16_f32"


def describe_dtypes(config: ModelConfig) -> str:
    """Return the dtypes of matmuls in words, such as "bfloat16 into float32"."""
    dtypes = operand_dtype(config), compute_dtype(config)
    return " into ".join(dict.fromkeys(jnp.dtype(dtype).name for dtype in dtypes))


def _precision(config: ModelConfig) -> str:
    if config.compute_dtype != "auto":
        return config.compute_dtype
    if jax.default_backend() != "cpu":
        return "bfloat16"
    return "bf16_bf16_f32" if has_amx() else "float32"


@functools.cache
def has_amx() -> bool:
    """Return whether this CPU has matrix units for bfloat16: Intel's AMX."""
    # Not a trial: noise would decide what a seed writes, and processes of one run could differ.
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return False


class Linear(nn.Module):
    """Linear layer. Its kernel holds `n_part` matrices side by side, like c_attn of GPT-2."""

    config: ModelConfig
    features: int
    n_part: int = 1
    residual: bool = False  # writes to the residual stream, and starts smaller (GPT-2, 2.3)

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        """Map (..., D) to (..., E), or to a list with one such array per part."""
        config, n_part, n_out = self.config, self.n_part, self.n_part * self.features
        shape = (n_part, self.features) if n_part > 1 else (self.features,)
        # Dense contracts rows and positions at once for the gradient of its kernel, and XLA copies
        # an operand first on a CPU. With these axes merged, a train step takes 4 to 13% less.
        x_NxD = x.reshape(-1, x.shape[-1])
        if self.has_variable("params", "transposed_kernel"):
            w_ExD: jax.Array = self.get_variable("params", "transposed_kernel")
            x_NxD = x_NxD.astype(w_ExD.dtype)
            y = _dot(x_NxD, w_ExD, 1) if mixes_dtypes(config) else jnp.dot(x_NxD, w_ExD.T)
        else:
            stddev = config.init_stddev * ((2 * config.n_layer) ** -0.5 if self.residual else 1)
            init = nn.initializers.normal(stddev)
            kernel = self.param("kernel", init, (x.shape[-1], n_out), jnp.float32)
            x_NxD, kernel = nn.dtypes.promote_dtype(x_NxD, kernel, dtype=compute_dtype(config))
            w = kernel.reshape(-1, *shape)
            if n_part > 1 and w.dtype == jnp.bfloat16 and not config.bias:
                operands = zip(_unmerged(x_NxD, n_part), jnp.split(w, n_part, 1), strict=True)
                products = (jnp.tensordot(x_NxD, _gather(w), 1) for x_NxD, w in operands)
                return [y.reshape(*x.shape[:-1], self.features) for y in products]
            if mixes_dtypes(config):
                y = _multiply_in_bfloat16(x_NxD, _gather(w).reshape(-1, n_out))
            else:
                y = jnp.tensordot(x_NxD, _gather(w), 1)
        y = y.reshape(-1, *shape)
        if config.bias:
            bias = self.param("bias", nn.initializers.zeros, (n_out,), jnp.float32)
            bias = bias.reshape(1, *shape).astype(y.dtype)
            y += constrain(bias, None, None, "tensor") if n_part > 1 else bias
        if n_part == 1:
            return y.reshape(*x.shape[:-1], self.features)
        parts = jnp.split(y.reshape(*x.shape[:-1], *shape), n_part, axis=-2)
        return [part.reshape(*x.shape[:-1], self.features) for part in parts]


def _gather(w: jax.Array) -> jax.Array:
    """Gather parts of a kernel, (D, parts, E), but for the columns of other devices' heads."""
    if w.ndim < 3:
        return w
    # In two steps, each of which XLA can do: take the own columns, then gather them.
    return constrain(constrain(w, "fsdp", None, "tensor"), None, None, "tensor")


# XLA on GPUs merges products with a common operand, and would then copy queries, keys and values to
# where cuDNN reads them: 1.1 of 16 ms of a step of configs/base.py (predicted for an H100).
@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _unmerged(x: jax.Array, n: int) -> tuple[jax.Array, ...]:
    copies: tuple[jax.Array, ...] = jax.lax.optimization_barrier((x,) * n)
    return copies


def _unmerged_bwd(n: int, _: None, dys: tuple[jax.Array, ...]) -> tuple[jax.Array]:
    # cuBLAS adds in this order, and not if the sum comes first.
    return (functools.reduce(lambda total, dy: dy + total, dys),)


_unmerged.defvjp(lambda x, n: (_unmerged(x, n), None), _unmerged_bwd)


# XLA on CPUs hands (bfloat16, bfloat16) -> float32 to YNNPACK, and so to AMX, if both operands have
# more than one row, and the left one is contracted over its last axis (xla/backends/cpu/
# ynn_support.cc). All else it computes in float32, ten times slower for a single row.


@jax.custom_vjp
def _multiply_in_bfloat16(x_NxD: jax.Array, w_DxE: jax.Array) -> jax.Array:
    return _multiply_fwd(x_NxD, w_DxE)[0]


def _multiply_fwd(x_NxD: jax.Array, w_DxE: jax.Array) -> tuple[jax.Array, Any]:
    # Without the barrier, the backward pass casts again.
    x_NxD = jax.lax.optimization_barrier(x_NxD.astype(jnp.bfloat16))
    w_DxE = w_DxE.astype(jnp.bfloat16)
    return _dot(x_NxD, w_DxE, 0), (x_NxD, w_DxE)


def _multiply_bwd(residuals: tuple[jax.Array, jax.Array], dy_NxE: jax.Array) -> Any:
    x_NxD, w_DxE = residuals
    dy_NxE = dy_NxE.astype(jnp.bfloat16)
    # First blocks of 64 rows, which the nearest cache holds, then their order. Transposed at once,
    # a step of configs/cpu.py takes 14.4 ms instead of 10.1 on two cores.
    n_row, n_in = x_NxD.shape
    block = math.gcd(n_row, 64)
    x_MxDx64 = jax.lax.optimization_barrier(x_NxD.reshape(-1, block, n_in).swapaxes(1, 2))
    x_DxN = x_MxDx64.swapaxes(0, 1).reshape(n_in, n_row)
    return _dot(dy_NxE, w_DxE, 1), _dot(x_DxN, dy_NxE, 0)


_multiply_in_bfloat16.defvjp(_multiply_fwd, _multiply_bwd)


def _dot(a: jax.Array, b: jax.Array, axis: int) -> jax.Array:
    """Contract the last axis of `a` with an axis of `b`, into float32."""
    if len(a) == 1:
        return _dot(jnp.concatenate([a, a]), b, axis)[:1]
    numbers = (((1,), (axis,)), ((), ()))
    return jax.lax.dot_general(a, b, numbers, preferred_element_type=jnp.float32)


def cast_blocks(params: Any, config: ModelConfig) -> Any:
    """Cast and transpose the kernels of the blocks, once, for decoding.

    They would be cast for each character; the results are the same. Transposed, products with a few
    rows take half the time on CPUs, and read half as many bytes on GPUs.
    """
    dtype = operand_dtype(config)
    if dtype == jnp.float32:
        return params

    def cast(path: tuple[str, ...], param: jax.Array) -> tuple[tuple[str, ...], jax.Array]:
        if path[0].startswith("block_") and path[-1] == "kernel":
            return (*path[:-1], "transposed_kernel"), param.astype(dtype).T
        return path, param

    return unflatten_dict(dict(cast(*each) for each in flatten_dict(params).items()))
