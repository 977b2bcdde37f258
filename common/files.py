"""Writing files so that a reader sees the old text or the new one, never half of it."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from pathlib import Path


def write_atomically(
    path: Path, content: bytes, *, mode: int = 0o644, overwrite: bool = True, through: Path | None = None
) -> None:
    """Write `content` to `path` with permissions `mode`: synced to disk first, then renamed into place.

    A process that is killed may leave an unfinished file in `path`'s folder, or in `through` where that is given: a
    folder on the same disk.

    Raises
    ------
    FileExistsError
        `path` exists and `overwrite` is false.
    OSError
        The disk is full or the folder can't be written; nothing is left behind.
    """
    handle, name = tempfile.mkstemp(dir=through or path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            temporary.replace(path)
        else:
            os.link(temporary, path)  # fails if `path` exists, also when two writers race
            temporary.unlink()
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_text(path: Path) -> str:
    """Return a UTF-8 file's text, without the byte order mark that some editors put first.

    Raises
    ------
    OSError
        It can't be read, or is no UTF-8 text; `strerror` says which.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise OSError(errno.EILSEQ, "it is no UTF-8 text: save it as UTF-8", str(path)) from error


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in lower-case hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
