"""The matrix product of linear layers, with a faster gradient.

Axes: D inputs, E outputs; any axes may come before them.
"""

from typing import Any

import jax


def dot_general(x: jax.Array, w_DxE: jax.Array, dimension_numbers: Any, **_: Any) -> jax.Array:
    """Stand in for `jax.lax.dot_general` in `flax.linen.Dense`, which asks for x @ w alone."""
    assert dimension_numbers == (((x.ndim - 1,), (0,)), ((), ()))
    return _matmul(x, w_DxE)


@jax.custom_vjp
def _matmul(x: jax.Array, w_DxE: jax.Array) -> jax.Array:
    """Multiply (..., D) by (D, E).

    JAX derives the gradient of w as the transpose of dy.T @ x, for which XLA copies dy in another
    layout on a CPU. Without that, a train step takes 1 to 3% less.
    """
    return x @ w_DxE


def _forward(x: jax.Array, w_DxE: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _matmul(x, w_DxE), (x, w_DxE)


def _backward(operands: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w_DxE = operands
    rows = tuple(range(x.ndim - 1))
    dw_DxE = jax.lax.dot_general(x, dy, ((rows, rows), ((), ())))
    return dy @ w_DxE.T, dw_DxE


_matmul.defvjp(_forward, _backward)
