"""Where a scenario's cases come from: arrays, folders, sites' catalogs, tables, and public sets with natural hospitals.

Every source gives the same thing: cases as arrays, whose they are, and columns by which they can be split. Nothing is
fetched: paths are below the scenario's folder or `WARDROUND_DATA`.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from client.catalog import CATALOG_FILE, SPLITS, Catalog
from client.dataset import CaseSet, open_cases
from client.intake.columns import MISSING
from client.intake.image import FileRefusedError
from client.intake.importer import ImportOptions, import_folder
from client.intake.table import vector
from common.errors import DataError, UsageError
from common.job import DataSection
from simulations.radiographs import LABELS_FILE
from simulations.scenario import SourceSection

DATA_VARIABLE = "WARDROUND_DATA"
CATALOGS = "imported"
"""The folder, below the results', where the catalogs of imported folders are kept."""


@dataclass(frozen=True)
class Source:
    """Cases of a study: `cases`, by column a text of each case, and a test set of nobody's (`unseen`) if there is one.

    `splits`: where the source itself says which cases are for training and which for tests ("train", "test").
    """

    cases: CaseSet
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    splits: tuple[str, ...] | None = None
    unseen: CaseSet | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of everything in it."""
        found = hashlib.sha256()
        for cases in (self.cases, self.unseen):
            if cases is not None:
                found.update(f"{cases.images.shape}{cases.images.dtype}".encode())
                found.update(np.ascontiguousarray(cases.images).data)
                found.update(np.ascontiguousarray(cases.patients).data)
                found.update("\0".join(cases.labels).encode())
                if cases.truth is not None:
                    found.update(np.ascontiguousarray(cases.truth).data)
        for name, texts in sorted(self.columns.items()):
            found.update("\0".join((name, *texts)).encode())
        found.update("\0".join(self.splits or ()).encode())
        return found.hexdigest()


@dataclass(frozen=True)
class Wanted:
    """What a source is asked for: its section, the job's form of the data and labels, where to look, a seed."""

    section: SourceSection
    data: DataSection
    labels: tuple[str, ...]
    folder: Path
    scratch: Path
    seed: int

    @property
    def path(self) -> Path:
        """The source's path, found below the scenario's folder or `WARDROUND_DATA`. Raises UsageError."""
        given = self.section.path
        places = [self.folder / given]
        if (data := os.environ.get(DATA_VARIABLE)) is not None:
            places.append(Path(data) / given)
        for place in places:
            if place.exists():
                return place
        hint = "" if data else f": set {DATA_VARIABLE} to the folder that holds it"
        raise UsageError(f'source.path: there is no "{given or "."}" at {" or ".join(map(str, places))}{hint}')


def open_source(wanted: Wanted) -> Source:
    """Return the source's cases, at most `limit` patients of them. Raises UsageError or DataError."""
    from simulations.boxed import blood_cells, nuclei_boxes
    from simulations.public_sets import heart_disease, hippocampus_slices, nuclei_crops, phantoms
    from simulations.structures import hippocampus_volumes, nuclei_masks

    openers: dict[str, Callable[[Wanted], Source]] = {
        "npz": _npz,
        "folder": _folder,
        "catalog": _catalog,
        "table": _table,
        "heart-disease": heart_disease,
        "nuclei-crops": nuclei_crops,
        "nuclei-masks": nuclei_masks,
        "nuclei-boxes": nuclei_boxes,
        "blood-cells": blood_cells,
        "hippocampus-slices": hippocampus_slices,
        "hippocampus-volumes": hippocampus_volumes,
        "phantoms": phantoms,
    }
    if wanted.data.table != (wanted.section.kind in ("table", "heart-disease")):
        raise UsageError(
            f'source.kind "{wanted.section.kind}" and job.data.features don\'t go together: '
            "features name the columns of a table"
        )
    found = openers[wanted.section.kind](wanted)
    return _limited(found, wanted.section.limit, wanted.seed)


def as_images(pixels: np.ndarray, wanted: DataSection) -> np.ndarray:
    """Return (N, rows, columns[, C]) of uint8, or of floats in [0, 1], as (N, C, *size) float32. Raises DataError."""
    from client.placing import as_case  # the deployment's own: simulated images are made as imported ones

    if pixels.ndim not in (3, 4) or (pixels.ndim == 4 and pixels.shape[-1] not in (1, 3)):
        raise DataError(f"images must be (N, rows, columns) or (N, rows, columns, 1 or 3), got {pixels.shape}")
    if len(wanted.size) != 2:
        raise DataError("these images are 2D: give job.data.size two numbers")
    scale = np.float32(1 / 255) if pixels.dtype == np.uint8 else np.float32(1)
    if pixels.dtype != np.uint8 and (pixels.dtype.kind != "f" or pixels.min() < 0 or pixels.max() > 1):
        raise DataError(f"images must be uint8, or floats in [0, 1], got {pixels.dtype}")
    shaped = pixels if pixels.ndim == 4 else pixels[..., None]
    made = np.empty((len(pixels), wanted.channels, *wanted.size), np.float32)
    for place, image in enumerate(shaped):
        made[place] = as_case(image.astype(np.float32) * scale, wanted)
    return made


def numbered(names: Sequence[str]) -> np.ndarray:
    """Return a number for each name, from 0 in the order in which they first come."""
    index = {name: place for place, name in enumerate(dict.fromkeys(names))}
    return np.array([index[name] for name in names], dtype=np.int64)


def _npz(wanted: Wanted) -> Source:
    path, section = wanted.path, wanted.section
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{path}: can't be read as NPZ: {error}") from error
    cases, columns = _arrays(arrays, section.arrays, wanted, path)
    unseen = _arrays(arrays, section.unseen, wanted, path)[0] if section.unseen else None
    return Source(cases, columns, unseen=unseen)


def _arrays(
    arrays: Mapping[str, np.ndarray], part: str, wanted: Wanted, path: Path
) -> tuple[CaseSet, dict[str, tuple[str, ...]]]:
    for name in ("images", "labels"):
        if f"{part}_{name}" not in arrays:
            raise DataError(f'{path}: it has no array "{part}_{name}": there are {", ".join(arrays)}')
    images, labels = as_images(arrays[f"{part}_images"], wanted.data), arrays[f"{part}_labels"].reshape(-1)
    others = {
        name.removeprefix(f"{part}_"): values.reshape(-1)
        for name, values in arrays.items()
        if name.startswith(f"{part}_") and not name.endswith("_images") and values.size == len(images)
    }
    if len(labels) != len(images):
        raise DataError(f"{path}: {len(images)} images, but {len(labels)} labels")
    texts = tuple(map(str, labels.tolist()))
    if labels.dtype.kind in "iu":  # numbers are places in the job's list
        if labels.min() < 0 or labels.max() >= len(wanted.labels):
            raise DataError(
                f"{path}: labels go from {labels.min()} to {labels.max()}, the job names {len(wanted.labels)}"
            )
        texts = tuple(wanted.labels[label] for label in labels.tolist())
    patients = others.pop("patients", np.arange(len(images)))
    columns = {name: tuple(map(str, values.tolist())) for name, values in others.items() if name != "labels"}
    return CaseSet(images, texts, numbered([str(patient) for patient in patients.tolist()])), columns


def _folder(wanted: Wanted) -> Source:
    """Images that the intake reads, with labels.csv. Columns: the first folder, modality, those of labels.csv."""
    path = wanted.path
    labels = path / LABELS_FILE
    if not labels.is_file():
        raise DataError(f"{labels} is missing: it says what the images show (columns: patient, study or file; label)")
    kit = wanted.scratch / CATALOGS / hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    kit.mkdir(parents=True, exist_ok=True)
    import_folder(kit, wanted.data.collection, path, labels, options=ImportOptions(fractions=(1.0, 0.0, 0.0), seed=0))
    cases, owners = _opened(kit, kit / "cache", wanted.data)
    inside = [place.resolve().relative_to(path.resolve()).as_posix() for place, _ in owners]
    columns = {"folder": [name.split("/", 1)[0] if "/" in name else "" for name in inside],
               "modality": [modality for _, modality in owners]}  # fmt: skip
    with labels.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    by_file = {row["file"]: row for row in rows if row.get("file")}
    if by_file and all(name in by_file for name in inside):
        for column in rows[0]:
            columns.setdefault(str(column), [str(by_file[name][column]) for name in inside])
    return Source(cases, _of_patients(columns, cases))


def _catalog(wanted: Wanted) -> Source:
    """One kit with a catalog, or a folder of such kits; column "kit" has their folders' names."""
    path = wanted.path
    kits = (
        [path] if (path / CATALOG_FILE).exists() else sorted(found.parent for found in path.glob(f"*/{CATALOG_FILE}"))
    )
    if not kits:
        raise DataError(f"{path}: there is no {CATALOG_FILE} in it, nor in a folder below it: name a site's kit")
    parts, names = [], []
    for kit in kits:
        cache = wanted.scratch / CATALOGS / hashlib.sha256(str(kit.resolve()).encode()).hexdigest()[:16]
        cache.mkdir(parents=True, exist_ok=True)
        parts.append(_opened(kit, cache, wanted.data)[0])
        names += [kit.name] * len(parts[-1].labels)
    return Source(joined(parts), {"kit": tuple(names)})


def _opened(kit: Path, cache: Path, data: DataSection) -> tuple[CaseSet, list[tuple[Path, str]]]:
    """All cases of a catalog's collection, and of each patient, in their order, a file and its modality."""
    catalog, parts, owners = Catalog(kit / CATALOG_FILE), [], []
    for split in SPLITS:
        if not (found := catalog.cases(data.collection, split)):
            continue
        first = {case.patient: (case.image, case.modality) for case in reversed(found)}
        owners += [first[patient] for patient in dict.fromkeys(case.patient for case in found)]
        parts.append(open_cases(catalog, data, split, cache))
        if parts[-1].patient_count != len(dict.fromkeys(case.patient for case in found)):
            raise DataError(f"{kit}: the same file belongs to two patients: import it once")
    if not parts:
        raise DataError(f'{kit}: it has no collection "{data.collection}": name it in job.data.collection')
    return joined(parts), owners


def _of_patients(columns: Mapping[str, Sequence[str]], cases: CaseSet) -> dict[str, tuple[str, ...]]:
    """Turn columns that have a value for each patient into such that have one for each case."""
    return {name: tuple(texts[patient] for patient in cases.patients) for name, texts in columns.items()}


def _table(wanted: Wanted) -> Source:
    """A CSV file, without the rows that lack a feature. All columns are such that it can be split by."""
    path, section = wanted.path, wanted.section
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: can't be read as CSV: {error}") from error
    if not rows:
        raise DataError(f"{path}: it has no row below its heading")
    names = [name for name in rows[0] if name is not None]
    needed = (section.label, *((section.patient,) if section.patient else ()))
    if missing := next((name for name in needed if name not in names), None):
        raise DataError(f'{path}: it has no column "{missing}": there are {", ".join(names)}')
    used = {feature.partition("=")[0] for feature in wanted.data.features}
    rows = [row for row in rows if not any(_cell(row, name).casefold() in MISSING for name in used)]
    if not rows:
        raise DataError(f"{path}: every row lacks a value of one of the features: {', '.join(sorted(used))}")
    patients = [_cell(row, section.patient) for row in rows] if section.patient else list(map(str, range(len(rows))))
    columns = {name: tuple(_cell(row, name) for row in rows) for name in names}
    try:
        values = np.stack([vector({name: _cell(row, name) for name in names}, wanted.data.features) for row in rows])
    except FileRefusedError as error:
        raise DataError(f"{path}: {error}") from error
    return Source(CaseSet(values, columns[section.label], numbered(patients)), columns)


def _cell(row: Mapping[str, str | None], name: str) -> str:
    """A cell's text; a column that is not there is said by whoever reads the features."""
    return (row.get(name, "-") or "").strip()


def joined(parts: Sequence[CaseSet]) -> CaseSet:
    """Return several sets of different patients as one."""
    offsets = np.cumsum([0, *(part.patient_count for part in parts[:-1])])
    return CaseSet(
        np.concatenate([part.images for part in parts]),
        tuple(label for part in parts for label in part.labels),
        np.concatenate([part.patients + offset for part, offset in zip(parts, offsets, strict=True)]),
        None if parts[0].truth is None else np.concatenate([np.asarray(part.truth) for part in parts]),
    )


def rows_of(cases: CaseSet, rows: np.ndarray) -> CaseSet:
    """Return the cases at `rows`, their patients numbered anew."""
    _, patients = np.unique(cases.patients[rows], return_inverse=True)
    labels, truth = tuple(cases.labels[row] for row in rows), None if cases.truth is None else cases.truth[rows]
    return CaseSet(cases.images[rows], labels, patients.astype(np.int64), truth)


def _limited(source: Source, limit: int | None, seed: int) -> Source:
    count = source.cases.patient_count
    if limit is None or count <= limit:
        return source
    kept = np.random.default_rng([seed, 1]).permutation(count)[:limit]
    rows = np.flatnonzero(np.isin(source.cases.patients, kept))
    return replace(
        source,
        cases=rows_of(source.cases, rows),
        columns={name: tuple(texts[row] for row in rows) for name, texts in source.columns.items()},
        splits=tuple(source.splits[row] for row in rows) if source.splits else None,
    )
