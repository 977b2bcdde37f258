"""Everything in a folder, found once each, whatever links, locks or oddities are in it."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import DataError


@dataclass(frozen=True)
class FoundFile:
    """A regular file: its path relative to the folder ("/" between parts), size in bytes and time of change in ns."""

    path: str
    size: int
    mtime_ns: int


@dataclass
class Listing:
    """A folder's files in order of path; what can't be listed or is no file, with the reason; and closed folders."""

    files: list[FoundFile] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)


def list_folder(folder: Path) -> Listing:
    """List `folder` and all below it. Links are followed, and no folder is entered twice, so loops end.

    Raises
    ------
    DataError
        The folder is missing, is no folder, or can't be listed.
    """
    try:
        with os.scandir(folder):
            pass
    except OSError as error:
        raise DataError(f"{folder}: the folder can't be read: {error.strerror}") from error
    listing = Listing()
    entered: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        waiting.extend(_list_one(folder, waiting.pop(), listing, entered))
    listing.files.sort(key=lambda found: found.path)
    listing.refused.sort()
    return listing


def _list_one(folder: Path, inside: str, listing: Listing, entered: set[tuple[int, int]]) -> list[str]:
    """Add what is directly in `folder/inside`; return the folders in it that are still to be entered."""
    try:
        own = os.stat(folder / inside)  # noqa: PTH116 - one call for identity, no resolving
        if (own.st_dev, own.st_ino) in entered:
            return []
        entered.add((own.st_dev, own.st_ino))
        with os.scandir(folder / inside) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        listing.refused.append((inside, f"the folder can't be read: {error.strerror}"))
        listing.closed.append(inside)
        return []
    folders = []
    for entry in entries:
        path = f"{inside}/{entry.name}" if inside else entry.name
        try:
            found = entry.stat()
        except OSError as error:
            link = entry.is_symlink()
            listing.refused.append((path, "a link to nothing" if link else f"can't be read: {error.strerror}"))
            continue
        if stat.S_ISDIR(found.st_mode):
            folders.append(path)
        elif stat.S_ISREG(found.st_mode):
            listing.files.append(FoundFile(path, found.st_size, found.st_mtime_ns))
        else:
            listing.refused.append((path, "not a regular file"))
    return folders


def shown(path: str) -> str:
    """A path as printable text: bytes that are no UTF-8 and control characters become "?"."""
    text = path.encode("utf-8", "replace").decode("utf-8")
    return "".join(character if character.isprintable() else "?" for character in text)
