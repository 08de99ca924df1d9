"""The matrix product of linear layers, with a faster gradient."""

from typing import Any

import jax


def dot_general(x: jax.Array, w_DxE: jax.Array, dimension_numbers: Any, **_: Any) -> jax.Array:
    """Multiply (..., D) by (D, E): a `dot_general` for `flax.linen.Dense`.

    Dense contracts rows and positions at once for the gradient of its kernel. On a CPU, XLA then
    copies an operand into another layout first. With these axes merged there is no copy, and a
    train step takes 4 to 13% less.
    """
    assert dimension_numbers == (((x.ndim - 1,), (0,)), ((), ()))
    y_NxE = x.reshape(-1, x.shape[-1]) @ w_DxE
    return y_NxE.reshape(*x.shape[:-1], w_DxE.shape[1])
