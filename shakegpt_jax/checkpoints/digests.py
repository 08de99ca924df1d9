"""SHA-256 digests of the files of a checkpoint, in the format of sha256sum."""

import hashlib
import os
import re
from collections.abc import Collection
from pathlib import Path

from shakegpt_jax.errors import CorruptCheckpointError

DIGESTS = "SHA256SUMS"
METADATA = "metadata.json"


def write_digests(folder: Path) -> None:
    """List the files of a folder with their digests, and fsync everything."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != DIGESTS]
    names = [path.relative_to(folder).as_posix() for path in files]
    # The metadata last: a list that was cut short lacks it, and is then known to be corrupt.
    names.sort(key=lambda name: (name == METADATA, name))
    (folder / DIGESTS).write_text("".join(f"{_digest(folder / n)}  {n}\n" for n in names))
    for path in (*folder.rglob("*"), folder):
        sync_to_disk(path)


def listed_digests(folder: Path) -> dict[str, str]:
    """Return the digests by file name."""
    listed = {}
    for line in (folder / DIGESTS).read_text(errors="replace").splitlines():
        if not (match := re.fullmatch(r"([0-9a-f]{64})  (\S+)", line)):
            raise CorruptCheckpointError(f"{folder / DIGESTS} is corrupt: line {line[:80]!r}")
        listed[match[2]] = match[1]
    if METADATA not in listed:
        raise CorruptCheckpointError(f"{folder / DIGESTS} is corrupt: it does not list {METADATA}")
    return listed


def verify_digests(folder: Path, skip: Collection[str] = ()) -> None:
    """Check every listed file, except in the subfolders to skip. Other files are ignored."""
    try:
        for name, digest in listed_digests(folder).items():
            if name.split("/")[0] not in skip and _digest(folder / name) != digest:
                raise CorruptCheckpointError(
                    f"{folder / name} is corrupt: its SHA-256 differs from the one in {DIGESTS}"
                )
    except FileNotFoundError as error:
        raise CorruptCheckpointError(f"{error.filename} is missing") from error


def sync_to_disk(path: Path) -> None:
    """Wait until a file, or the entries of a folder, would survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
