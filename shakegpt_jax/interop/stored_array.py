"""Files of others: arrays whose shapes are known before they are read."""

import dataclasses
import io
import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from shakegpt_jax.errors import UserError

_LARGEST_JSON = 2**26  # bytes; a tokenizer of a million characters has about 20 million


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array that a file describes."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]  # the values as float32, of this shape


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a file for reading bytes.

    Raises:
        UserError: if it does not exist, is not a regular file or cannot be read.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe may never finish
            raise UserError(f"{path} is not a regular file")
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # a null byte
        raise UserError(f"cannot read {str(path)!r}: {error}") from error


def read_bounded(path: str | os.PathLike[str], most: int) -> bytes:
    """Read a file of at most `most` bytes.

    Raises:
        UserError: see `open_regular`; also if it is longer.
    """
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise UserError(f"{path} has more than {most:,} bytes, so it is not such a file")
    return data


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: see `read_bounded`; also if the file is not a JSON object in UTF-8.
    """
    try:
        content = json.loads(read_bounded(path, _LARGEST_JSON))
    except (RecursionError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object")
    return content
