"""Where a kit keeps the de-identified copies of a collection's DICOM files.

A copy is named by its source's content and by how it was made, keyed, and never changes: an import that is killed
leaves the collection as it was, and one that is repeated finds what is there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from client.intake.deidentification.deidentifier import Deidentifier, Identity
from client.intake.image import Copy
from common.errors import DataError
from common.files import write_atomically

FOLDER = "deidentified"


@dataclass(frozen=True)
class Copies:
    """The copies of one collection. Folders are 0700, files 0600."""

    kit_folder: Path
    collection: str
    deidentifier: Deidentifier

    @property
    def method(self) -> str:
        """Tells how the copies are made."""
        return self.deidentifier.method.name

    def none(self) -> Copy:
        """Return what stands for a file that has no copy: it was refused, or is no DICOM."""
        return Copy(method=self.method)

    def make(self, source: Path, sha256: str) -> tuple[Copy, Identity]:
        """Write a file's copy, unless it is there; return what is known of it, and whose the source is.

        Raises
        ------
        FileRefusedError
            The file can't be de-identified.
        DataError
            The copy can't be written.
        """
        made = self.deidentifier.made(source)
        digest = hashlib.sha256(made.content).hexdigest()
        name = self.deidentifier.pseudonyms.of("copy", f"{sha256} {self.method} {digest}")
        path = self.kit_folder / FOLDER / self.collection / name[:2] / f"{name}.dcm"
        try:
            for folder in reversed(path.relative_to(self.kit_folder).parents[:-1]):
                (self.kit_folder / folder).mkdir(mode=0o700, exist_ok=True)
            if not path.exists() or path.stat().st_size != len(made.content):
                write_atomically(path, made.content, mode=0o600)
            mtime_ns = path.stat().st_mtime_ns
        except OSError as error:
            raise DataError(
                f"{path.parent}: a de-identified copy can't be written: {error.strerror}: nothing was imported"
            ) from error
        treatment = made.treatment.as_dict()
        return Copy(self.method, str(path), len(made.content), mtime_ns, digest, treatment), made.identity

    def stands(self, copy: Copy) -> bool:
        """Whether a copy was made by this method and is there, or there is none by this method."""
        if copy.method != self.method:
            return False
        try:
            return not copy.path or Path(copy.path).stat().st_size == copy.size
        except OSError:
            return False


def has_copies(kit_folder: Path, collection: str) -> bool:
    """Whether a collection has, or had, copies."""
    return (kit_folder / FOLDER / collection).is_dir()


def forget_others(kit_folder: Path, collection: str, keep: Collection[str]) -> None:
    """Remove all of a collection's copies but those to `keep`, by path, and folders that are then empty."""
    place = kit_folder / FOLDER / collection
    for path in place.glob("*/*"):
        if str(path) not in keep:
            path.unlink(missing_ok=True)
    for folder in (*place.glob("*"), place, place.parent):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
