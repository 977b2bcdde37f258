"""Writing keys and certificates: several files or none, nothing lost by being replaced, one writer at a time."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from common.errors import KitError, WardroundError
from common.files import write_atomically

PRIVATE_FILE, PUBLIC_FILE, PRIVATE_FOLDER = 0o600, 0o644, 0o700


@contextmanager
def disk_errors_in_words(where: Path) -> Iterator[None]:
    """Turn an error of the file system under `where` into a WardroundError of one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise WardroundError(f"{where}: can't be written: {reason}: mend that and run the command again") from error


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Write every file or, when one can't be written, none. A folder that is missing is made, for its owner only.

    A file named `*.key` is for its owner's eyes (0600), any other is not secret (0644). Every file is first written
    in full beside its place; only then all are renamed, which needs no space.

    Raises
    ------
    WardroundError
        The disk is full or a folder can't be written.
    """
    staged: dict[Path, Path] = {}
    made: list[Path] = []
    try:
        for path, content in contents.items():
            with disk_errors_in_words(path):
                if not path.parent.exists():
                    path.parent.mkdir(mode=PRIVATE_FOLDER)
                    made.append(path.parent)
                staged[path] = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
                mode = PRIVATE_FILE if path.suffix == ".key" else PUBLIC_FILE
                write_atomically(staged[path], content, mode=mode)
        for path, temporary in staged.items():
            with disk_errors_in_words(path):
                temporary.replace(path)
    except BaseException:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)
        for folder in made:
            with suppress(OSError):  # not empty: somebody else has put something there
                folder.rmdir()
        raise


@contextmanager
def new_folder(place: Path) -> Iterator[Path]:
    """Build a folder out of sight and put it at `place` when the block ends well; otherwise nothing is left.

    Raises
    ------
    KitError
        Something is at `place` already, or the folder that is to hold it is missing.
    WardroundError
        The disk is full or the folder can't be written.
    """
    if not place.parent.is_dir():
        raise KitError(f"{place.parent}: there is no such folder: make it first")
    refuse_existing(place)
    with disk_errors_in_words(place):
        building = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}."))  # mode 0700
    try:
        with disk_errors_in_words(place):
            yield building
            refuse_existing(place)
            building.rename(place)
            _sync_folder(place.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def refuse_existing(place: Path) -> None:
    """Raise KitError if there is anything at `place` but an empty folder."""
    if place.is_symlink() or (place.exists() and not (place.is_dir() and not any(place.iterdir()))):
        raise KitError(f"{place}: it exists already and is never overwritten: name another place, or move it away")


@contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Hold `folder`'s lock; another process that wants it waits. The kernel frees it when the process ends."""
    with disk_errors_in_words(folder):
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, PRIVATE_FILE)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
