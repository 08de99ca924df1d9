"""SHA-256 digests of the files of a checkpoint, to detect corruption before loading.

The list has the format of sha256sum: `sha256sum --check SHA256SUMS` inside the folder verifies
it too. It protects against corruption, not against tampering: whoever can write to the folder can
also write the list.
"""

import hashlib
import os
import re
from collections.abc import Collection
from pathlib import Path

from shakegpt_jax.errors import CorruptCheckpointError, UserError

DIGESTS = "SHA256SUMS"
METADATA = "metadata.json"


def write_digests(folder: Path) -> None:
    """List the files of a folder with their digests, and fsync everything."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != DIGESTS]
    names = [path.relative_to(folder).as_posix() for path in files]
    # The metadata last: a list that was cut short lacks it, and is then known to be corrupt.
    names.sort(key=lambda name: (name == METADATA, name))
    lines = [f"{_digest(folder / name, sync=True)}  {name}\n" for name in names]
    (folder / DIGESTS).write_text("".join(lines))
    for path in (folder / DIGESTS, *filter(Path.is_dir, folder.rglob("*")), folder):
        sync_to_disk(path)


def listed_digests(folder: Path) -> dict[str, str]:
    """Read the list of a checkpoint: the digests by file name.

    Raises:
        CorruptCheckpointError: if there is no list, or it is corrupt.
        UserError: if it cannot be read.
    """
    listed = {}
    for line in _read(folder / DIGESTS).decode(errors="replace").splitlines():
        if not (match := re.fullmatch(r"([0-9a-f]{64})  (\S+)", line)):
            raise CorruptCheckpointError(f"{folder / DIGESTS} is corrupt: line {line[:80]!r}")
        listed[match[2]] = match[1]
    if METADATA not in listed:
        raise CorruptCheckpointError(f"{folder / DIGESTS} is corrupt: it does not list {METADATA}")
    return listed


def verify_digests(folder: Path, skip: Collection[str] = ()) -> None:
    """Check that every listed file exists and has its digest. Other files are ignored.

    Args:
        folder: the checkpoint.
        skip: names of subfolders to skip, since they will not be read.

    Raises:
        CorruptCheckpointError: naming a file that is missing or has changed.
        UserError: if a file cannot be read.
    """
    for name, digest in listed_digests(folder).items():
        if name.split("/")[0] in skip:
            continue
        if not (folder / name).is_file():
            raise CorruptCheckpointError(f"{folder / name} is missing")
        if _digest(folder / name) != digest:
            raise CorruptCheckpointError(
                f"{folder / name} is corrupt: its SHA-256 differs from the one in {DIGESTS}"
            )


def read_metadata(folder: Path) -> bytes:
    """Read the metadata of a checkpoint.

    Raises:
        CorruptCheckpointError: if there is none.
        UserError: if it cannot be read.
    """
    return _read(folder / METADATA)


def sync_to_disk(path: Path) -> None:
    """Wait until a file, or the entries of a folder, would survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise CorruptCheckpointError(f"{path} is missing")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _digest(path: Path, *, sync: bool = False) -> str:
    try:
        with path.open("rb") as file:
            if sync:
                os.fsync(file.fileno())
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:  # not corruption: it may be temporary, or a matter of permissions
        raise UserError(f"cannot read {path}: {error.strerror}") from error
