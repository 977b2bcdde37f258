"""Reading one file: what it is and what it says of itself, or why it can't be used. Slow, and kept in the catalog."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from client.catalog import FileRecord
from client.intake import dicom
from client.intake.deidentification.copies import Copies
from client.intake.folder import FoundFile
from client.intake.formats import HEAD_BYTES, PROBE, identify
from client.intake.identity import Pseudonyms
from client.intake.image import FileRefusedError
from common.files import sha256_file


def record_of(
    root: str, found: FoundFile, before: FileRecord | None, pseudonyms: Pseudonyms, copies: Copies | None = None
) -> FileRecord:
    """Return what is known of a file: from before when its size and time are the same, or else its content is.

    With `copies` a DICOM file gets its de-identified copy, of which all else is said; whose it is, is still the file's.
    """
    if before is not None and unchanged(found, before, copies):
        return before
    alike = before is not None and before.probe == PROBE and before.size == found.size and _stands(before, copies)
    if before is not None and alike and before.sha256 and _sha256(root, found) == before.sha256:
        return replace(before, mtime_ns=found.mtime_ns)
    return _read(FileRecord(root, found.path, found.size, found.mtime_ns), pseudonyms, copies)


def unchanged(found: FoundFile, before: FileRecord | None, copies: Copies | None = None) -> bool:
    """Return whether a file is, by size and time, the one that was read by this version of the code, and alike."""
    if before is None or before.probe != PROBE:
        return False
    return (before.size, before.mtime_ns) == (found.size, found.mtime_ns) and _stands(before, copies)


def _stands(before: FileRecord, copies: Copies | None) -> bool:
    """Whether a file was read as it would be now: de-identified in the same way, or not at all."""
    return before.copy is None if copies is None else before.copy is not None and copies.stands(before.copy)


def _read(record: FileRecord, pseudonyms: Pseudonyms, copies: Copies | None) -> FileRecord:
    """Read a file, pixels included, and return its record; whatever is wrong with it becomes the reason."""
    path = Path(record.root) / record.path
    if copies is not None:
        record = replace(record, copy=copies.none())
    try:
        with path.open("rb") as file:
            kind = identify(head := file.read(HEAD_BYTES))
        record = replace(record, format=kind.name, probe=PROBE, sha256=sha256_file(path))
        if copies is not None and dicom.matches(head):
            copy, identity = copies.make(path, record.sha256)
            record = replace(record, copy=copy)
            facts = replace(kind.inspect(Path(copy.path)), **asdict(identity))
        else:
            facts = kind.inspect(path)
    except FileRefusedError as error:
        return replace(record, probe=PROBE, unreadable=str(error))
    except OSError as error:  # may be mended without changing the file: it is read again the next time
        return replace(record, probe=0, unreadable=f"can't be read: {error.strerror}")

    def pseudonym(kind: str, identity: str) -> str:
        return pseudonyms.of(kind, identity) if identity else ""

    return replace(
        record, modality=facts.modality, frames=facts.frames,
        rows=facts.rows, columns=facts.columns, channels=facts.channels,
        own_patient=pseudonym("patient", facts.patient), study=pseudonym("study", facts.study),
        series=pseudonym("series", facts.series), instance=pseudonym("instance", facts.instance),
        identifiers=facts.identifiers, burned_in=facts.burned_in, acquired=facts.acquired, seen=facts.seen,
    )  # fmt: skip


def _sha256(root: str, found: FoundFile) -> str:
    try:
        return sha256_file(Path(root) / found.path)
    except OSError:
        return ""  # it is read anew, and the reason comes from there
