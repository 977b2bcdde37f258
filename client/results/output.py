"""The folder of results: it is there in full or not at all, and what was there before is not lost by accident."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from common.errors import DataError, UsageError
from common.files import read_text, write_atomically

LISTING = "results.json"
"""What is in the folder and what it comes from."""
TABLE = "results.csv"


@contextmanager
def results_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a folder to write into; at the end it becomes `out`. When anything is raised, `out` is as it was.

    With `overwrite` the results of an earlier call, as its listing names them, make room; other files stay.

    Raises
    ------
    UsageError
        `out` has files in it and `overwrite` is false; or it is no folder.
    DataError
        It can't be written.
    """
    check_free(out, overwrite=overwrite)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise DataError(f"{out}: the results can't be written: {error.strerror}") from error
    try:
        yield staging
        staging.chmod(0o755)
        _move(staging, out)
    except OSError as error:
        raise DataError(f"{error.filename or out}: the results can't be written: {error.strerror}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_free(out: Path, *, overwrite: bool) -> None:
    """Raise UsageError unless results may be written to `out`."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: it is a file: name a folder for the results")
    if not overwrite and out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{out}: the folder has files in it: name another, or say --overwrite")


def _move(staging: Path, out: Path) -> None:
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
    if not out.exists():
        staging.rename(out)
        return
    new = {path.relative_to(staging) for path in staging.rglob("*") if path.is_file()}
    for old in _listed(out):
        if old not in new:
            (out / old).unlink(missing_ok=True)
    for path in sorted(new, key=lambda path: path.name == LISTING):  # the listing last: it speaks of the others
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (staging / path).replace(out / path)


def companions(folder: Path) -> frozenset[str]:
    """Return the files of a folder of results that are no DICOM: tables, pictures, NIfTI. None of another folder."""
    return frozenset(path.as_posix() for path in _listed(folder) if path.suffix != ".dcm")


def _listed(out: Path) -> list[Path]:
    """The files that an earlier call wrote, by its listing; nothing outside the folder, whatever that says."""
    try:
        named = json.loads(read_text(out / LISTING))["files"]
        parts = [PurePosixPath(name) for name in named]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [Path(path) for path in parts if not path.is_absolute() and ".." not in path.parts]


def write_table(folder: Path, rows: Sequence[dict[str, str]]) -> None:
    """Write the rows of all results as CSV."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / TABLE, stream.getvalue().encode())


def write_listing(folder: Path, about: dict[str, Any]) -> list[str]:
    """Write what is in the folder, and `about` it, as JSON; return the files."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files.append(LISTING)
    write_atomically(folder / LISTING, (json.dumps(about | {"files": files}, indent=2) + "\n").encode())
    return files
