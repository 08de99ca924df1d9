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

# What `torch.save` and `pickle.dump` write for such data. The opcodes that make objects of a class
# or import names that the file computes are not among them.
_OPCODES = frozenset(
    getattr(pickle, name)[0]
    for name in """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE
    SHORT_BINUNICODE EMPTY_DICT SETITEM SETITEMS EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1
    TUPLE2 TUPLE3 BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL REDUCE BUILD BINPERSID
    """.split()  # noqa: SIM905
)

_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}


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
        allowed: what stands for each global name ("collections.OrderedDict"): a text, or a function
            with a fixed number of arguments that does not hash them. Nothing is imported.
        persistent_load: maps a persistent id to an object; None: there are none.

    Raises:
        UserError: if the pickle asks for anything else, is corrupt, or is too long.
    """
    if len(data) > _MOST_BYTES:
        raise UserError(f"{name} has a pickle of {len(data):,} bytes; at most {_MOST_BYTES:,} work")
    unpickler = _Unpickler(io.BytesIO(data))
    unpickler.name, unpickler.allowed = name, allowed
    unpickler.on_persistent_id = persistent_load
    try:
        return unpickler.load()
    except UserError:
        raise
    except Exception as error:  # a corrupt pickle can raise nearly any type
        raise UserError(f"{name} is corrupt: {type(error).__name__} in its pickle") from error


class _Dispatch(dict[int, Callable[[Any], None]]):
    """The functions of the opcodes that are read, by opcode."""

    def __missing__(self, opcode: int) -> Callable[[Any], None]:
        def refuse(unpickler: Any) -> None:
            used = _NAMES.get(opcode, f"the opcode {opcode}")
            raise UserError(
                f"{unpickler.name} is refused: its pickle uses {used}, as data does not"
            )

        return refuse


class _Unpickler(pickle._Unpickler):
    """Python's unpickler, which looks up the function of each opcode, with fewer of them.

    The one in C has all opcodes, hashes any key, and allocates as much as the file claims.
    """

    name: str
    allowed: Mapping[str, Any]
    on_persistent_id: Callable[[Any], Any] | None
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    dispatch = _Dispatch(
        (opcode, load) for opcode, load in pickle._Unpickler.dispatch.items() if opcode in _OPCODES
    )

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

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise UserError(f"{self.name} is refused: its pickle changes what is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashing nested tuples can overflow the stack of C or never end; large integers can be
            # chosen to have the same hash.
            if not (type(key) is str or (type(key) is int and 0 <= key < 2**32)):
                raise UserError(
                    f"{self.name} is refused: its pickle has a key of type {type(key).__name__}; "
                    "texts and integers from 0 to 2**32 - 1 work"
                )
            target[key] = value

    def _load_setitem(self) -> None:
        items = self.stack[-2:]
        del self.stack[-2:]
        self._set_items(items)

    def _load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def _load_build(self) -> None:
        """Drop the attributes of a dict, such as `_metadata`."""
        self.stack.pop()
        if type(self.stack[-1]) is not dict:
            raise UserError(f"{self.name} is refused: its pickle sets attributes, as data does not")

    dispatch[pickle.SETITEM[0]] = _load_setitem
    dispatch[pickle.SETITEMS[0]] = _load_setitems
    dispatch[pickle.BUILD[0]] = _load_build
