"""Splits a folder of one's own images into hospitals, by patient, for the demo. Images are linked, not copied."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client.catalog import CATALOG_FILE, Catalog, FileRecord
from client.intake.importer import ImportOptions, import_folder
from common.errors import DataError
from simulations.federation import COLLECTION, LocalFederation
from simulations.partition import even_sizes, partition
from simulations.radiographs import LABELS_FILE, write_table

FEWEST_PATIENTS = 40
"""A hospital with fewer has too few in its training split for the policy as installed, or too few to test on."""


@dataclass(frozen=True)
class OwnData:
    """What is in the folder: label values in order, whether an image may have several, and files by hospital."""

    labels: tuple[str, ...]
    multilabel: bool
    files: dict[str, int]


def split_folder(source: Path, federation: LocalFederation, *, seed: int, allow_identified: bool) -> OwnData:
    """Read `source` and its labels.csv as a site's intake does, and give each hospital the same number of patients.

    Every hospital gets about the same mix of labels. Raises DataError for a folder or labels that the intake can't
    use, and for too few patients.
    """
    records = _read(source, federation.folder / "intake", allow_identified=allow_identified)
    by_patient: defaultdict[str, list[FileRecord]] = defaultdict(list)
    for record in records:
        by_patient[record.patient].append(record)
    patients = sorted(by_patient)
    if len(patients) < FEWEST_PATIENTS * len(federation.sites):
        raise DataError(
            f"{source}: {len(patients)} labelled patients are too few for {len(federation.sites)} hospitals of "
            f"at least {FEWEST_PATIENTS}: use fewer --sites or more images"
        )
    mixes = [Counter(record.label for record in by_patient[patient]).most_common(1)[0][0] for patient in patients]
    parts = partition([str(label) for label in mixes], even_sizes(len(patients), len(federation.sites)),
                      alpha=np.inf, seed=seed)  # fmt: skip
    files = {}
    for site, part in zip(federation.sites, parts, strict=True):
        mine = [record for index in part for record in by_patient[patients[index]]]
        _link(mine, federation.data(site))
        files[site] = len(mine)
    values = sorted({value for record in records for value in str(record.label).split("|") if value})
    return OwnData(tuple(values), any("|" in str(record.label) for record in records), files)


def _read(source: Path, scratch: Path, *, allow_identified: bool) -> list[FileRecord]:
    labels = source / LABELS_FILE
    if not labels.is_file():
        raise DataError(f"{labels} is missing: it says what the images show (columns: patient, study or file; label)")
    scratch.mkdir()
    options = ImportOptions(allow_identified=allow_identified)
    report = import_folder(scratch, COLLECTION, source, labels, options=options)
    records = [record for record in Catalog(scratch / CATALOG_FILE).records(COLLECTION) if not record.reason]
    labelled = [record for record in records if record.label is not None]
    if not labelled:
        reasons = Counter(refusal.reason for refusal in report.refused).most_common(1)
        raise DataError(f"{source}: no image could be used: {reasons[0][0] if reasons else 'none has a label'}")
    return labelled


def _link(records: list[FileRecord], folder: Path) -> None:
    rows = []
    for record in records:
        link = folder / record.path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(record.root) / record.path)
        rows.append((record.path, record.patient, str(record.label)))
    write_table(folder / LABELS_FILE, ("file", "patient", "label"), rows)
