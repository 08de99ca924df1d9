"""Reading pickled data without executing what a pickle may ask for.

A pickle is a program for a small machine: it can import any name and call it. `load_pickle` reads
only numbers, texts, lists, tuples, dicts, and calls of the names that its caller lists.
"""

import io
import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

from shakegpt_jax.errors import UserError

_MOST_BYTES = 2**26  # a checkpoint of 1,000 layers has about 4 million

# What `torch.save` and `pickle.dump` write for such data. The opcodes that allocate as much as the
# file claims, or that make objects of a class, are not among them.
_OPCODES = """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE
    SHORT_BINUNICODE EMPTY_DICT SETITEM SETITEMS EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1
    TUPLE2 TUPLE3 BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL REDUCE BUILD BINPERSID
""".split()  # noqa: SIM905


def load_pickle(
    data: bytes,
    name: str,
    allowed: Mapping[str, Any],
    persistent_load: Callable[[Any], Any] | None = None,
) -> Any:
    """Load a pickle that holds plain data and calls of listed names.

    Args:
        data: the pickle.
        name: where it is from, for error messages.
        allowed: what stands for each global name ("collections.OrderedDict"). Nothing is imported.
        persistent_load: maps a persistent id to an object; None: there are none.

    Raises:
        UserError: if the pickle asks for anything else, is corrupt, or is too long.
    """
    if len(data) > _MOST_BYTES:
        raise UserError(f"{name} has a pickle of {len(data):,} bytes; at most {_MOST_BYTES:,} work")
    unpickler = _Unpickler(io.BytesIO(data), encoding="utf-8")
    unpickler.name, unpickler.allowed = name, allowed
    unpickler.on_persistent_id = persistent_load
    try:
        _check_opcodes(data, name)
        return unpickler.load()
    except UserError:
        raise
    except (MemoryError, Exception) as error:  # a corrupt pickle can raise nearly any type
        raise UserError(f"{name} is corrupt: {type(error).__name__} in its pickle") from error


def _check_opcodes(data: bytes, name: str) -> None:
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if opcode.name not in _OPCODES:
            raise UserError(f"{name} is refused: its pickle uses {opcode.name}, as data does not")
        # Memory is allocated for all slots up to this one.
        if opcode.name == "LONG_BINPUT" and (argument or 0) > count:
            raise UserError(f"{name} is corrupt: its pickle numbers an object {argument:,}")


class _Unpickler(pickle.Unpickler):
    """Replaces every global name by what the caller allows for it."""

    name: str
    allowed: Mapping[str, Any]
    on_persistent_id: Callable[[Any], Any] | None

    def find_class(self, module: str, name: str) -> Any:
        """Look up a listed name; nothing is imported."""
        if (found := self.allowed.get(f"{module}.{name}")) is None:
            raise UserError(
                f"{self.name} is refused: its pickle asks for {f'{module}.{name}'[:80]!r}, "
                "which could execute code"
            )
        return found

    def persistent_load(self, pid: Any) -> Any:
        """Look up an object that is stored outside of the pickle."""
        if self.on_persistent_id is None:
            raise UserError(f"{self.name} is refused: its pickle refers to data outside of it")
        return self.on_persistent_id(pid)
