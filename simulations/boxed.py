"""Public sets with boxes, as sources of a scenario: what a site would have with `--boxes`, read by the same code.

nuclei-boxes  Data Science Bowl 2018 (BBBC038; Caicedo et al., Nature Methods 2019; CC0): the middle of each field, with
              a box around each nucleus, by stain and microscope
blood-cells   BCCD (MIT): whole smears, with boxes of red cells (RBC), white cells (WBC) and platelets; two of no extent
              are left out. No hospitals are given
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from client.annotations import Annotation, boxes_of
from client.catalog import FileRecord
from client.dataset import CaseSet
from client.intake.annotation.boxes import read_boxes
from client.intake.annotation.masks import Structures, of_instances
from client.placing import as_boxes, as_case
from common.errors import DataError, UsageError
from common.tasks.parameters import Detection
from simulations.public_sets import index_of
from simulations.sources import Source, Wanted, numbered

NUCLEUS, CELLS = "nucleus", ("RBC", "WBC", "Platelets")
WINDOW = 128
"""The side of what is taken of a field, in pixels, about its middle."""


def nuclei_boxes(wanted: Wanted) -> Source:
    """The middle of every field; a field is a patient. Columns "site" (stain and microscope) and "stain".

    A nucleus that the window cuts is boxed as far as it is seen.
    """
    if wanted.labels != (NUCLEUS,):
        raise UsageError(f'job.task.labels must be ["{NUCLEUS}"] with source.kind = "nuclei-boxes"')
    rows, images, boxes = index_of(wanted.path), [], []
    for row in rows:
        with Image.open(wanted.path / "labels" / f"{row['id']}.png") as picture:
            outlines = _middle(np.asarray(picture))
        images.append(as_case(_middle(_pixels(wanted.path / "images" / f"{row['id']}.png")), wanted.data))
        boxes.append(_placed(of_instances(outlines[None].astype(np.int64), NUCLEUS), wanted))
    sites = tuple(row["site"] for row in rows)
    cases = CaseSet(np.stack(images), ("",) * len(rows), numbered([row["id"] for row in rows]), np.stack(boxes))
    return Source(cases, {"site": sites, "stain": tuple(site.split("_", 1)[0] for site in sites)})


def blood_cells(wanted: Wanted) -> Source:
    """Every smear; a smear is a patient. The job names any of RBC, WBC and Platelets."""
    if unknown := set(wanted.labels) - set(CELLS):
        raise UsageError(f"job.task.labels must be of {list(CELLS)} with blood-cells, not {sorted(unknown)}")
    known, images, boxes = read_boxes(wanted.path / "boxes"), [], []
    for path in sorted((wanted.path / "images").glob("*.jpg")):
        pixels = _pixels(path)
        record = FileRecord(str(path.parent), path.name, 0, 0, frames=1, rows=pixels.shape[0], columns=pixels.shape[1])
        drawn = known.of(record, Structures({}))
        if drawn is None:
            raise DataError(f"{path}: {known.source} has no boxes of it")
        images.append(as_case(pixels, wanted.data))
        boxes.append(_placed(drawn, wanted))
    if not images:
        raise DataError(f"{wanted.path / 'images'}: there is no smear (*.jpg)")
    return Source(CaseSet(np.stack(images), ("",) * len(images), np.arange(len(images)), np.stack(boxes)))


def _pixels(path: Path) -> np.ndarray:
    """A picture as (rows, columns, 1 or 3) in [0, 1]."""
    with Image.open(path) as picture:
        grey = picture.mode in ("L", "I")
        colours = np.asarray(picture.convert("L" if grey else "RGB"), np.float32) / np.float32(255)
    return colours if colours.ndim == 3 else colours[..., None]


def _placed(drawn: Annotation, wanted: Wanted) -> np.ndarray:
    return as_boxes(boxes_of(drawn, wanted.labels, 0), drawn.extent[1:], wanted.data, Detection().most_boxes)


def _middle(pixels: np.ndarray) -> np.ndarray:
    starts = [max(0, (n - WINDOW) // 2) for n in pixels.shape[:2]]
    return pixels[starts[0] : starts[0] + WINDOW, starts[1] : starts[1] + WINDOW]
