r"""Reading text: the bundled Tiny Shakespeare or a UTF-8 file.

One rule for every file: a byte-order mark at its start is dropped, the line endings `\r\n` and
`\r` become `\n`, and every other character is kept.
"""

import codecs
import hashlib
import importlib.metadata
import io
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from shakegpt_jax.errors import UserError

TINY_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
_PIECE_BYTES = 2**20  # of text decoded at a time
_MARK = "\ufeff"  # the byte-order mark


def tiny_shakespeare() -> str:
    """Return Tiny Shakespeare (Andrej Karpathy, char-rnn): 1,115,394 characters, 65 distinct.

    The wheel of dm-sonnet carries it as three data files. None of its code is imported.
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


def read_text(path: str, report: Callable[[str], object] | None = None) -> str:
    """Read a UTF-8 text file, or Tiny Shakespeare if `path` is empty.

    `report` is called with a line if something was changed or looks wrong.
    """
    return "".join(read_pieces(path, report)) if path else tiny_shakespeare()


def read_pieces(path: str, report: Callable[[str], object] | None = None) -> Iterator[str]:
    """Read a UTF-8 text file as `read_text` does, in pieces of bounded size."""
    try:
        file = Path(os.path.expanduser(path))
        if file.exists() and not (file.is_file() or file.is_dir()):  # a device may never end
            raise UserError(f"{path} is not a regular file; give a UTF-8 text file")
        with file.open("rb") as opened:
            yield from _decode(iter(lambda: opened.read(_PIECE_BYTES), b""), path, report)
    except FileNotFoundError as error:
        raise UserError(f"no such file: {path}; give a UTF-8 text file") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder; give a UTF-8 text file") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def decode_text(raw: bytes, name: str) -> str:
    """Decode UTF-8 text as `read_text` does; `name` says where it is from."""
    return "".join(_decode([raw], name))


def _decode(
    pieces: Iterable[bytes], name: str, report: Callable[[str], object] | None = None
) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    n_byte = n_character = n_line_end = n_null = 0
    started = marked = False
    for raw in itertools.chain(pieces, [b""]):  # the last one ends the text
        n_byte += len(raw)
        try:
            text = decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:  # its object ends where the pieces do
            at = n_byte - len(error.object) + error.start
            what = f"{error.reason} at byte {at} (0x{error.object[error.start]:02x})"
            raise UserError(f"{name} is not UTF-8: {what}") from error
        if text and not started:
            started, marked = True, text[0] == _MARK
            text = text.removeprefix(_MARK)
        n_line_end += raw.count(b"\r")
        n_null += raw.count(b"\0")
        text = newlines.decode(text, final=not raw)
        n_character += len(text)
        yield text
    if not n_character:
        raise UserError(f"{name} is empty; give UTF-8 text")
    changes = [f"{n_line_end:,} \\r\\n or \\r became \\n"] if n_line_end else []
    changes += ["the byte-order mark at the start was dropped"] if marked else []
    changes += [f"it has {n_null:,} null characters: is it UTF-16?"] if n_null else []
    if report and changes:
        report(f"{name}: {', '.join(changes)}")
