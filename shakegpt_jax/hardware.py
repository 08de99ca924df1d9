"""What a device can do at most."""

import time

import jax
import jax.numpy as jnp

# Dense bfloat16 matmul peaks in FLOP/s, from the vendors' data sheets.
_PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """Return a device's bfloat16 peak in FLOP/s, or None where it is not known."""
    words = device.device_kind.replace("-", " ").split()
    return next((_PEAK_FLOPS[word] for word in words if word in _PEAK_FLOPS), None)


def measure_matmul_flops(size: int = 1024, repeats: int = 5) -> float:
    """Measure the FLOP/s of a square float32 matmul on the default device; the best of several."""
    a = jax.random.normal(jax.random.key(0), (size, size))
    matmul = jax.jit(jnp.dot)
    matmul(a, a).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        matmul(a, a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
