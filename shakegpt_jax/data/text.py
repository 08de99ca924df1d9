"""Reading text: the bundled Tiny Shakespeare or a UTF-8 file."""

import codecs
import contextlib
import hashlib
import importlib.metadata
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from shakegpt_jax.errors import UserError

TINY_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
_PIECE_BYTES = 2**20  # of text decoded at a time

MAX_CHARACTERS = 2**31 - 1  # of a text: the starts of windows are int32


def tiny_shakespeare() -> str:
    """Return Tiny Shakespeare: 1,115,394 characters, 65 of them distinct.

    The wheel of dm-sonnet, a dependency for this reason alone, carries the text as three data
    files. None of its code is imported. Source of the text: Andrej Karpathy, char-rnn.

    Raises:
        UserError: if the files are missing or differ from the original.
    """
    remedy = "reinstall it: pip install --force-reinstall --no-deps dm-sonnet==1.23"
    parts = [f"sonnet/examples/data/ts.{part}.txt" for part in ("train", "valid", "test")]
    try:
        wheel = importlib.metadata.distribution("dm-sonnet")
        raw = b"".join(Path(str(wheel.locate_file(part))).read_bytes() for part in parts)
    except (importlib.metadata.PackageNotFoundError, OSError) as error:
        raise UserError(f"Tiny Shakespeare is not installed ({error}); {remedy}") from error
    if hashlib.sha256(raw).hexdigest() != TINY_SHAKESPEARE_SHA256:
        raise UserError(f"the installed Tiny Shakespeare is corrupt (wrong SHA-256); {remedy}")
    return raw.decode()


def read_text(path: str) -> str:
    r"""Read a UTF-8 text file. Drops a byte-order mark; `\r\n` and `\r` become `\n`.

    Args:
        path: the file; empty for Tiny Shakespeare.

    Raises:
        UserError: if the file does not exist, cannot be read, is empty or is not UTF-8.
    """
    if not path:
        return tiny_shakespeare()
    with open_text(path) as file:
        raw = file.read()
    return decode_text(raw, path)


def read_pieces(path: str) -> Iterator[str]:
    """Read a UTF-8 text file as `read_text` does, in pieces of bounded size.

    Raises:
        UserError: see `read_text`.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    newlines = io.IncrementalNewlineDecoder(decoder, translate=True)
    n_character, ended = 0, False
    with open_text(path) as file:
        while not ended:
            raw = file.read(_PIECE_BYTES)
            ended = not raw
            try:
                piece = newlines.decode(raw, final=ended)
            except UnicodeDecodeError as error:  # its object ends where the file was read to
                raise _not_utf8(path, error, file.tell() - len(error.object)) from error
            n_character += len(piece)
            yield piece
    if not n_character:
        raise UserError(f"{path} is empty; give UTF-8 text")


@contextlib.contextmanager
def open_text(path: str) -> Iterator[BinaryIO]:
    """Open a text file for reading bytes.

    Raises:
        UserError: if the file does not exist or cannot be read.
    """
    try:
        file = Path(path).expanduser()
        if file.exists() and not (
            file.is_file() or file.is_dir()
        ):  # reading a device may never finish
            raise UserError(f"{path} is not a regular file; give a UTF-8 text file")
        with file.open("rb") as opened:
            yield opened
    except FileNotFoundError as error:
        raise UserError(f"no such file: {path}; give a UTF-8 text file") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder; give a UTF-8 text file") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (RuntimeError, UnicodeEncodeError) as error:  # ~nobody/x, a lone surrogate
        raise UserError(f"cannot read {path!r}: {error}") from error


def decode_text(raw: bytes, name: str) -> str:
    """Decode UTF-8 text as `read_text` does.

    Args:
        raw: the bytes.
        name: where they are from, for error messages.

    Raises:
        UserError: if they are empty or not UTF-8.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(name, error, len(raw) - len(error.object)) from error
    if not text:
        raise UserError(f"{name} is empty; give UTF-8 text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _not_utf8(name: str, error: UnicodeDecodeError, offset: int) -> UserError:
    where = f"byte {offset + error.start} (0x{error.object[error.start]:02x})"
    return UserError(f"{name} is not UTF-8: {error.reason} at {where}")
