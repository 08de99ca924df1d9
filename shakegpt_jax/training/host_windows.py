"""Windows of a text that stays on the host, one chunk of steps ahead of training.

Axes: K steps, B windows per batch, T characters per window.
"""

import itertools
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from shakegpt_jax.config import Config
from shakegpt_jax.data.windows import gather_on_host
from shakegpt_jax.parallel.dispatch import in_background
from shakegpt_jax.parallel.mesh import batches_sharding
from shakegpt_jax.training.randomness import window_starts


class HostWindows:
    """Draws the windows that a chunk would draw from the text on the device."""

    def __init__(self, config: Config, ids: np.ndarray, mesh: Mesh):
        """Describe the windows.

        Args:
            config: frozen config.
            ids: (n,) the training text.
            mesh: the devices to put the windows on.
        """
        self._data, self._block_size = config.data, config.model.block_size
        self._ids, self._seed = ids, np.int32(config.train.seed)
        self._sharding = batches_sharding(mesh)

    def abstract(self, n: int) -> jax.ShapeDtypeStruct:
        """Return shape, type and sharding of the windows of a chunk of n steps."""
        shape = (n, self._data.batch_size, self._block_size + 1)
        return jax.ShapeDtypeStruct(shape, self._ids.dtype, sharding=self._sharding)

    def chunks(self, step: int, lengths: list[int]) -> Iterator[jax.Array]:
        """Yield the (K, B, T + 1) windows of chunks of some lengths, the first one at a step."""
        firsts = itertools.accumulate(lengths, initial=step)
        return in_background(self._gather, firsts, lengths)

    def _gather(self, step: int, n: int) -> jax.Array:
        with jax.default_device(_cpu()):  # an accelerator would first finish the chunk it runs
            steps_K = np.arange(step, step + n, dtype=np.int32)
            n_ids, data, block_size = len(self._ids), self._data, self._block_size
            starts_KxB = np.asarray(window_starts(self._seed, steps_K, n_ids, data, block_size))
        # A process gathers only the rows of its own devices.
        return jax.make_array_from_callback(
            self.abstract(n).shape,
            self._sharding,
            lambda index: gather_on_host(
                self._ids,
                starts_KxB[index[:2]],  # type: ignore[index]  # never None
                self._block_size,
            ),
        )


def _cpu() -> jax.Device | None:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        return None
