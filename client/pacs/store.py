"""Objects that a PACS gave, in the kit: KIT/received/COLLECTION/objects/STUDY/SERIES/INSTANCE.dcm.

The names are keyed pseudonyms, as the catalog's are: the UIDs are the hospital's. An object is written beside, under
incoming/, and renamed when it is whole and on the disk, so whatever is under objects/ is whole, also after kill -9.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from client.intake.identity import Pseudonyms, open_pseudonyms
from common.errors import DataError
from common.files import write_atomically

RECEIVED = "received"
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


class BrokenObjectError(Exception):
    """An object that can't be kept: it is not readable, or not the one that it is called. The message is the reason."""


@dataclass(frozen=True)
class Received:
    """An object that was kept: its SOP Instance UID, and whether it is new or other than the one that was here."""

    uid: str
    changed: bool


class Store:
    """The objects of one collection. Several threads may use it; `open_store` gives it to one process at a time."""

    def __init__(self, folder: Path, pseudonyms: Pseudonyms) -> None:
        self.objects, self._incoming = folder / "objects", folder / "incoming"
        self._pseudonyms = pseudonyms

    def path(self, study: str, series: str, instance: str) -> Path:
        """Return where the object of these UIDs is, or would be."""
        of = self._pseudonyms.of
        return self.objects / of("study", study) / of("series", series) / f"{of('instance', instance)}.dcm"

    def has(self, study: str, series: str, instance: str) -> bool:
        """Whether the object is here, whole."""
        return self.path(study, series, instance).is_file()

    def is_empty(self) -> bool:
        """Whether nothing was ever received."""
        return next(self.objects.rglob("*.dcm"), None) is None

    def put(self, content: bytes, uid: str | None = None) -> Received:
        """Keep an object: a DICOM file's bytes. When this returns, it is on the disk.

        `uid` is the SOP Instance UID that it should have. An object that is here already is replaced when the new one
        differs: the PACS may have corrected it.

        Raises
        ------
        BrokenObjectError
            It is no DICOM, its UIDs are missing, or it is another object than `uid`.
        OSError
            The disk is full or can't be written; nothing is left behind.
        """
        study, series, instance = uids_of(content)
        if uid is not None and instance != uid:
            raise BrokenObjectError("it is another object than it is said to be")
        path = self.path(study, series, instance)
        if path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content:
            return Received(instance, changed=False)
        for folder in (path.parent.parent, path.parent):
            folder.mkdir(mode=0o700, exist_ok=True)
        write_atomically(path, content, mode=0o600, through=self._incoming)
        return Received(instance, changed=True)

    def sweep(self) -> None:
        """Make the folders, and remove what a process that was killed had only half written."""
        for folder in (self.objects, self._incoming):
            folder.mkdir(mode=0o700, exist_ok=True)
        for path in self._incoming.iterdir():
            path.unlink()


@contextmanager
def open_store(kit_folder: Path, collection: str) -> Iterator[Store]:
    """Open the collection's store, and hold it alone until the block ends. The collection's name must be one.

    Raises DataError when another process has it or the kit can't be written.
    """
    folder = kit_folder / RECEIVED / collection
    try:
        for each in (folder.parent, folder):
            each.mkdir(mode=0o700, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise DataError(f"{folder}: the kit's folder can't be written: {error.strerror}") from error
    try:
        _take(handle, collection)
        store = Store(folder, open_pseudonyms(kit_folder))
        store.sweep()
        yield store
    finally:
        os.close(handle)


def _take(handle: int, collection: str) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataError(
            f'another import from a PACS, or a receiver, is at work on the collection "{collection}": wait for its end'
        ) from error


def uids_of(content: bytes) -> tuple[str, str, str]:
    """Return the Study, Series and SOP Instance UID of a DICOM file. Raises BrokenObjectError."""
    import pydicom

    try:
        header = pydicom.dcmread(BytesIO(content), stop_before_pixels=True, specific_tags=list(_UIDS))
        uids = [str(header.get(name) or "").strip("\0 ") for name in _UIDS]
    except Exception as error:  # foreign bytes make pydicom raise nearly anything
        raise BrokenObjectError("it can't be read as DICOM") from error
    for name, uid in zip(_UIDS, uids, strict=True):
        if not uid:
            raise BrokenObjectError(f"{name} is missing or can't be read")
    return uids[0], uids[1], uids[2]
