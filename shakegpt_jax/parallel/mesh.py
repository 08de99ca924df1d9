"""Device mesh and sharding rules.

The mesh has two axes. The batch is sharded over both, parameters and optimizer state over `fsdp`
alone. One device is the smallest mesh, not a special case. All devices belong to one process.
"""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from shakegpt_jax.config import Config
from shakegpt_jax.errors import UserError

_BATCH_AXES = ("data", "fsdp")


def make_mesh(config: Config) -> Mesh:
    """Build the mesh that the config asks for, from the first available devices.

    Raises:
        UserError: if there are too few devices or the batch size is not a multiple of them.
    """
    n_device, fsdp = jax.device_count(), config.mesh.fsdp
    if config.mesh.data == -1 and n_device % fsdp:
        raise UserError(
            f"config.mesh.fsdp is {fsdp}; it must divide the {n_device} devices, "
            "or set config.mesh.data to the number of devices to use"
        )
    data = n_device // fsdp if config.mesh.data == -1 else config.mesh.data
    if data * fsdp > n_device:
        raise UserError(
            f"config.mesh asks for {data} x {fsdp} devices and there are {n_device}; "
            f"data times fsdp must be at most {n_device}"
        )
    if config.data.batch_size % (data * fsdp):
        raise UserError(
            f"config.data.batch_size is {config.data.batch_size}; "
            f"it must be a multiple of the {data * fsdp} devices that config.mesh uses"
        )
    return _mesh(data, fsdp)


def shard_state(mesh: Mesh, abstract_state: Any) -> Any:
    """Shard each matrix over `fsdp`, along its longest divisible axis; replicate the rest.

    Args:
        mesh: device mesh.
        abstract_state: pytree of `ShapeDtypeStruct`.

    Returns:
        The same pytree with a `NamedSharding` in each leaf.
    """
    fsdp = mesh.shape["fsdp"]

    def shard(array: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        axes = [axis for axis, size in enumerate(array.shape) if size % fsdp == 0]
        spec = P()
        if fsdp > 1 and len(array.shape) >= 2 and axes:
            longest = max(axes, key=lambda axis: array.shape[axis])
            spec = P(*(None,) * longest, "fsdp")
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(shard, abstract_state)


def on_one_device(abstract_state: Any) -> Any:
    """Add to each `ShapeDtypeStruct` of a pytree the sharding of the first device alone."""
    return shard_state(_mesh(1, 1), abstract_state)


def replicate(mesh: Mesh, array: Any) -> jax.Array:
    """Copy an array to every device of a mesh."""
    return jax.device_put(array, NamedSharding(mesh, P()))


def shard_batch(batch: Any) -> Any:
    """Inside jit, shard the first axis of a batch over all devices of the current mesh.

    Without a mesh, or where the axis is not divisible, the batch is returned unchanged.
    """
    n_device = jax.sharding.get_abstract_mesh().size

    def constrain(array: jax.Array) -> jax.Array:
        if n_device <= 1 or array.shape[0] % n_device:
            return array
        return jax.lax.with_sharding_constraint(array, P(_BATCH_AXES))

    return jax.tree.map(constrain, batch)


def _mesh(data: int, fsdp: int) -> Mesh:
    devices = jax.devices()[: data * fsdp]
    # Linen modules do not support explicit axes, the default of make_mesh.
    auto = (AxisType.Auto,) * 2
    return jax.make_mesh((data, fsdp), _BATCH_AXES, axis_types=auto, devices=devices)
