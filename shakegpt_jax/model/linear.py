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
    """Linear layer. `features` may be a shape, as in `flax.linen.DenseGeneral`."""

    config: ModelConfig
    features: tuple[int, ...]
    residual: bool = False  # writes to the residual stream, and starts smaller (GPT-2, 2.3)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (..., D) to (..., *features)."""
        config, n_out = self.config, math.prod(self.features)
        # Dense contracts rows and positions at once for the gradient of its kernel, and XLA copies
        # an operand first on a CPU. With these axes merged, a train step takes 4 to 13% less.
        x_NxD = x.reshape(-1, x.shape[-1])
        if self.has_variable("params", "transposed_kernel"):
            w_ExD: jax.Array = self.get_variable("params", "transposed_kernel")
            y = _dot(x_NxD.astype(w_ExD.dtype), w_ExD, 1).reshape(-1, *self.features)
        else:
            stddev = config.init_stddev * ((2 * config.n_layer) ** -0.5 if self.residual else 1)
            init = nn.initializers.normal(stddev)
            kernel = self.param("kernel", init, (x.shape[-1], n_out), jnp.float32)
            x_NxD, kernel = nn.dtypes.promote_dtype(x_NxD, kernel, dtype=compute_dtype(config))
            w = kernel.reshape(-1, *self.features)
            if w.ndim == 3:
                # In two steps, each of which XLA can do: take the own columns, then gather them.
                w = constrain(constrain(w, "fsdp", None, "tensor"), None, None, "tensor")
            if mixes_dtypes(config):
                y = _multiply_in_bfloat16(x_NxD, w.reshape(-1, n_out)).reshape(-1, *self.features)
            else:
                y = jnp.tensordot(x_NxD, w, 1)
        bias = self.param("bias", nn.initializers.zeros, (n_out,), jnp.float32)
        bias = bias.reshape(1, *self.features).astype(y.dtype)
        y += constrain(bias, None, None, "tensor") if y.ndim == 3 else bias
        return y.reshape(*x.shape[:-1], *self.features)


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
    """Cast the linear layers of the blocks to the dtype of their products, for decoding.

    They would be cast at every use, for each character; the results are the same. On CPUs their
    kernels are transposed as well, which is twice as fast for a few rows.
    """
    dtype = operand_dtype(config)
    if dtype == jnp.float32:
        return params

    def cast(layer: dict[str, jax.Array]) -> dict[str, jax.Array]:
        if mixes_dtypes(config):
            return {"transposed_kernel": layer["kernel"].astype(dtype).T, "bias": layer["bias"]}
        return jax.tree.map(lambda p: p.astype(dtype), layer)

    def cast_block(name: str, block: dict[str, Any]) -> dict[str, Any]:
        if not name.startswith("block_"):
            return block
        linear = {part: block[part] for part in ("attn", "mlp")}
        return block | jax.tree.map(cast, linear, is_leaf=lambda node: "kernel" in node)

    return {name: cast_block(name, module) for name, module in params.items()}
