"""A text as a folder: `ids.bin` to map into memory, and `metadata.json`, which says what they mean.

The metadata is written last: a folder without it is unfinished, and preparing starts over.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from shakegpt_jax.data.text import MAX_CHARACTERS, read_pieces
from shakegpt_jax.data.tokenizer import CharTokenizer, code_points
from shakegpt_jax.errors import UserError

_IDS, _METADATA = "ids.bin", "metadata.json"
_PARTIAL = ".partial"  # suffix of a file that is being written
_FORMAT_VERSION = 1


class PreparedText(NamedTuple):
    """A tokenized text whose ids are in a file."""

    tokenizer: CharTokenizer
    ids: np.ndarray  # (n,) mapped into memory, read-only
    sha256: str  # of the text in UTF-8


def prepare_text(
    books: Sequence[str],
    output: str,
    advance: Callable[[int], object] = lambda n_byte: None,
    report: Callable[[str], object] | None = None,
) -> tuple[PreparedText, bool]:
    """Tokenize text files, joined in the order given, in memory that does not grow with them.

    An interrupted call can be repeated. `advance` gets the number of bytes done, of two passes
    over the text; `report` is that of `read_text`. Returns the text, and whether `output` held it
    already.
    """
    folder = Path(os.path.expanduser(output))
    finished = (folder / _METADATA).exists()
    if not finished:
        _check_unfinished(folder, output)
    vocabulary, digest = _scan(books, advance, report)
    if finished:
        prepared = load_prepared(output)
        if prepared.sha256 != digest:
            raise UserError(f"{output} holds another text; choose another --output, or delete it")
        return prepared, True
    with _create(folder / _IDS) as file:
        ids_digest = _write_ids(books, CharTokenizer(vocabulary), digest, file, advance)
    metadata = {
        "format_version": _FORMAT_VERSION,
        "vocabulary": vocabulary,
        "dtype": np.min_scalar_type(len(vocabulary) - 1).name,  # little-endian
        "text_sha256": digest,
        "ids_sha256": ids_digest,
    }
    metadata["metadata_sha256"] = _digest(metadata)
    with _create(folder / _METADATA) as file:
        file.write(json.dumps(metadata, indent=2).encode())
    return load_prepared(output), False


def _check_unfinished(folder: Path, output: str) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{output} is a file; --output must be a folder")
    files = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if others := sorted(files - {_IDS, _IDS + _PARTIAL, _METADATA + _PARTIAL}):
        raise UserError(f"{output} holds other files ({others[0]}); choose another --output")


def _scan(
    books: Sequence[str],
    advance: Callable[[int], object],
    report: Callable[[str], object] | None,
) -> tuple[str, str]:
    """Return the vocabulary of a text and its SHA-256 in UTF-8."""
    digest, n_character = hashlib.sha256(), 0
    seen = np.zeros(sys.maxunicode + 1, bool)
    for book in books:
        for piece in read_pieces(book, report):
            n_character += len(piece)
            if n_character > MAX_CHARACTERS:
                raise UserError(f"the text has more than {MAX_CHARACTERS:,} characters")
            seen[code_points(piece)] = True
            digest.update(utf8 := piece.encode())
            advance(len(utf8))
    return "".join(map(chr, np.flatnonzero(seen))), digest.hexdigest()


def _write_ids(
    books: Sequence[str],
    tokenizer: CharTokenizer,
    expected: str,
    file: BinaryIO,
    advance: Callable[[int], object],
) -> str:
    """Write the ids of a text to a file and return the SHA-256 of that file."""
    text_digest, ids_digest = hashlib.sha256(), hashlib.sha256()
    for book in books:
        for piece in read_pieces(book):
            ids = tokenizer.encode(piece)
            raw = ids.astype(ids.dtype.newbyteorder("<")).tobytes()
            file.write(raw)
            ids_digest.update(raw)
            text_digest.update(utf8 := piece.encode())
            advance(len(utf8))
    if text_digest.hexdigest() != expected:
        raise UserError("the text has changed while it was read; run the same command again")
    return ids_digest.hexdigest()


@contextlib.contextmanager
def _create(path: Path) -> Iterator[BinaryIO]:
    """Write a file under another name; it is renamed once the `with` block is done and on disk."""
    partial = path.with_name(path.name + _PARTIAL)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = partial.open("ab")
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is writing to {path.parent}") from error
        if not partial.exists() or not os.path.samestat(partial.stat(), os.fstat(file.fileno())):
            raise UserError(f"another process has just written to {path.parent}; try again")
        file.truncate(0)
        yield file
        file.flush()
        os.fsync(file.fileno())
        os.replace(partial, path)  # while the lock is held


def load_prepared(path: str) -> PreparedText:
    """Map a prepared text into memory, after its digests have been verified."""
    folder = Path(os.path.expanduser(path))
    try:
        metadata = json.loads((folder / _METADATA).read_bytes())
        intact = metadata.pop("metadata_sha256") == _digest(metadata)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is a folder; give a UTF-8 text file, or a folder that "
            "`shakegpt prepare` has finished"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise UserError(f"{folder / _METADATA} is corrupt, or not that of a prepared text")
    if (version := metadata["format_version"]) > _FORMAT_VERSION:
        raise UserError(f"{path} has format version {version}; upgrade shakegpt_jax")
    ids_path = folder / _IDS
    try:
        with ids_path.open("rb") as file:
            intact = hashlib.file_digest(file, "sha256").hexdigest() == metadata["ids_sha256"]
    except FileNotFoundError as error:
        raise UserError(f"{ids_path} is missing; delete the folder and prepare it again") from error
    if not intact:
        raise UserError(
            f"{ids_path} is corrupt or incomplete; delete the folder and prepare it again"
        )
    dtype = np.dtype(metadata["dtype"]).newbyteorder("<")
    ids = np.memmap(ids_path, dtype, mode="r")
    return PreparedText(CharTokenizer(metadata["vocabulary"]), ids, metadata["text_sha256"])


def _digest(metadata: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(metadata).encode()).hexdigest()
