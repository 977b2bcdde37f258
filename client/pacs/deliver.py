"""Results go back to the hospital's PACS: DICOM files, each told what became of it, and all in the audit log."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from client.intake.folder import list_folder
from client.intake.identity import open_pseudonyms
from client.pacs.archive import Archive, Outgoing, Sent
from client.record import site_log
from client.results.output import companions
from common.errors import DataError, LinkError, UsageError
from common.files import sha256_file


def send_to_pacs(
    kit_folder: Path, archive: Archive, paths: Sequence[Path], watch: Callable[[int, int], None] | None = None
) -> list[Sent]:
    """Send files (of a folder, all below it) and return what became of each. `watch`: (files done, files in all).

    Of a folder that `wardround predict` wrote, its DICOM objects are sent, and not its tables and pictures.

    This is no release: nothing goes to the coordinator. The audit log has what is sent before it is, and what became of
    it; studies are in it under their pseudonyms.

    Raises
    ------
    UsageError
        There is no such file, or none at all.
    DataError
        One of them is no DICOM object that could be stored: nothing was sent.
    LinkError
        The PACS can't be reached, or goes away; the message says how many it has.
    """
    files = [outgoing(path) for path in _files(paths)]
    if not files:
        raise UsageError(f"{', '.join(map(str, paths))}: there is no DICOM file in it: nothing was sent")
    log, pseudonyms = site_log(kit_folder), open_pseudonyms(kit_folder)
    objects = [
        {"sha256": file.sha256, "sop_class": file.sop_class, "study": pseudonyms.of("study", file.study)}
        for file in files
    ]
    log.append("send", {"to": archive.name, "objects": objects})
    done: list[Sent] = []
    try:
        for sent in archive.send(files):
            done.append(sent)
            if watch is not None:
                watch(len(done), len(files))
    except LinkError as error:
        raise type(error)(f"{error}; it has {_taken(done)} of {len(files)} files") from error
    finally:
        log.append("sent", {"to": archive.name, "taken": _taken(done), "of": len(files)})
    return done


def outgoing(path: Path) -> Outgoing:
    """Read what a file is. Raises DataError when it is no DICOM object that could be stored."""
    import pydicom

    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        values = [str(header.get(name) or "") for name in ("StudyInstanceUID", "SOPInstanceUID", "SOPClassUID")]
        syntax = str(header.file_meta.get("TransferSyntaxUID") or "")
    except OSError as error:
        raise DataError(f"{path}: the file can't be read: {error.strerror or error}") from error
    except Exception as error:  # foreign bytes make pydicom raise nearly anything
        raise DataError(f"{path}: this is no DICOM file: nothing was sent") from error
    if not all([*values, syntax]):
        raise DataError(
            f"{path}: it lacks its study, its SOP instance, its SOP class or its transfer syntax: nothing was sent"
        )
    study, uid, sop_class = values
    return Outgoing(path, study, uid, sop_class, syntax, sha256_file(path))


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            beside = companions(path)
            yield from (path / found.path for found in list_folder(path).files if found.path not in beside)
        elif path.is_file():
            yield path
        else:
            raise UsageError(f"{path}: there is no such file or folder")


def _taken(done: Sequence[Sent]) -> int:
    return sum(not sent.problem for sent in done)
