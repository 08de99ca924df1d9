"""Device mesh and arrays on it, peak speed of devices, and dispatch ahead of them.

The mesh has three axes. The batch is sharded over `data` and `fsdp`. Parameters and optimizer state
are sharded over `fsdp` (Rajbhandari et al. 2020, ZeRO stage 3), and the blocks' matrices also over
`tensor` (Shoeybi et al. 2019, Megatron-LM). One device is the smallest mesh, not a special case.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from shakegpt_jax.config import Config
from shakegpt_jax.errors import UserError

_AXES = ("data", "fsdp", "tensor")
_BATCH_AXES = ("data", "fsdp")

_Axis = str | tuple[str, ...] | None  # mesh axes that one dimension is sharded over


def make_mesh(config: Config, devices: list[jax.Device] | None = None) -> Mesh:
    """Build the mesh that the config asks for from the first devices (None: of all processes)."""
    devices = jax.devices() if devices is None else devices
    sizes = {axis: getattr(config.mesh, axis) for axis in _AXES}
    asked = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
    uses_all = -1 in sizes.values() or jax.process_count() > 1
    given = math.prod(size for size in sizes.values() if size != -1)
    sizes = {k: len(devices) // given if v == -1 else v for k, v in sizes.items()}
    n_device = math.prod(sizes.values())
    if n_device > len(devices) or (uses_all and n_device < len(devices)):
        raise UserError(
            f"config.mesh asks for {asked} devices and there are {len(devices)}; "
            f"the product must be {'' if uses_all else 'at most '}{len(devices)}"
        )
    n_part = sizes["data"] * sizes["fsdp"] * config.train.accumulate_steps
    if config.data.batch_size % n_part:
        raise UserError(
            f"config.data.batch_size is {config.data.batch_size}; it must be a multiple of "
            f"{n_part}, the product of mesh.data, mesh.fsdp and train.accumulate_steps"
        )
    if config.model.n_head % sizes["tensor"]:
        raise UserError(
            f"config.mesh.tensor is {sizes['tensor']}; it must divide "
            f"config.model.n_head ({config.model.n_head})"
        )
    # Neighbors, which have the fastest links, share the axes that communicate most.
    return _mesh(sorted(devices, key=lambda device: device.id)[:n_device], *sizes.values())


def shard_state(
    mesh: Mesh, abstract_state: Any, axes_of: Callable[[Any], tuple[_Axis, ...]] = lambda path: ()
) -> Any:
    """Attach a sharding to each `ShapeDtypeStruct` of a pytree; `axes_of(path)` are its mesh axes.

    A dimension that its axis does not divide is not sharded.
    """

    def shard(path: Any, array: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        axes, spec = axes_of(path), P()
        if len(axes) == len(array.shape):
            spec = P(*map(functools.partial(_fit, mesh), axes, array.shape))
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(shard, abstract_state)


def _fit(mesh: Mesh | AbstractMesh, axis: _Axis, size: int) -> _Axis:
    names = (axis,) if isinstance(axis, str) else axis or ()
    return None if size % math.prod(mesh.shape[name] for name in names) else axis


def on_one_device(abstract_state: Any) -> Any:
    """Add to each `ShapeDtypeStruct` of a pytree the sharding of the first device alone."""
    return shard_state(_mesh(jax.local_devices()[:1], 1, 1, 1), abstract_state)


def replicate(mesh: Mesh, array: Any) -> jax.Array:
    """Copy an array, the same in all processes, to every device of a mesh."""
    sharding = NamedSharding(mesh, P())
    # device_put would compare the array among processes.
    return jax.make_array_from_callback(
        np.shape(array), sharding, lambda index: np.asarray(array)[index]
    )


def gather(mesh: Mesh, arrays: Any) -> Any:
    """Copy a pytree of sharded arrays to the first device of each process, whole."""
    if mesh.size == 1:
        return arrays
    whole = jax.device_put(arrays, NamedSharding(mesh, P()))
    return jax.tree.map(lambda array: array.addressable_data(0), whole)


def batch_devices() -> int:
    """Return over how many devices of the current mesh `shard_batch` shards."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape.get(axis, 1) for axis in _BATCH_AXES)


def shard_batch(batch: Any) -> Any:
    """Inside jit, shard the first axis of each array over `data` and `fsdp`."""
    return jax.tree.map(lambda array: constrain(array, _BATCH_AXES), batch)


def batches_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of several batches in one array, over its second axis."""
    return NamedSharding(mesh, P(None, _BATCH_AXES))


def constrain(array: jax.Array, *axes: _Axis) -> jax.Array:
    """Inside jit, shard the first dimensions of an array; the others are replicated.

    Without a mesh, or where a dimension is not divisible, the array is returned unchanged.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:
        return array
    if [*map(functools.partial(_fit, mesh), axes, array.shape)] != [*axes]:
        return array
    return jax.lax.with_sharding_constraint(array, P(*axes))


def _mesh(devices: list[jax.Device], *sizes: int) -> Mesh:
    # Linen modules do not support explicit axes. jax.make_mesh refuses devices of several hosts.
    auto = (AxisType.Auto,) * len(sizes)
    return Mesh(np.array(devices).reshape(sizes), _AXES, axis_types=auto)


T = TypeVar("T")


def one_ahead(results: Iterable[T]) -> Iterator[T]:
    """Yield each result after the next one; `next(results)` dispatches work and does not wait."""
    for result, _ in itertools.pairwise(itertools.chain(results, [None])):
        yield result  # type: ignore[misc]  # the padding None is never yielded


def in_background(function: Callable[..., T], *arguments: Iterable[Any]) -> Iterator[T]:
    """Map a function as `map` does, in a thread that computes the next result ahead.

    The caller's thread draws the arguments, one call ahead.
    """
    with ThreadPoolExecutor(1) as thread:
        calls = zip(*arguments, strict=False)
        for future in one_ahead(thread.submit(function, *each) for each in calls):
            yield future.result()


# Dense bfloat16 matmul peaks in FLOP/s, from the vendors' data sheets.
_PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}


def peak_flops(device_kind: str) -> float | None:
    """Return the bfloat16 peak of a kind of device in FLOP/s, or None if it is not known."""
    words = device_kind.replace("-", " ").split()
    return next((_PEAK_FLOPS[word] for word in words if word in _PEAK_FLOPS), None)
