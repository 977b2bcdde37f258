"""Public sets with natural hospitals, and phantoms, as sources of a scenario. Files are the originals, as published.

heart-disease       Fed-Heart-Disease: see `simulations.heart`
nuclei-crops        Data Science Bowl 2018 (BBBC038; Caicedo et al., Nature Methods 2019; CC0): stains and
                    microscopes. Crops whose centre is in a nucleus, or in none: classification
hippocampus-slices  Medical Segmentation Decathlon, Task04 (Simpson et al., arXiv:1902.09063; CC BY-SA 4.0): axial
                    MRI slices that cross the hippocampus, or don't
phantoms            chest radiographs of people who do not exist
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import distance_transform_edt

from client.dataset import CaseSet
from client.intake import nifti
from client.placing import as_case
from common.errors import DataError, UsageError
from common.job import DataSection
from simulations.heart import FEATURES, hospitals
from simulations.phantoms import draw_anatomy, draw_opacities, draw_pose, draw_radiograph
from simulations.radiographs import Scanner, detect
from simulations.slices import Volume, labels_of
from simulations.sources import Source, Wanted, joined, numbered

CROPS, CROP, AWAY = 8, 32, 4
"""Crops of a field, half of each class; their side in pixels; how far from every nucleus a crop without one is."""
PHANTOM_SCANNER = Scanner("phantom", bits=12)


def heart_disease(wanted: Wanted) -> Source:
    """FLamby's features, rows and split of the four hospitals; the label is `heart.DISEASE` or none."""
    if wanted.data.features != FEATURES:
        raise UsageError(f"job.data.features must be those of Fed-Heart-Disease: {list(FEATURES)}")
    parts, hospital_of, splits = [], [], []
    for name, hospital in hospitals(wanted.path).items():
        for split, cases in hospital.splits.items():
            parts.append(cases)
            hospital_of += [name] * len(cases.labels)
            splits += [split] * len(cases.labels)
    return Source(joined(parts), {"hospital": tuple(hospital_of)}, tuple(splits))


def nuclei_crops(wanted: Wanted) -> Source:
    """Crops of every field; a field is a patient. Columns "site" (stain and microscope) and "stain"."""
    _require_labels(wanted, ("none", "nucleus"))
    folder = wanted.path
    images: list[np.ndarray] = []
    labels: list[str] = []
    fields: list[str] = []
    sites: list[str] = []
    for row in index_of(folder):
        with Image.open(folder / "images" / f"{row['id']}.png") as picture:
            grey = picture.mode in ("L", "I")
            colours = np.asarray(picture.convert("L" if grey else "RGB"), np.float32) / np.float32(255)
        with Image.open(folder / "labels" / f"{row['id']}.png") as picture:
            outlines = np.asarray(picture)
        random = np.random.default_rng([wanted.seed, *row["id"].encode()])
        for (top, left), inside in _places(outlines, random):
            crop = colours[top : top + CROP, left : left + CROP]
            images.append(as_case(crop if crop.ndim == 3 else crop[..., None], wanted.data))
            labels.append("nucleus" if inside else "none")
            fields.append(row["id"])
            sites.append(row["site"])
    cases = CaseSet(np.stack(images), tuple(labels), numbered(fields))
    return Source(cases, {"site": tuple(sites), "stain": tuple(site.split("_", 1)[0] for site in sites)})


def hippocampus_slices(wanted: Wanted) -> Source:
    """Axial slices of every volume; labels "absent" and "present", or none. Column "site": how intensities are stored.

    And column "hospital": of the more frequent way of storing them, every other volume is another hospital's.
    """
    if wanted.labels:
        _require_labels(wanted, ("absent", "present"))
    folder = wanted.path
    images: list[np.ndarray] = []
    labels: list[str] = []
    patients: list[str] = []
    sites: list[str] = []
    hospitals: list[str] = []
    for place, row in enumerate(index_of(folder)):
        name = f"{row['id']}.nii.gz"
        volume = Volume(row["id"], folder / "images" / name, folder / "labels" / name)
        slices = [as_case(image, wanted.data) for image in nifti.frames(volume.image)]
        found = labels_of(volume)
        if len(found) != len(slices):
            raise DataError(f"{volume.outlines}: {len(found)} slices, but {volume.image} has {len(slices)}")
        images += slices
        labels += found
        patients += [row["id"]] * len(slices)
        sites += [row["site"]] * len(slices)
        hospitals += [f"{row['site']}_{place % 2}" if row["site"].startswith("B") else row["site"]] * len(slices)
    columns = {"site": tuple(sites), "hospital": tuple(hospitals)}
    return Source(CaseSet(np.stack(images), tuple(labels), numbered(patients)), columns)


def phantoms(wanted: Wanted) -> Source:
    """People who do not exist, one radiograph each; labels "normal" and "pneumonia"."""
    _require_labels(wanted, ("normal", "pneumonia"))
    return Source(
        draw_phantoms(wanted.section.patients, wanted.section.prevalence, wanted.data, (wanted.seed,)),
        unseen=draw_phantoms(max(100, wanted.section.patients // 5), 0.5, wanted.data, (wanted.seed, 1)),
    )


def draw_phantoms(count: int, prevalence: float, data: DataSection, seed: Sequence[int]) -> CaseSet:
    """Draw `count` people, each with one radiograph. The same seed gives the same people."""
    if len(data.size) != 2:
        raise UsageError("phantoms are 2D: give job.data.size two numbers")
    random = np.random.default_rng([7, *seed])
    images, labels = np.empty((count, data.channels, *data.size), np.float32), []
    for place in range(count):
        ill = bool(random.random() < prevalence)
        anatomy = draw_anatomy(random)
        attenuation = draw_radiograph(
            anatomy, draw_opacities(random, anatomy, pneumonia=ill), draw_pose(random), max(data.size)
        )
        stored = detect(attenuation, PHANTOM_SCANNER, random).astype(np.float32) / np.float32(4095)
        images[place] = as_case(stored[..., None], data)
        labels.append("pneumonia" if ill else "normal")
    return CaseSet(images, tuple(labels), np.arange(count, dtype=np.int64))


def _require_labels(wanted: Wanted, labels: tuple[str, ...]) -> None:
    if set(wanted.labels) != set(labels):
        raise UsageError(f"job.task.labels must be {list(labels)} with source.kind = {wanted.section.kind!r}")


def index_of(folder: Path) -> list[dict[str, str]]:
    """Return the rows of a set's index.csv: at least "id" and "site". Raises DataError."""
    path = folder / "index.csv"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from error
    if not rows or not {"id", "site"} <= set(rows[0]):
        raise DataError(f'{path}: it needs the columns "id" and "site", and a row for each image')
    return rows


def _places(outlines: np.ndarray, random: np.random.Generator) -> list[tuple[tuple[int, int], bool]]:
    """Draw where crops begin, and whether their centre is in a nucleus: half of each where there is room."""
    half = CROP // 2
    room = np.zeros(outlines.shape, bool)
    room[half : outlines.shape[0] - half, half : outlines.shape[1] - half] = True
    away = distance_transform_edt(outlines == 0) >= AWAY
    chosen = []
    for where, inside in ((room & (outlines > 0), True), (room & away, False)):
        spots = np.argwhere(where)
        taken = random.permutation(len(spots))[: CROPS // 2]
        chosen += [((int(row) - half, int(column) - half), inside) for row, column in spots[taken]]
    return chosen
