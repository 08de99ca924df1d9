"""The SHA-256 of every file in a folder, so that damage is found before anything is used.

The list is sha256sum's: `sha256sum --check SHA256SUMS` inside the folder checks it too. It tells
damage, not malice: whoever can write to the folder can also write the list.
"""

import hashlib
import re
from collections.abc import Collection
from pathlib import Path

from shakegpt_jax.errors import DamagedError

NAME = "SHA256SUMS"


def write(folder: Path) -> None:
    """List a folder's files, in all its subfolders, with their digests."""
    lines = [f"{_digest(folder / name)}  {name}\n" for name in sorted(_files(folder))]
    (folder / NAME).write_text("".join(lines))


def verify(folder: Path, leave_out: Collection[str] = ()) -> None:
    """Check that a folder holds the files that `write` listed, and no others.

    Args:
        folder: what to check.
        leave_out: its subfolders that need no check, since they are not going to be read.

    Raises:
        DamagedError: naming a file that is missing, changed, unlisted or unreadable.
    """
    try:
        text = (folder / NAME).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedError(f"{folder / NAME} is damaged or missing: {error}") from error
    listed = {}
    for line in text.splitlines():
        if not (match := re.fullmatch(r"([0-9a-f]{64})  (\S+)", line)):
            raise DamagedError(f"{folder / NAME} is damaged: it has the line {line[:80]!r}")
        listed[match[2]] = match[1]
    found = _files(folder)
    for name in sorted(found | listed.keys()):
        if name.split("/")[0] in leave_out:
            continue
        if name not in found:
            raise DamagedError(f"{folder / name} is missing")
        if name not in listed:
            raise DamagedError(f"{folder / name} does not belong there: {NAME} does not list it")
        if _digest(folder / name) != listed[name]:
            raise DamagedError(f"{folder / name} is damaged: {NAME} lists another SHA-256")


def _files(folder: Path) -> set[str]:
    names = set()
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise DamagedError(f"{path} does not belong there: it is a link")
        if not path.is_dir() and path != folder / NAME:
            names.add(path.relative_to(folder).as_posix())
    return names


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error.strerror}") from error
