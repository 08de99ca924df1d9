"""The collectives of a compiled program, read from its HLO."""

import re
from typing import NamedTuple

import numpy as np

from shakegpt_jax.profiling.hlo import Program, array_bytes

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
        n_device = len(self.group)
        share = (n_device - 1) / n_device
        factor = {
            "all-reduce": 2 * share,
            "reduce-scatter": n_device - 1,
            "collective-permute": 1.0,
        }
        return self.n_byte * factor.get(self.kind, share)


def find_collectives(program: Program, n_device: int) -> list[Collective]:
    """List the collectives of a program, each as often as it runs.

    Args:
        program: the program of one device.
        n_device: devices that run it.
    """
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
