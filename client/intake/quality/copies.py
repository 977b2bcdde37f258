"""Images that are there twice: the same pixels in several files, and near-copies across the splits.

Whoever is in the training split and, under another pseudonym, in the test split makes the test too good. Near-copies
are found by the differences between neighbouring squares of the small copies (see sight.py): windows, compression and
resizing leave these differences in proportion, another person's image does not have them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from client.catalog import SPLITS, FileRecord
from client.intake.quality.problem import MOST_PLACES, Problem, Shot, counted, problem
from client.intake.sight import small_copy

ALIKE = 0.97
"""Correlation from which two images are near-copies. Of 4,708 chest radiographs of 28 x 28 pixels none but true copies
comes near it, nor do 400 phantoms, which share a template (0.964 at most). A copy of 64 x 64 pixels keeps 0.99 as JPEG
of quality 60 and 0.967 at half the size; larger ones keep more."""
FLATTEST = 0.25
"""Norm of the differences below which an image is too flat to be compared."""
MOST = 40_000
"""More images are not compared: of these, those first by key."""
_BLOCK = 1024

Pair = tuple[FileRecord, FileRecord, float]


def problems(records: Sequence[FileRecord], splits: Mapping[str, str]) -> Iterator[Problem]:
    """Yield what is amiss with indexed records whose patients' splits are `splits`."""
    yield from _same_pixels([record for record in records if record.seen.deviation > 0], splits)
    pairs, total, left_out = near_copies(records, splits)
    if pairs:
        patients = len({record.patient for one, other, _ in pairs for record in (one, other)})
        more = f" (the first {MOST:,} images by key were compared)" if left_out else ""
        yield problem(
            "near-copies across the splits",
            f"{counted(total, 'pair')} of nearly the same image in two splits{more}, of {counted(patients, 'patient')}"
            ": a test on it is too good; are they one person under two identities?",
            [f"{one.path} ({splits[one.patient]}) and {other.path} ({splits[other.patient]}): {alike:.3f}"
             for one, other, alike in pairs],
            [(Shot(one, f"{splits[one.patient]}: {one.path}"), Shot(other, f"{splits[other.patient]}: {other.path}"))
             for one, other, _ in pairs],
            grave=True,
            count=total,
        )  # fmt: skip


def near_copies(records: Sequence[FileRecord], splits: Mapping[str, str]) -> tuple[list[Pair], int, int]:
    """Return pairs of near-copies in different splits, the most alike first; how many there are; how many not compared.

    Pairs of the same pixels are not among them.
    """
    known = sorted((record for record in records if record.seen.copy), key=lambda record: record.sha256)
    kept = known[:MOST]
    features, kept = _features(kept)
    at = {split: [n for n, record in enumerate(kept) if splits[record.patient] == split] for split in SPLITS}
    found: list[Pair] = []
    total = 0
    for index, split in enumerate(SPLITS):
        others = [n for other in SPLITS[index + 1 :] for n in at[other]]
        for start in range(0, len(at[split]), _BLOCK):
            block = at[split][start : start + _BLOCK]
            alike = features[block] @ features[others].T
            rows, columns = np.nonzero(alike >= ALIKE)
            pairs = [
                (kept[block[row]], kept[others[column]], float(alike[row, column]))
                for row, column in zip(rows, columns, strict=True)
                if kept[block[row]].seen.pixels != kept[others[column]].seen.pixels
            ]
            total += len(pairs)
            found = sorted([*found, *pairs], key=_most_alike)[:MOST_PLACES]
    return found, total, max(0, len(known) - MOST)


def _features(records: Sequence[FileRecord]) -> tuple[npt.NDArray[np.float32], list[FileRecord]]:
    """The differences of the small copies, of norm 1, and whose they are; without those too flat."""
    if not records:
        return np.zeros((0, 1), dtype=np.float32), []
    copies = np.stack([small_copy(record.seen) for record in records])
    differences = np.diff(copies, axis=2).reshape(len(records), -1)
    norms = np.linalg.norm(differences, axis=1)
    clear = norms >= FLATTEST
    return differences[clear] / norms[clear, None], [
        record for record, is_clear in zip(records, clear, strict=True) if is_clear
    ]


def _same_pixels(records: Sequence[FileRecord], splits: Mapping[str, str]) -> Iterator[Problem]:
    groups: dict[str, list[FileRecord]] = defaultdict(list)
    for record in records:
        if record.seen.pixels:
            groups[record.seen.pixels].append(record)
    left = [group for group in groups.values() if len(group) > 1]
    for kind, grave, says, holds in _SAME:
        found = [group for group in left if holds(group, splits)]
        left = [group for group in left if not holds(group, splits)]
        if found:
            places = [", ".join(f"{one.path} ({splits[one.patient]})" for one in group[:4]) for group in found]
            rows = [
                [Shot(one, f"{splits[one.patient]}, {one.label or 'no label'}: {one.path}") for one in group[:2]]
                for group in found
            ]
            yield problem(kind, f"the same pixels {says}: {counted(len(found), 'image')}", places, rows, grave=grave)


def _in_two_splits(group: Sequence[FileRecord], splits: Mapping[str, str]) -> bool:
    return len({splits[record.patient] for record in group}) > 1


def _with_two_labels(group: Sequence[FileRecord], splits: Mapping[str, str]) -> bool:
    return len({record.label for record in group}) > 1


def _anyhow(group: Sequence[FileRecord], splits: Mapping[str, str]) -> bool:
    return True


_SAME = (
    ("copies across the splits", True, "are in two splits, and a test on them is too good", _in_two_splits),
    ("copies with different labels", True, "have different labels", _with_two_labels),
    ("copies", False, "are there several times under different identities", _anyhow),
)
"""What the same pixels in several files can mean: the first that holds is told."""


def _most_alike(pair: Pair) -> tuple[float, str, str]:
    return -pair[2], pair[0].sha256, pair[1].sha256
