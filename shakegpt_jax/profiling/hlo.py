"""The instructions of a compiled program, read from its HLO text."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(
    r" +(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<shape>\(.*?\)|\S+) (?P<opcode>[\w-]+)"
    r"\((?P<operands>[^)]*)\)(?P<attributes>.*)"
)
_ARRAY = re.compile(r"\b(?P<dtype>[a-z]+)(?P<bits>\d*)\w*\[(?P<sizes>[\d,]*)\]")
# Instructions that run other computations step by step. A fusion is one kernel.
_CALLERS = ("while", "call", "conditional", "async-start")


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    shape: str  # of the result
    opcode: str
    operands: list[str]  # names of instructions; a parameter has its number
    attributes: str

    @property
    def called(self) -> list[str]:
        """Names of the computations that this one calls."""
        branches = re.search(r"branch_computations=\{(.*?)\}", self.attributes)
        return re.findall(
            r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.-]+)",
            self.attributes,
        ) + re.findall(r"[\w.-]+", branches[1] if branches else "")


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
                operands = re.findall(r"%([\w.-]+)|^(\d+)$", match["operands"])
                instructions.append(
                    Instruction(
                        match["name"],
                        match["shape"],
                        match["opcode"],
                        [name or number for name, number in operands],
                        match["attributes"],
                    )
                )

    def executed(self) -> Iterator[tuple[Instruction, int]]:
        """Yield each instruction that runs, outside of fusions, and how often it does."""
        return self._executed(self._entry, 1)

    def _executed(self, computation: str, times: int) -> Iterator[tuple[Instruction, int]]:
        for each in self.computations[computation]:
            yield each, times
            if each.opcode in _CALLERS:
                trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', each.attributes)
                called = each.called
                if (
                    each.opcode == "conditional"
                ):  # the longest branch, such as an update not skipped
                    called = [max(called, key=lambda name: len(self.computations[name]))]
                for name in called:
                    yield from self._executed(name, times * int(trips[1] if trips else 1))


def array_bytes(shape: str) -> list[int]:
    """Return the bytes of each array in a shape, which may be a tuple: "(f32[2,3], pred[])"."""
    return [
        math.prod(int(size) for size in array["sizes"].split(",") if size)
        * (8 if array["dtype"] == "pred" else int(array["bits"] or 0))
        // 8
        for array in _ARRAY.finditer(shape)
    ]
