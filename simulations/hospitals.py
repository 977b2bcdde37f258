"""Phantom hospitals: folders of DICOM studies of people who do not exist, each hospital with its own ways."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from simulations.phantoms import Anatomy, Opacity, draw_anatomy, draw_opacities, draw_pose, draw_radiograph
from simulations.radiographs import LABELS_FILE, Exposure, Scanner, detect, radiograph, save, write_table

LABELS = ("normal", "pneumonia")
IMAGE_SIZE = 96
"""Rows and columns of a phantom radiograph."""


@dataclass(frozen=True)
class Hospital:
    """A hospital: how many patients, how many of them ill, how many come more than once, and what it scans with.

    `label_key` is the column by which its labels.csv names images: by patient, study or file, as hospitals differ.
    """

    name: str
    patients: int
    prevalence: float
    repeated: float
    scanner: Scanner
    label_key: Literal["PatientID", "StudyInstanceUID", "file"] = "PatientID"


HOSPITALS = (
    Hospital("northfield", 600, 0.45, 0.30, Scanner("DX 12", bits=12, noise=0.03, blur=0.6)),
    Hospital(
        "eastbrook", 400, 0.30, 0.20,
        Scanner("CR 10", modality="CR", bits=10, inverted=True, encoding="rle", noise=0.05, blur=1.0),
        "StudyInstanceUID",
    ),
    Hospital(
        "southgate", 250, 0.60, 0.50,
        Scanner("DX 14", bits=14, window=False, encoding="jpeg2000", noise=0.04, blur=0.4),
        "file",
    ),
)  # fmt: skip
"""The three hospitals of the demo. Further ones are made after their pattern."""


def make_hospitals(count: int) -> tuple[Hospital, ...]:
    """Return `count` hospitals: the three of `HOSPITALS`, then more like them, each with its own scanner."""
    made = []
    for index in range(count):
        model, again = HOSPITALS[index % len(HOSPITALS)], index // len(HOSPITALS)
        if again:
            name, blur = f"{model.scanner.model} v{again + 1}", model.scanner.blur + 0.2 * again
            scanner = replace(model.scanner, model=name, blur=blur)
            model = replace(model, name=f"{model.name}-{again + 1}", scanner=scanner)
        made.append(model)
    return tuple(made)


def write_hospital(hospital: Hospital, folder: Path, seed: int) -> Path:
    """Write a hospital's studies below `folder`, a folder a patient, and return the path of its labels.csv.

    The same hospital and seed give the same bytes.
    """
    rows: list[tuple[str, str]] = []
    for number in range(1, hospital.patients + 1):
        rows.extend(_write_patient(hospital, folder, number, seed))
    return write_table(folder / LABELS_FILE, (hospital.label_key, "label"), rows)


@dataclass(frozen=True)
class _Patient:
    code: str
    anatomy: Anatomy
    opacities: tuple[Opacity, ...]
    label: str
    exposures: tuple[Exposure, ...]


def _draw_patient(hospital: Hospital, number: int, generator: np.random.Generator) -> _Patient:
    code = f"{hospital.name[:2].upper()}{number:05d}"
    ill = bool(generator.random() < hospital.prevalence)
    anatomy = draw_anatomy(generator)
    exposures = [Exposure(code)]
    if generator.random() < hospital.repeated:
        exposures.append(Exposure(code, study=1, instance=2, view="AP"))
        if generator.random() < 0.5:
            exposures.append(Exposure(code, study=2, instance=1))
    opacities = draw_opacities(generator, anatomy, pneumonia=ill)
    return _Patient(code, anatomy, opacities, LABELS[ill], tuple(exposures))


def _write_patient(hospital: Hospital, folder: Path, number: int, seed: int) -> Iterator[tuple[str, str]]:
    # A generator for each patient: adding patients to a hospital changes no other's images.
    generator = np.random.default_rng([seed, *hospital.name.encode(), number])
    patient = _draw_patient(hospital, number, generator)
    home = folder / patient.code
    home.mkdir(parents=True, exist_ok=True)
    for exposure in patient.exposures:
        attenuation = draw_radiograph(patient.anatomy, patient.opacities, draw_pose(generator), IMAGE_SIZE)
        pixels = detect(attenuation, hospital.scanner, generator)
        dataset = radiograph(pixels, hospital.scanner, exposure, origin=f"{hospital.name}/{seed}")
        path = home / f"study{exposure.study}-{exposure.instance}.dcm"
        save(dataset, path)
        keys = {
            "PatientID": patient.code,
            "StudyInstanceUID": str(dataset.StudyInstanceUID),
            "file": path.relative_to(folder).as_posix(),
        }
        yield keys[hospital.label_key], patient.label


def main(arguments: Sequence[str]) -> None:
    """Write one hospital: INDEX (from 0) FOLDER SEED, and optionally its number of patients."""
    index, folder, seed = int(arguments[0]), Path(arguments[1]), int(arguments[2])
    hospital = make_hospitals(index + 1)[index]
    if arguments[3:]:
        hospital = replace(hospital, patients=int(arguments[3]))
    write_hospital(hospital, folder, seed)


if __name__ == "__main__":
    main(sys.argv[1:])
