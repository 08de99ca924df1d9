"""A compiled program: its instructions, its collectives, and the least time it takes on a GPU."""

import importlib.resources
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from shakegpt_jax.errors import UserError
from shakegpt_jax.sharding import peak_flops

_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(
    r" +(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<shape>\(.*?\)|\S+) (?P<opcode>[\w-]+)"
    r"\((?P<operands>[^)]*)\)(?P<attributes>.*)"
)
_ARRAY = re.compile(r"\b(?P<dtype>[a-z]+)(?P<bits>\d*)\w*\[(?P<sizes>[\d,]*)\]")
# Instructions that run other computations step by step. A fusion is one kernel.
_CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.-]+)")
_CALLERS = ("while", "call", "conditional", "async-start")


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    shape: str  # of the result
    opcode: str
    operands: list[str]  # names of instructions; a parameter has its number
    attributes: str


class Program:
    """The computations of a program by name."""

    def __init__(self, hlo: str):
        """Read the text of `compiled.as_text()`."""
        self.computations: dict[str, list[Instruction]] = {}
        for line in hlo.splitlines():
            if match := _COMPUTATION.match(line):
                instructions = self.computations.setdefault(match["name"], [])
                if match["entry"]:
                    self._entry = match["name"]
            elif match := _INSTRUCTION.match(line):
                found = re.findall(r"%([\w.-]+)|^(\d+)$", match["operands"])
                operands = [name or number for name, number in found]
                instructions.append(Instruction(**match.groupdict() | {"operands": operands}))

    def executed(self, name: str = "", times: int = 1) -> Iterator[tuple[Instruction, int]]:
        """Yield each instruction that runs, outside of fusions, and how often it does."""
        for each in self.computations[name or self._entry]:
            yield each, times
            if each.opcode not in _CALLERS:
                continue
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', each.attributes)
            called = _CALLED.findall(each.attributes)
            if branches := re.search(r"branch_computations=\{(.*?)\}", each.attributes):
                called = re.findall(r"[\w.-]+", branches[1])
            if each.opcode == "conditional":  # the longest branch, such as an update not skipped
                called = [max(called, key=lambda name: len(self.computations[name]))]
            for inner in called:
                yield from self.executed(inner, times * int(trips[1] if trips else 1))


def array_bytes(shape: str) -> list[int]:
    """Return the bytes of each array in a shape, which may be a tuple: "(f32[2,3], pred[])"."""
    return [
        math.prod(int(size) for size in array["sizes"].split(",") if size)
        * (8 if array["dtype"] == "pred" else int(array["bits"] or 0))
        // 8
        for array in _ARRAY.finditer(shape)
    ]


_KIND = re.compile(
    "(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?P<start>-start)?"
)


class Collective(NamedTuple):
    """One collective of a program."""

    kind: str  # "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"
    n_byte: int  # of its result, on one device
    group: tuple[int, ...]  # the devices that take part together; other groups are alike

    @property
    def bytes_sent(self) -> float:
        """Bytes that each device sends in a ring (all-to-all: directly)."""
        n = len(self.group)
        others = {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1, "collective-permute": 1}
        return self.n_byte * others.get(self.kind, (n - 1) / n)

    def seconds(self, gpus_per_node: int, nvlink: float, network: float) -> float:
        """Return the time of a ring, from the bytes/s to GPUs of the node and of other nodes.

        GPUs of a group that share a node send through all of their network adapters: each ring
        crosses between nodes at another one.
        """
        nodes = [device // gpus_per_node for device in self.group]
        crosses = len(set(nodes)) > 1
        rate = min(nvlink, network * nodes.count(nodes[0])) if crosses else nvlink
        return self.bytes_sent / rate


def find_collectives(program: Program, n_device: int) -> list[Collective]:
    """List the collectives of a program that `n_device` run, each as often as it runs."""
    found = []
    for instruction, times in program.executed():
        if match := _KIND.fullmatch(instruction.opcode):
            arrays = array_bytes(instruction.shape)
            if match["start"] and match[1] != "all-reduce":  # operands, then results
                arrays = arrays[len(arrays) // 2 :]
            group = _first_group(instruction.attributes, n_device)
            found += [Collective(match[1], sum(arrays), group)] * times
    return found


def _first_group(attributes: str, n_device: int) -> tuple[int, ...]:
    """Return the devices of the first group. HLO has three notations for groups."""
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):  # {{0,1},{2,3}}
        return tuple(_integers(match[1]))
    # [groups, devices per group]<=[n] or, with the devices in another order, <=[a,b]T(1,0).
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]<=(\S+)", attributes):
        return tuple(_order(match[2]).flat[: int(match[1])].tolist())
    # mesh['a'=8,'b'=2] {'b'}: the groups lie along the axis b.
    if match := re.search(r"replica_groups=mesh\[(.*?)\](.*?) \{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"('\w+')=(\d+)", match[1]))
        devices = np.arange(n_device)
        if order := re.search(r"device_ids=\((\[.*\S*)\)", match[2]):
            devices = _order(order[1])
        own = tuple(slice(None) if axis in match[3] else 0 for axis in sizes)
        return tuple(devices.reshape([*map(int, sizes.values())])[own].ravel().tolist())
    return tuple(range(n_device))


def _order(text: str) -> np.ndarray:
    """Return the devices in the order that "[2,4]T(1,0)" denotes: of a transposed array."""
    sizes, _, axes = text.partition("T")
    devices = np.arange(np.prod(_integers(sizes))).reshape(_integers(sizes))
    return devices.transpose(_integers(axes)) if axes else devices


def _integers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


# Bytes per second to the other GPUs of a node, in one direction, from NVIDIA's data sheets.
_NVLINK = {"a100": 300e9, "h100": 450e9, "h200": 450e9}

# No memory traffic of their own: they only rename values or run other computations.
_FREE = {*_CALLERS, "bitcast", "constant", "get-tuple-element", "parameter", "tuple"}


class Gpu(NamedTuple):
    """Figures of a GPU. Rates are per second."""

    kind: str
    target: str  # XLA's description of it, a GpuTargetConfigProto
    flops: float  # of dense bfloat16 matmuls
    memory: int  # bytes
    memory_bandwidth: float
    nvlink: float  # bytes sent within a node


def load_gpu(name: str) -> Gpu:
    """Return the GPU that gpus/<name>.txtpb describes."""
    if name not in _NVLINK:
        raise UserError(f"--gpu is {name!r}; it must be one of {', '.join(_NVLINK)}")
    target = importlib.resources.files(__package__).joinpath("gpus", f"{name}.txtpb").read_text()

    def field(key: str) -> str:
        (value,) = re.findall(rf'\b{key}: "?([^"\n]+)', target)
        return value

    kind = field("device_description_str")
    flops = peak_flops(kind)
    assert flops is not None
    memory, bandwidth = int(field("device_memory_size")), float(field("memory_bandwidth"))
    return Gpu(kind, target, flops, memory, bandwidth, _NVLINK[name])


def memory_traffic(program: Program) -> int:
    """Count the bytes that the kernels of a program read and write, as if nothing were cached."""
    shapes = {each.name: each.shape for some in program.computations.values() for each in some}
    total = 0
    for instruction, times in program.executed():
        if instruction.opcode not in _FREE and not instruction.opcode.endswith("-done"):
            read = [n for name in instruction.operands for n in array_bytes(shapes[name])]
            written = array_bytes(instruction.shape)
            if instruction.opcode == "custom-call":  # the rest is space to work in
                written = written[:1]
            total += times * sum(read + written)
    return total
