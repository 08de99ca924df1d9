"""Reading files of `torch.save` with NumPy alone: a zip archive of a pickle and of raw arrays.

The format is that of PyTorch 1.6 and later. The pickle is read as data, see `load_pickle`.
"""

import math
import os
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from shakegpt_jax.errors import UserError
from shakegpt_jax.interop.restricted_pickle import load_pickle
from shakegpt_jax.interop.stored_array import StoredArray, open_regular

# Only the first three are read; a checkpoint may hold others in its optimizer state and buffers.
_DTYPES = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_READABLE = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
_ENCRYPTED = 1  # a flag of a file in an archive


class _Storage(NamedTuple):
    """Raw numbers in a file of the archive, which several tensors may share."""

    dtype: str
    key: str  # name of the file
    size: int  # numbers


class Tensor(NamedTuple):
    """A tensor that a pickle describes. Whatever the pickle claims is checked on reading."""

    storage: Any
    offset: Any
    shape: Any
    stride: Any


def _empty_dict() -> dict[Any, Any]:
    """Stand for `OrderedDict`, whose items follow as opcodes; `dict` itself would hash any key."""
    return {}


def _rebuild_tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    requires_grad: Any,
    hooks: Any,
    metadata: Any = None,
) -> Tensor:
    """Stand for `torch._utils._rebuild_tensor_v2`."""
    return Tensor(storage, offset, shape, stride)


class TorchFile:
    """An open file of `torch.save`.

    Attributes:
        content: what was saved, with `Tensor`s in place of tensors.
    """

    def __init__(self, archive: zipfile.ZipFile, name: str):
        self._archive, self._name = archive, name
        pickles = [each for each in archive.namelist() if each.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError(f"{name} is not a file of torch.save: it has no data.pkl")
        self._prefix = pickles[0].removesuffix("data.pkl")
        order = self._prefix + "byteorder"
        if order in archive.namelist() and self._read("byteorder") != b"little":
            raise UserError(f"{name} has big-endian numbers; save it again on another machine")
        allowed = {f"torch.{storage}": dtype for storage, dtype in _DTYPES.items()} | {
            "collections.OrderedDict": _empty_dict,
            "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
        }
        self.content = load_pickle(self._read("data.pkl"), name, allowed, _storage)

    def array(self, tensor: Tensor, label: str) -> StoredArray:
        """Describe a tensor as an array.

        Args:
            tensor: it.
            label: its name, for error messages.

        Raises:
            UserError: if it is not a contiguous part of its storage, or not of floats.
        """
        storage, offset, shape, stride = tensor
        if not (
            isinstance(storage, _Storage)
            and isinstance(shape, tuple)
            and isinstance(stride, tuple)
            and all(type(n) is int and 0 <= n < 2**40 for n in (offset, *shape, *stride))
            and len(shape) == len(stride) <= 4
        ):
            raise UserError(f"{self._name} is corrupt: {label} is not a tensor")
        if storage.dtype not in _READABLE:
            right = "float32, float16 or bfloat16"
            raise UserError(f"{self._name}: {label} is {storage.dtype}; it must be {right}")
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        aligned = all(a == b or n == 1 for n, a, b in zip(shape, stride, strides, strict=True))
        if not aligned or offset + math.prod(shape) > storage.size:
            raise UserError(f"{self._name}: {label} is not a contiguous part of its storage")
        return StoredArray(shape, lambda: self._values(storage, offset, shape))

    def _values(self, storage: _Storage, offset: int, shape: tuple[int, ...]) -> np.ndarray:
        dtype = np.dtype(_READABLE[storage.dtype])
        raw = self._read(f"data/{storage.key}")
        if len(raw) != storage.size * dtype.itemsize:
            raise UserError(
                f"{self._name} is corrupt: data/{storage.key} has {len(raw):,} bytes, not "
                f"{storage.size:,} x {dtype.itemsize}"
            )
        values = np.frombuffer(raw, dtype, math.prod(shape), offset * dtype.itemsize)
        if storage.dtype == "bfloat16":  # the upper half of a float32
            return (values.astype(np.uint32) << 16).view(np.float32).reshape(shape)
        return values.astype(np.float32).reshape(shape)

    def _read(self, name: str) -> bytes:
        """Read a file of the archive; what it claims is checked before memory is allocated."""
        try:
            entry = self._archive.getinfo(self._prefix + name)
        except KeyError as error:
            raise UserError(f"{self._name} is corrupt: it lacks {name}") from error
        stored = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & _ENCRYPTED
        if not stored or entry.file_size != entry.compress_size:
            raise UserError(f"{self._name} is corrupt: torch.save would not compress {name}")
        with _corruption_as_user_error(self._name):
            return self._archive.read(entry)


@contextmanager
def open_torch_file(path: str) -> Iterator[TorchFile]:
    """Open a file of `torch.save` and read its pickle.

    Raises:
        UserError: if it is not such a file, is corrupt, or asks for anything that is not data.
    """
    with open_regular(path) as file:
        with _corruption_as_user_error(path):
            archive = zipfile.ZipFile(file)
        size = os.fstat(file.fileno()).st_size
        if (claimed := sum(entry.file_size for entry in archive.infolist())) > size:
            raise UserError(f"{path} is corrupt: it claims {claimed:,} bytes and has {size:,}")
        yield TorchFile(archive, path)


@contextmanager
def _corruption_as_user_error(path: str) -> Iterator[None]:
    """Translate the errors of `zipfile`."""
    try:
        yield
    except zipfile.BadZipFile as error:
        right = "give nanoGPT's ckpt.pt, as torch.save writes it since PyTorch 1.6"
        raise UserError(f"{path} is not a whole zip archive ({error}); {right}") from error
    except (EOFError, NotImplementedError, UnicodeError, struct.error) as error:
        raise UserError(f"{path} is corrupt: {error or 'it ends early'}") from error


def _storage(pid: Any) -> _Storage:
    """Read a persistent id: ("storage", type, key, device, number of elements)."""
    kind, dtype, key, _, size = pid
    if kind != "storage" or dtype not in _DTYPES.values() or not isinstance(key, str):
        raise ValueError("not a storage")
    if type(size) is not int or not 0 <= size < 2**40:
        raise ValueError("not a size")
    return _Storage(dtype, key, size)
