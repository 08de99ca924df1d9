"""The least time that a program can take on a GPU."""

import importlib.resources
import re
from typing import NamedTuple

from shakegpt_jax.errors import UserError
from shakegpt_jax.model.flops import peak_flops
from shakegpt_jax.profiling.collectives import Collective
from shakegpt_jax.profiling.hlo import Program, array_bytes

# Bytes per second to the other GPUs of a node, in one direction, from NVIDIA's data sheets.
_NVLINK = {"a100": 300e9, "h100": 450e9, "h200": 450e9}

# They move nothing, or what they call does.
_FREE = {
    "async-start",
    "bitcast",
    "call",
    "conditional",
    "constant",
    "get-tuple-element",
    "parameter",
    "tuple",
    "while",
}


class Gpu(NamedTuple):
    """Figures of a GPU. Rates are per second."""

    kind: str
    target: str  # XLA's description of it, a GpuTargetConfigProto
    flops: float  # of dense bfloat16 matmuls
    memory: int  # bytes
    memory_bandwidth: float
    nvlink: float  # bytes sent within a node


def load_gpu(name: str) -> Gpu:
    """Return the GPU that gpus/<name>.txtpb describes.

    Raises:
        UserError: if there is no such file.
    """
    if name not in _NVLINK:
        raise UserError(f"--gpu is {name!r}; it must be one of {', '.join(_NVLINK)}")
    target = importlib.resources.files(__package__).joinpath("gpus", f"{name}.txtpb").read_text()

    def field(key: str) -> str:
        (value,) = re.findall(rf'\b{key}: "?([^"\n]+)', target)
        return value

    kind = field("device_description_str")
    flops = peak_flops(kind)
    assert flops is not None
    return Gpu(
        kind,
        target,
        flops,
        int(field("device_memory_size")),
        float(field("memory_bandwidth")),
        _NVLINK[name],
    )


def memory_traffic(program: Program) -> int:
    """Count the bytes that the kernels of a program read and write, as if nothing were cached."""
    shapes = {
        each.name: each.shape
        for computation in program.computations.values()
        for each in computation
    }
    total = 0
    for instruction, times in program.executed():
        if instruction.opcode not in _FREE and not instruction.opcode.endswith("-done"):
            read = [n for name in instruction.operands for n in array_bytes(shapes[name])]
            written = array_bytes(instruction.shape)
            if instruction.opcode == "custom-call":  # the rest is space to work in
                written = written[:1]
            total += times * sum(read + written)
    return total


def network_seconds(
    collectives: list[Collective], gpus_per_node: int, nvlink: float, network: float
) -> float:
    """Return the time that collectives take, one after another, in rings.

    Devices of a group that share a node send through all of their network adapters: each ring
    crosses between nodes at another one.

    Args:
        collectives: those of a program.
        gpus_per_node: devices 0 to gpus_per_node - 1 are on the first node, and so on.
        nvlink: bytes per second that a device sends within its node.
        network: bytes per second that it sends to other nodes.
    """
    seconds = 0.0
    for each in collectives:
        nodes = [device // gpus_per_node for device in each.group]
        rate = nvlink
        if len(set(nodes)) > 1:
            rate = min(nvlink, network * nodes.count(nodes[0]))
        seconds += each.bytes_sent / rate
    return seconds
