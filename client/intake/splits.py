"""In which split each patient is: as the label file says, or by the site's key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from client.catalog import FileRecord, Settings
from client.intake.decisions import Rules, row_of
from common.errors import DataError


def splits_of(
    records: Sequence[FileRecord], rules: Rules, settings: Settings, before: Mapping[str, str]
) -> dict[str, str]:
    """Return the split of each patient of the decided `records`. `before` has those of patients known already.

    Raises
    ------
    DataError
        The label file puts a patient into two splits, or into another one than before.
    """
    taken = [record for record in records if not record.reason]
    fixed: dict[str, tuple[str, int]] = {}
    source = rules.labels.source if rules.labels is not None else ""
    named = [(row, record.patient) for record in taken if (row := row_of(record, rules)) is not None and row.split]
    for row, patient in sorted(named, key=lambda pair: pair[0].line):
        split, line = fixed.setdefault(patient, (row.split, row.line))
        if split != row.split:
            raise DataError(
                f"{source}:{row.line}: the row is in the {row.split} split, but line {line}, of the same patient, is "
                f"in the {split} split: a patient is in one"
            )
        if (known := before.get(patient, row.split)) != row.split:
            raise DataError(
                f"{source}:{row.line}: the row is in the {row.split} split, but its patient is in the {known} split "
                "since an earlier import, and splits never change: import into a new collection"
            )
    return {
        patient: fixed[patient][0]
        if patient in fixed
        else rules.pseudonyms.split(patient, settings.seed, settings.fractions)
        for patient in sorted({record.patient for record in taken})
    }
