"""The SHA-256 of every file in a folder, so that damage is found before anything is used.

The list is sha256sum's: `sha256sum --check SHA256SUMS` inside the folder checks it too. It tells
damage, not malice: whoever can write to the folder can also write the list.
"""

import hashlib
import os
import re
from collections.abc import Collection
from pathlib import Path

from shakegpt_jax.errors import DamagedError, UserError

NAME = "SHA256SUMS"

_LARGEST = 10_000_000  # bytes of the list; a checkpoint has some twenty files


def write(folder: Path) -> None:
    """List a folder's files, in all its subfolders, with their digests; all reaches the disk."""
    names = sorted(_files(folder))
    lines = [f"{_digest(folder / name, sync=True)}  {name}\n" for name in names]
    (folder / NAME).write_text("".join(lines))
    for path in (folder / NAME, *filter(Path.is_dir, folder.rglob("*")), folder):
        sync(path)


def verify(folder: Path, leave_out: Collection[str] = ()) -> None:
    """Check that a folder holds the files that `write` listed, and no others.

    Unlisted files whose names begin with a dot do no harm: file managers make them.

    Args:
        folder: what to check.
        leave_out: its subfolders that need no check, since they are not going to be read.

    Raises:
        DamagedError: naming a file that is missing, changed, unlisted, a link or no file at all.
        UserError: if a file cannot be read.
    """
    if folder.is_symlink():
        raise DamagedError(f"{folder} is a link")
    listed = {}
    for line in read(folder / NAME, _LARGEST).decode(errors="replace").splitlines():
        if not (match := re.fullmatch(r"([0-9a-f]{64})  (\S+)", line)):
            raise DamagedError(f"{folder / NAME} is damaged: it has the line {line[:80]!r}")
        listed[match[2]] = match[1]
    found = _files(folder)
    for name in sorted(found | listed.keys()):
        if name.split("/")[0] in leave_out:
            continue
        if name not in found:
            raise DamagedError(f"{folder / name} is missing")
        if name in listed and _digest(folder / name) != listed[name]:
            raise DamagedError(f"{folder / name} is damaged: {NAME} lists another SHA-256")
        if name not in listed and not name.split("/")[-1].startswith("."):
            raise DamagedError(f"{folder / name} does not belong there: {NAME} does not list it")


def read(path: Path, largest: int) -> bytes:
    """Read a small file.

    Raises:
        DamagedError: if there is none, or it is a link, no file at all or too large.
        UserError: if it cannot be read.
    """
    if path.is_symlink() or not path.is_file():
        raise DamagedError(f"{path} is missing")
    if path.stat().st_size > largest:
        raise DamagedError(f"{path} is damaged: it is larger than {largest} bytes")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def sync(path: Path) -> None:
    """Wait until a file, or a folder's entries, are on the disk: power may fail."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(folder: Path) -> set[str]:
    names = set()
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise DamagedError(f"{path} does not belong there: it is a link, or no file at all")
        if path.is_file() and path != folder / NAME:
            names.add(path.relative_to(folder).as_posix())
    return names


def _digest(path: Path, *, sync: bool = False) -> str:
    try:
        with path.open("rb") as file:
            if sync:
                os.fsync(file.fileno())
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:  # which is no damage: it may pass, or be a matter of rights
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
