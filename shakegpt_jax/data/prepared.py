"""A text as a folder: `ids.bin` to map into memory, and `metadata.json`, which says what they mean.

The metadata is written last: a folder without it is unfinished, and preparing starts over.
"""

import hashlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shakegpt_jax.data.text import read_pieces
from shakegpt_jax.data.tokenizer import CharTokenizer, code_points
from shakegpt_jax.errors import UserError, os_errors_name

_IDS, _METADATA = "ids.bin", "metadata.json"
_PARTIAL = "metadata.json.partial"  # renamed when it is complete
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
    text_digest, seen = hashlib.sha256(), np.zeros(sys.maxunicode + 1, bool)
    for piece in _pieces(books, text_digest, advance, report):
        seen[code_points(piece)] = True
    if finished:
        prepared = load_prepared(output)
        if prepared.sha256 != text_digest.hexdigest():
            raise UserError(f"{output} holds another text; choose another --output, or delete it")
        return prepared, True
    tokenizer = CharTokenizer("".join(map(chr, np.flatnonzero(seen))))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _IDS).open("wb")
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error.strerror}") from error
    second_digest, ids_digest = hashlib.sha256(), hashlib.sha256()
    with file, os_errors_name(output):
        for piece in _pieces(books, second_digest, advance):
            ids = tokenizer.encode(piece)
            raw = ids.astype(ids.dtype.newbyteorder("<")).tobytes()
            file.write(raw)
            ids_digest.update(raw)
    if second_digest.digest() != text_digest.digest():
        raise UserError("the text changed while it was being read; run the same command again")
    metadata = {
        "format_version": _FORMAT_VERSION,
        "vocabulary": tokenizer.vocabulary,
        "dtype": ids.dtype.name,  # little-endian
        "text_sha256": text_digest.hexdigest(),
        "ids_sha256": ids_digest.hexdigest(),
    }
    metadata["metadata_sha256"] = _digest(metadata)
    partial = folder / _PARTIAL
    partial.write_text(json.dumps(metadata, indent=2))
    partial.replace(folder / _METADATA)
    return load_prepared(output), False


def _check_unfinished(folder: Path, output: str) -> None:
    if folder.is_file():
        raise UserError(f"{output} is a file; --output must be a folder")
    if others := sorted({path.name for path in folder.glob("*")} - {_IDS, _PARTIAL}):
        raise UserError(f"{output} holds other files ({others[0]}); choose another --output")


def _pieces(
    books: Sequence[str],
    digest: Any,
    advance: Callable[[int], object],
    report: Callable[[str], object] | None = None,
) -> Iterator[str]:
    """Read a text in pieces, and add each in UTF-8 to a digest."""
    for piece in itertools.chain.from_iterable(read_pieces(book, report) for book in books):
        digest.update(utf8 := piece.encode())
        advance(len(utf8))
        yield piece


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
    ids_path, digest = folder / _IDS, None
    if ids_path.exists():
        with ids_path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != metadata["ids_sha256"]:
        raise UserError(f"{ids_path} is corrupt or missing; delete the folder and prepare it again")
    dtype = np.dtype(metadata["dtype"]).newbyteorder("<")
    ids = np.memmap(ids_path, dtype, mode="r")
    return PreparedText(CharTokenizer(metadata["vocabulary"]), ids, metadata["text_sha256"])


def _digest(metadata: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(metadata).encode()).hexdigest()
