"""Reading many files: those that have not changed come from the catalog, the others from one process or several.

The records are the same, and in the same order, however many processes read: each file's follows from it alone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial

from client.catalog import FileRecord
from client.intake.deidentification.copies import Copies
from client.intake.folder import FoundFile
from client.intake.identity import Pseudonyms
from client.intake.reading import record_of, unchanged
from common.errors import DataError

WORTHWHILE = 1000
"""Of fewer files to be read a second process costs more than it saves: it has to load this program first."""
MOST, AT_ONCE = 8, 16
"""Processes at most unless more are asked for, and files that each is handed at once."""


def read_files(
    root: str,
    files: Sequence[FoundFile],
    before: Mapping[str, FileRecord],
    pseudonyms: Pseudonyms,
    copies: Copies | None,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> list[FileRecord]:
    """Return a record of every file. `workers` processes read those that have changed; 0: as many as are worthwhile.

    With `copies` each DICOM file gets its de-identified copy.

    Raises
    ------
    DataError
        A process ended before its time.
    """
    new = [found for found in files if not unchanged(found, before.get(found.path), copies)]
    read_one = partial(_record, root, pseudonyms, copies)
    read = _read(read_one, [(found, before.get(found.path)) for found in new], _processes(len(new), workers))
    waiting = {found.path for found in new}
    records = []
    for done, found in enumerate(files, start=1):
        records.append(next(read) if found.path in waiting else before[found.path])
        if progress is not None:
            progress(done, len(files))
    return records


def _processes(files: int, workers: int) -> int:
    if workers:
        return min(workers, max(1, files))
    return min(len(os.sched_getaffinity(0)), MOST, 1 + files // WORTHWHILE)


_File = tuple[FoundFile, FileRecord | None]


def _read(read_one: Callable[[_File], FileRecord], files: Sequence[_File], processes: int) -> Iterator[FileRecord]:
    if processes == 1:
        yield from map(read_one, files)
        return
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _leave_interrupts_to_the_parent)
    try:
        yield from pool.map(read_one, files, chunksize=AT_ONCE)
    except BrokenProcessPool as error:
        raise DataError(
            "a process that read files was ended, for want of memory perhaps: nothing was imported; "
            "import again with --workers 1"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _record(root: str, pseudonyms: Pseudonyms, copies: Copies | None, file: _File) -> FileRecord:
    return record_of(root, *file, pseudonyms, copies)


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
