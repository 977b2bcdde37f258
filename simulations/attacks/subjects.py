"""Whom an attack is tried on: phantoms, a site's own collection, or a folder of images with labels."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from client.catalog import CATALOG_FILE, Catalog
from client.dataset import CaseSet, open_cases
from client.intake.importer import ImportOptions, import_folder
from client.site import CACHE_FOLDER
from common.errors import DataError
from common.job import Job
from common.kit import read_kit
from simulations.phantoms import draw_anatomy, draw_opacities, draw_pose, draw_radiograph
from simulations.radiographs import LABELS_FILE, Scanner, detect

SCANNER = Scanner("phantom", bits=12, noise=0.03, blur=0.6)


def phantom_cases(job: Job, patients: int, *, images_each: int = 1, seed: int = 0) -> CaseSet:
    """Return phantoms in the form that the job wants, `images_each` of every patient; labels by turns.

    A patient with a label of odd number has pneumonia. A 3D size gets one radiograph throughout its depth.
    """
    images, labels, side = [], [], max(job.data.size[-2:])
    for patient in range(patients):
        random, number = np.random.default_rng([seed, patient]), patient % len(job.task.labels)
        anatomy = draw_anatomy(random)
        opacities = draw_opacities(random, anatomy, pneumonia=number % 2 == 1)
        for _ in range(images_each):
            attenuation = draw_radiograph(anatomy, opacities, draw_pose(random), side)
            image = detect(attenuation, SCANNER, random) / np.float32(2**SCANNER.bits - 1)
            images.append(np.broadcast_to(_cropped(image, job.data.size), (job.data.channels, *job.data.size)))
            labels.append(job.task.labels[number])
    numbers = np.repeat(np.arange(patients, dtype=np.int64), images_each)
    return CaseSet(np.stack(images).astype(np.float32), tuple(labels), numbers)


def _cropped(image: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    rows, columns = ((whole - part) // 2 for whole, part in zip(image.shape, size[-2:], strict=True))
    return image[rows : rows + size[-2], columns : columns + size[-1]]


def site_cases(job: Job, kit: Path) -> CaseSet:
    """Return the training split of the job's collection at the site with that kit. Raises KitError or DataError."""
    read_kit(kit, "site")
    return open_cases(Catalog(kit / CATALOG_FILE), job.data, "train", kit / CACHE_FOLDER)


@contextmanager
def folder_cases(job: Job, folder: Path) -> Iterator[CaseSet]:
    """Read a folder of images with labels.csv as a site's intake does, into a place that is gone afterwards.

    Raises DataError for a folder or labels that the intake can't use.
    """
    labels = folder / LABELS_FILE
    if not labels.is_file():
        raise DataError(f"{labels} is missing: it says what the images show (columns: patient, study or file; label)")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        options = ImportOptions(fractions=(1.0, 0.0, 0.0))
        report = import_folder(scratch, job.data.collection, folder, labels, options=options)
        if not report.indexed:
            raise DataError(f"{folder}: no image could be used: {report.refused[0][1] if report.refused else 'none'}")
        yield open_cases(Catalog(scratch / CATALOG_FILE), job.data, "train", scratch / CACHE_FOLDER)
