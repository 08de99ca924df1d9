"""Timing functions, and the speed limits of the default device."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.typing import DTypeLike

REPEATS = 5


def median_seconds(run: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Time a function and wait for its result; a first run, which compiles, is not counted."""
    jax.block_until_ready(run())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure_ceilings(dtype: DTypeLike) -> dict[str, float]:
    """Measure `flops_per_second` and `bytes_per_second` of the default device.

    The first is that of a large matmul. The second is the faster of a large copy (bytes read and
    written) and a large matrix-vector product (bytes read).
    """
    on_cpu = jax.default_backend() == "cpu"
    size, rows = (2_048, 2**13) if on_cpu else (8_192, 2**16)
    # To dispatch a call and to wait for it takes 0.5 ms on an NVIDIA H200, as long as the copy.
    # Calls in a row overlap with it.
    n_call = 1 if on_cpu else 10
    keys = jax.random.split(jax.random.key(0))
    # Random numbers: some devices multiply zeros faster.
    square = jax.random.normal(keys[0], (size, size), dtype)
    large = jax.random.normal(keys[1], (rows, 2**13), dtype)
    vector = large[0]

    def copy() -> jax.Array:
        nonlocal large
        large = _negate(large)
        return large

    def seconds(run: Callable[[], jax.Array]) -> float:
        def run_all() -> jax.Array:
            for _ in range(n_call):
                result = run()
            return result

        return median_seconds(run_all) / n_call

    reading = large.nbytes / seconds(lambda: _multiply(large, vector))
    copying = 2 * large.nbytes / seconds(copy)
    return {
        "flops_per_second": 2 * size**3 / seconds(lambda: _multiply(square, square)),
        "bytes_per_second": max(reading, copying),
    }


@jax.jit
def _multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    return a @ b


@functools.partial(jax.jit, donate_argnums=0)
def _negate(a: jax.Array) -> jax.Array:
    return -a
