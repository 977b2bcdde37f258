"""Boxes from a file: CSV, COCO's JSON, or a folder of Pascal VOC's XML. All become pixels, from edge to edge.

References: Lin et al., "Microsoft COCO", ECCV 2014 (x, y, width, height, from 0); Everingham et al., "The Pascal Visual
Object Classes Challenge", IJCV 2010 (corners are pixels, counted from 1, both inside).
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse

from client.annotations import Annotation
from client.catalog import FileRecord
from client.intake.annotation.masks import Structures, stem_of
from client.intake.image import FileRefusedError
from common.errors import DataError

COLUMNS = {
    "file": ("file", "path", "filename", "file_name", "image"),
    "label": ("label", "class", "name", "category"),
    "left": ("x_min", "xmin", "left"),
    "top": ("y_min", "ymin", "top"),
    "right": ("x_max", "xmax", "right"),
    "bottom": ("y_max", "ymax", "bottom"),
}
"""The columns of a CSV file of boxes, each with the names that mean it. Edges in pixels, from the image's own edge."""
FRAME = ("frame", "slice")
Box = tuple[str, int, float, float, float, float]
"""A label, a frame, and the edges: top, left, bottom, right."""


@dataclass
class Boxes:
    """The boxes of a file, by the image's path or name without its ending.

    An image that the file knows and that has no box is there with none. `used` are the keys that images were found for.
    """

    source: Path
    by_image: dict[str, list[Box]]
    left_out: int = 0
    used: set[str] = field(default_factory=set)

    def of(self, record: FileRecord, structures: Structures) -> Annotation | None:
        """Return an image's boxes; None where the file does not know it. Raises FileRefusedError for one outside it."""
        stem = stem_of(record.path)
        key = next((one for one in (stem, PurePosixPath(stem).name) if one in self.by_image), None)
        if key is None:
            return None
        self.used.add(key)
        found = self.by_image[key]
        names = tuple(dict.fromkeys(structures.called(label) for label, *_ in found))
        rows = [
            [names.index(structures.called(label)), frame, top, left, frame + 1, bottom, right]
            for label, frame, top, left, bottom, right in found
        ]
        boxes = np.array(rows, dtype=np.float32).reshape(-1, 7)
        extent = (record.frames, record.rows, record.columns)
        if (boxes[:, 1:4] < -1).any() or (boxes[:, 4:] > np.array(extent) + 1).any():
            raise FileRefusedError(f"a box of it lies outside of its {record.columns} x {record.rows} pixels")
        boxes[:, 1:] = np.clip(boxes[:, 1:], 0, np.tile(extent, 2))
        return Annotation(names, extent, None, boxes)


def read_boxes(path: Path) -> Boxes:
    """Read boxes from a CSV or COCO file, or a folder of VOC files. Boxes of no area are left out and counted.

    Raises
    ------
    DataError
        It can't be read, or a row of it is wrong; the message names the line.
    """
    reader: Callable[[Path], Iterator[tuple[str, Box | None]]]
    reader = _voc if path.is_dir() else _coco if path.suffix.casefold() == ".json" else _csv
    found = Boxes(path, {})
    try:
        for image, box in reader(path):
            boxes = found.by_image.setdefault(stem_of(image.strip().replace("\\", "/").removeprefix("./")), [])
            if box is None:
                continue
            if not all(math.isfinite(edge) for edge in box[2:]) or box[4] <= box[2] or box[5] <= box[3]:
                found.left_out += 1
                continue
            boxes.append(box)
    except OSError as error:
        raise DataError(f"{path}: the boxes can't be read: {error.strerror}") from error
    if not found.by_image:
        raise DataError(f"{path}: no boxes: a CSV file, COCO's JSON, or a folder of VOC's XML files is read")
    return found


def _csv(path: Path) -> Iterator[tuple[str, Box | None]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            rows = csv.DictReader(file)
            heading = {name.strip().casefold(): name for name in rows.fieldnames or ()}
            columns = {kind: next((heading[n] for n in names if n in heading), "") for kind, names in COLUMNS.items()}
            if missing := [kind for kind, name in columns.items() if not name]:
                wanted = "; ".join(", ".join(COLUMNS[kind]) for kind in missing)
                raise DataError(f"{path}: no column for {', '.join(missing)} (one of: {wanted})")
            frame = next((heading[name] for name in FRAME if name in heading), "")
            for row in rows:
                edges = [(row[columns[side]] or "").strip() for side in ("top", "left", "bottom", "right")]
                if not any(edges):
                    yield row[columns["file"]], None
                    continue
                try:
                    top, left, bottom, right = map(float, edges)
                    number = int(row[frame]) if frame and (row[frame] or "").strip() else 0
                except ValueError as error:
                    raise DataError(f"{path}:{rows.line_num}: an edge or frame of the box is no number") from error
                yield row[columns["file"]], ((row[columns["label"]] or "").strip(), number, top, left, bottom, right)
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path}: not a CSV text: {error}") from error


def _coco(path: Path) -> Iterator[tuple[str, Box | None]]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        images = {image["id"]: str(image["file_name"]) for image in content["images"]}
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        yield from ((name, None) for name in images.values())
        for one in content["annotations"]:
            left, top, width, height = map(float, one["bbox"])
            yield images[one["image_id"]], (names[one["category_id"]], 0, top, left, top + height, left + width)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not COCO's form of boxes: {type(error).__name__} {error}") from error


def _voc(folder: Path) -> Iterator[tuple[str, Box | None]]:
    for path in sorted(folder.rglob("*.xml")):
        try:
            root: Element = parse(path).getroot()
            image = root.findtext("filename") or path.stem
            yield image, None
            for one in root.iter("object"):
                left, top, right, bottom = (
                    float(one.findtext(f"bndbox/{side}") or "") for side in ("xmin", "ymin", "xmax", "ymax")
                )
                if right <= left or bottom <= top:  # a mistake, not a box of one pixel
                    yield image, ("", 0, 0.0, 0.0, 0.0, 0.0)
                    continue
                yield image, (one.findtext("name") or "", 0, top - 1, left - 1, bottom, right)
        except (ParseError, DefusedXmlException, ValueError) as error:
            raise DataError(f"{path}: not VOC's form of boxes: {error}") from error
