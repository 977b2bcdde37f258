"""Public sets with outlines, as sources of a scenario: masks of structures, as a site would give them.

nuclei-masks         Data Science Bowl 2018 (BBBC038; Caicedo et al., Nature Methods 2019; CC0): fields of nuclei, by
                     stain and microscope
hippocampus-volumes  Medical Segmentation Decathlon, Task04 (Simpson et al., arXiv:1902.09063; CC BY-SA 4.0): T1
                     MRI, the anterior and the posterior hippocampus. Two ways of storing intensities; one of them,
                     three times as frequent as the other, is split into two hospitals
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from client.annotations import mask_of
from client.catalog import FileRecord
from client.dataset import CaseSet
from client.intake import nifti
from client.intake.annotation.masks import Structures, drawn_in
from client.placing import as_case, as_mask
from common.errors import UsageError
from simulations.sources import Source, Wanted, numbered

PARTS = {"1": "anterior", "2": "posterior"}


def nuclei_masks(wanted: Wanted) -> Source:
    """Whole fields; a field is a patient. Columns "site" (stain and microscope) and "stain"."""
    _require_labels(wanted, ("nucleus",))
    rows = _rows(wanted.path)
    images, masks = [], []
    for row in rows:
        with Image.open(wanted.path / "images" / f"{row['id']}.png") as picture:
            grey = picture.mode in ("L", "I")
            colours = np.asarray(picture.convert("L" if grey else "RGB"), np.float32) / np.float32(255)
        with Image.open(wanted.path / "labels" / f"{row['id']}.png") as outlines:
            inside = (np.asarray(outlines) > 0).astype(np.uint8)
        images.append(as_case(colours if colours.ndim == 3 else colours[..., None], wanted.data))
        masks.append(as_mask(inside, wanted.data))
    sites = tuple(row["site"] for row in rows)
    stains = tuple(site.split("_", 1)[0] for site in sites)
    return _source(images, masks, rows, {"site": sites, "stain": stains})


def hippocampus_volumes(wanted: Wanted) -> Source:
    """Whole volumes. Columns "site" (how intensities are stored) and "hospital" (of these, one in two)."""
    _require_labels(wanted, tuple(sorted(PARTS.values())))
    if len(wanted.data.size) != 3:
        raise UsageError("hippocampus-volumes are 3D: give job.data.size three numbers")
    rows = _rows(wanted.path)
    images, masks = [], []
    for row in rows:
        name = f"{row['id']}.nii.gz"
        path = wanted.path / "images" / name
        volume = nifti.volume([path])
        spacing = nifti.grid([path]).spacing
        record = FileRecord(str(path.parent), name, 0, 0, format="nifti", frames=volume.shape[0],
                            rows=volume.shape[1], columns=volume.shape[2])  # fmt: skip
        drawn = drawn_in(wanted.path / "labels" / name, record, Structures(PARTS))
        images.append(as_case(volume, wanted.data, spacing))
        masks.append(as_mask(mask_of(drawn, wanted.labels), wanted.data, spacing))
    hospitals = tuple(_hospital(row["site"], place) for place, row in enumerate(rows))
    return _source(images, masks, rows, {"site": tuple(row["site"] for row in rows), "hospital": hospitals})


def _hospital(site: str, place: int) -> str:
    return f"{site}_{place % 2}" if site.startswith("B") else site


def _source(
    images: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    rows: Sequence[dict[str, str]],
    columns: dict[str, tuple[str, ...]],
) -> Source:
    patients = numbered([row["id"] for row in rows])
    return Source(CaseSet(np.stack(images), ("",) * len(rows), patients, np.stack(masks)), columns)


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "index.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _require_labels(wanted: Wanted, labels: tuple[str, ...]) -> None:
    if tuple(sorted(wanted.labels)) != labels:
        raise UsageError(f"job.task.labels must be {list(labels)} with source.kind = {wanted.section.kind!r}")
