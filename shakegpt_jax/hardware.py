"""What a device can do at most, and how long a step must take on it."""

import time

import jax
import jax.numpy as jnp

# Dense bfloat16 matmul peaks in FLOP/s, from the vendors' data sheets.
_PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """Return a device's bfloat16 peak in FLOP/s, or None where it is not known."""
    return next((peak for name, peak in _PEAK_FLOPS.items() if name in device.device_kind), None)


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
