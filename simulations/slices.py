"""Axial slices of the hippocampus MRI volumes: a real set in which one patient has some forty images.

Data: Medical Segmentation Decathlon, Task04 (Simpson et al., arXiv:1902.09063; CC BY-SA 4.0): T1 MRI crops around one
hippocampus, with the outlines of its anterior and posterior part. The question put to a slice is whether it crosses the
hippocampus: the outlines only make the label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image

from client.catalog import CATALOG_FILE, Catalog
from client.intake import nifti
from client.intake.importer import ImportOptions, import_folder
from common.errors import DataError
from simulations.federation import LocalFederation, create_federation
from simulations.radiographs import LABELS_FILE, write_table
from simulations.study import REFEREE

FOLDER, HOSPITAL, COLLECTION = "hippocampus_mri", "hospital", "slices"
LABELS = ("absent", "present")
"""The hippocampus, in a slice."""


@dataclass(frozen=True)
class Volume:
    """One patient's image and outlines, both NIfTI."""

    patient: str
    image: Path
    outlines: Path


def volumes_in(data: Path) -> tuple[Volume, ...]:
    """Return the volumes of `data`/hippocampus_mri by name. Raises DataError when there are none."""
    images = sorted((data / FOLDER / "images").glob("*.nii.gz"))
    if not images:
        raise DataError(f"{data / FOLDER / 'images'} has no volume: name the folder that holds {FOLDER}/ with --data")
    return tuple(
        Volume(image.name.removesuffix(".nii.gz"), image, data / FOLDER / "labels" / image.name) for image in images
    )


def split_patients(volumes: Sequence[Volume], share: float, seed: int) -> tuple[tuple[Volume, ...], tuple[Volume, ...]]:
    """Return a share of the patients at random, and the others: all slices of a patient are on one side."""
    order = np.random.default_rng(seed).permutation(len(volumes))
    first = round(share * len(volumes))
    return tuple(volumes[at] for at in order[:first]), tuple(volumes[at] for at in order[first:])


def labels_of(volume: Volume) -> tuple[str, ...]:
    """Return the label of each axial slice, in the order of `nifti.frames`. Raises DataError unless outlines fit."""
    outlines: Any = nibabel.nifti1.Nifti1Image.from_filename(volume.outlines)
    marked: np.ndarray = np.asarray(outlines.dataobj) > 0
    turns: Any = nibabel.orientations
    if (axes := "".join(turns.aff2axcodes(outlines.affine))) != "RAS":
        raise DataError(f"{volume.outlines}: its axes run to {axes}, this set's to RAS: it is another file")
    return tuple(LABELS[int(crossed)] for crossed in np.max(marked, axis=(0, 1)))


def write_slices(volumes: Sequence[Volume], folder: Path) -> Path:
    """Write each axial slice as a PNG file, 8 bits, with labels.csv (file, patient, label); return that file's path.

    Intensities are those that the intake makes of the whole volume. Raises DataError for a volume without its outlines.
    """
    rows = []
    for volume in volumes:
        labels, slices = labels_of(volume), list(nifti.frames(volume.image))
        if len(labels) != len(slices):
            raise DataError(f"{volume.outlines}: {len(labels)} slices, but {volume.image} has {len(slices)}")
        (folder / volume.patient).mkdir(parents=True, exist_ok=True)
        for number, (pixels, label) in enumerate(zip(slices, labels, strict=True)):
            name = f"{volume.patient}/{number:02d}.png"
            Image.fromarray(np.round(255 * pixels[..., 0]).astype(np.uint8)).save(folder / name)
            rows.append((name, volume.patient, label))
    return write_table(folder / LABELS_FILE, ("file", "patient", "label"), rows)


def prepare_slices(folder: Path, data: Path, *, share: float, seed: int) -> LocalFederation:
    """Make one hospital with a share of the patients, and a referee with the others: kits, PNG files, imports.

    Raises UsageError or DataError as the parts do.
    """
    federation = create_federation(folder, (HOSPITAL, REFEREE), collection=COLLECTION, private=False)
    for site, volumes in zip((HOSPITAL, REFEREE), split_patients(volumes_in(data), share, seed), strict=True):
        labels = write_slices(volumes, federation.data(site))
        options = ImportOptions(fractions=(1.0, 0.0, 0.0), seed=seed)
        import_folder(federation.site_kit(site), COLLECTION, federation.data(site), labels, options=options)
    return federation


def count_slices(federation: LocalFederation, site: str) -> tuple[int, int]:
    """Return how many slices and patients a site has."""
    cases = Catalog(federation.site_kit(site) / CATALOG_FILE).cases(COLLECTION, "train")
    return len(cases), len({case.patient for case in cases})
