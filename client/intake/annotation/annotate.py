"""An import's drawings: which image has which mask or boxes, and what could not be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from client.annotations import Annotation, keep
from client.catalog import FileRecord
from client.intake.annotation.boxes import Boxes, read_boxes
from client.intake.annotation.masks import Structures, drawn_in, masks_in, stem_of
from client.intake.annotation.objects import KINDS, Images, drawn_by, read_object
from client.intake.identity import Pseudonyms
from client.intake.image import FileRefusedError
from client.intake.options import ImportOptions
from common.errors import DataError

_MAYBE_DRAWN = "no image: "
"""How the reason begins for which a DICOM object is no image."""


@dataclass(frozen=True)
class Drawn:
    """Records with their annotations; the paths of files that were drawings; what the steward should know."""

    records: list[FileRecord]
    drawings: frozenset[str] = frozenset()
    findings: tuple[str, ...] = ()


def annotate(
    kit_folder: Path,
    records: Sequence[FileRecord],
    before: Mapping[str, FileRecord],
    options: ImportOptions,
    pseudonyms: Pseudonyms,
) -> Drawn:
    """Find each indexed image's masks or boxes, keep them in the kit, and return the records that know them.

    DICOM SEG and RTSTRUCT objects are found among the folder's own files and in `options.masks`. Where the import names
    masks or boxes, an image without is refused, as one without a label is. Where it names none and there are none, what
    was known of an unchanged file stays.

    Raises
    ------
    DataError
        The masks or boxes can't be read, or none of them belongs to any image.
    """
    structures = Structures(dict(options.structures), options.instances)
    work = _Work(kit_folder, structures, {record.path: record for record in records}, {}, {})
    work.mask_folder = options.masks.resolve() if options.masks is not None else None
    drawings = work.objects(records, options.masks, pseudonyms)
    if options.masks is not None:
        work.masks(options.masks)
    boxes = read_boxes(options.boxes) if options.boxes is not None else None
    if boxes is not None:
        work.boxes(boxes)
    named = options.masks or options.boxes
    if named is not None and not work.found:
        readable = sum(not record.reason for record in records)
        why = f": {next(iter(work.problems.values()))}" if work.problems else ""
        raise DataError(f"{named}: nothing in it is drawn on any of the {readable} images that were read{why}")
    return Drawn(
        [work.decided(record, before.get(record.path), named is not None) for record in records],
        frozenset(drawings),
        tuple(work.findings(boxes, drawings)),
    )


@dataclass
class _Work:
    """One import's drawings under way: annotations by the image's path, and why an image or a drawing has none."""

    kit_folder: Path
    structures: Structures
    images: dict[str, FileRecord]
    found: dict[str, str]
    problems: dict[str, str]
    mask_folder: Path | None = None
    unused: int = 0

    def objects(self, records: Sequence[FileRecord], folder: Path | None, pseudonyms: Pseudonyms) -> dict[str, str]:
        """Take DICOM objects in; return the kind of each that was used, by its path."""
        images, used = Images.of(records, pseudonyms), {}
        there = [
            (record.path, Path(record.root) / record.path)
            for record in records
            if record.format == "dicom" and record.unreadable.startswith(_MAYBE_DRAWN)
        ]
        if folder is not None and folder.is_dir():
            there += [(str(path), path) for path in sorted(folder.rglob("*")) if path.is_file()]
        for name, path in there:
            if (drawing := read_object(path)) is None:
                continue
            try:
                for record, annotation in drawn_by(drawing, images, self.structures):
                    self._keep(record, annotation)
                used[name] = KINDS[str(drawing.SOPClassUID)]
            except FileRefusedError as error:
                self.problems[name] = f"{KINDS[str(drawing.SOPClassUID)]}: {error}"
        return used

    def masks(self, folder: Path) -> None:
        """Take the masks of a folder in, by their paths."""
        if not folder.is_dir():
            raise DataError(f"{folder}: the folder of masks can't be read: is it the right one?")
        masks = masks_in(folder)
        names = Counter(PurePosixPath(stem).name for stem in masks)
        by_name = {PurePosixPath(stem).name: stem for stem in masks if names[PurePosixPath(stem).name] == 1}
        taken = set()
        for record in self.images.values():
            if record.reason or record.path in self.found:
                continue
            stem = stem_of(record.path)
            key = stem if stem in masks else by_name.get(PurePosixPath(stem).name, "")
            if not key or masks[key] == Path(record.root) / record.path:
                continue
            taken.add(key)
            try:
                self._keep(record, drawn_in(masks[key], record, self.structures))
            except FileRefusedError as error:
                self.problems[record.path] = str(error)
        self.unused += len(masks) - len(taken)

    def boxes(self, boxes: Boxes) -> None:
        """Take boxes in, by the images' paths."""
        for record in self.images.values():
            if record.reason or record.path in self.found:
                continue
            try:
                if (annotation := boxes.of(record, self.structures)) is not None:
                    self._keep(record, annotation)
            except FileRefusedError as error:
                self.problems[record.path] = str(error)
        self.unused += len(boxes.by_image) - len(boxes.used)

    def decided(self, record: FileRecord, before: FileRecord | None, named: bool) -> FileRecord:
        """Return a record with its annotation, or refused for want of one."""
        if record.reason:
            return replace(record, annotation="")
        if self.mask_folder is not None and (Path(record.root) / record.path).is_relative_to(self.mask_folder):
            return replace(record, annotation="", label=None, reason="a mask, not an image")
        if record.path in self.found:
            return replace(record, annotation=self.found[record.path])
        if named:
            why = self.problems.get(record.path, "none of the masks or boxes belongs to it")
            return replace(record, annotation="", label=None, reason=f"no annotation: {why}")
        same = before is not None and before.sha256 == record.sha256
        return replace(record, annotation=before.annotation if before is not None and same else "")

    def findings(self, boxes: Boxes | None, drawings: Mapping[str, str]) -> list[str]:
        """Return a line for each finding."""
        lines = [f"{kind}: {count} taken as masks" for kind, count in sorted(Counter(drawings.values()).items())]
        if self.unused:
            lines.append(f"masks or boxes that match no readable image: {self.unused}")
        if boxes is not None and boxes.left_out:
            lines.append(f"boxes without any area, left out: {boxes.left_out}")
        others = Counter(
            why for name, why in self.problems.items() if name not in self.images or self.images[name].reason
        )
        return lines + [f"{why} ({count})" for why, count in others.most_common()]

    def _keep(self, record: FileRecord, annotation: Annotation) -> None:
        self.found[record.path] = keep(self.kit_folder, annotation)
