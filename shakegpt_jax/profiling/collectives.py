"""The collectives of a compiled program, read from its HLO."""

import math
import re
from typing import NamedTuple

_INSTRUCTION = re.compile(
    r"= (?P<shape>\(.*?\)|\S+) "
    r"(?P<kind>all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?P<start>-start)?\("
)
_ARRAY = re.compile(r"\b(?P<dtype>[a-z]+)(?P<bits>\d*)\[(?P<sizes>[\d,]*)\]")


class Collective(NamedTuple):
    """One collective of a program."""

    kind: str  # "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"
    n_byte: int  # of its result, on one device
    n_device: int  # that take part together

    @property
    def bytes_sent(self) -> float:
        """Bytes that each device sends in a ring (all-to-all: directly)."""
        share = (self.n_device - 1) / self.n_device
        factor = {"all-reduce": 2 * share, "reduce-scatter": self.n_device - 1}
        return self.n_byte * (
            1.0 if self.kind == "collective-permute" else factor.get(self.kind, share)
        )


def find_collectives(hlo: str, n_device: int) -> list[Collective]:
    """List the collectives of a program; those in a loop's body count once.

    Args:
        hlo: `compiled.as_text()`.
        n_device: devices of the program.
    """
    found = []
    for line in hlo.splitlines():
        if match := _INSTRUCTION.search(line):
            arrays = [_n_byte(array) for array in _ARRAY.finditer(match["shape"])]
            if match["start"] and match["kind"] != "all-reduce":  # operands, then results
                arrays = arrays[len(arrays) // 2 :]
            found.append(Collective(match["kind"], sum(arrays), _group_size(line, n_device)))
    return found


def _n_byte(array: re.Match[str]) -> int:
    bits = 8 if array["dtype"] == "pred" else int(array["bits"] or 0)
    return math.prod(int(size) for size in array["sizes"].split(",") if size) * bits // 8


def _group_size(line: str, n_device: int) -> int:
    """Return how many devices take part together. HLO has three notations for groups."""
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):  # [groups, devices per group]
        return int(match[1])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):  # {{0,1},{2,3}}
        return match[1].count(",") + 1
    # mesh['a'=8,'b'=2] {'b'}: the groups lie along the axis b.
    if match := re.search(r"replica_groups=mesh\[(.*?)\].*? \{([^}]*)\}", line):
        sizes = dict(re.findall(r"('\w+')=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'\w+'", match[2]))
    return n_device
