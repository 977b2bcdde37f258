"""Cases that are made of many images: a slide's tiles, or all 2D images of a study or of a patient.

A bag is (images, rows, columns, channels) in [0, 1]; what it has too few of is filled up with zeros, which the network
does not look at (`common/mil.py`). Of a study with more images than a bag holds, some are taken, evenly spread over all
in the catalog's order, which depends on their contents alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from client.catalog import Case
from client.intake.formats import format_named
from client.intake.image import Cut, FileRefusedError, Pixels
from client.intake.intensity import with_channels
from client.placing import as_case
from common.errors import DataError
from common.job import DataSection


def is_slide(case: Case) -> bool:
    """Whether a case is a whole-slide image, or a level of one."""
    return format_named(case.format).tiles is not None


def slides(cases: Sequence[Case]) -> list[tuple[Case, ...]]:
    """Return the cases by slide: the levels of a DICOM slide belong together. Raises DataError where labels differ."""
    return _together(cases, [case.series or case.sha256 for case in cases], "the levels of a slide", "series")


def bags(cases: Sequence[Case], kind: str) -> list[tuple[Case, ...]]:
    """Return the cases by bag: "slide", "study" or "patient". Raises DataError where they make no such bags."""
    if other := next((case for case in cases if is_slide(case) != (kind == "slide")), None):
        remedy = 'a slide is a bag by itself: data.bag = "slide"' if is_slide(other) else 'no slide: data.bag = "study"'
        raise DataError(f'{other.image}: data.bag is "{kind}", and this is {remedy}')
    if kind == "slide":
        return slides(cases)
    if kind == "study" and (nameless := next((case for case in cases if not case.study), None)):
        raise DataError(f'{nameless.image}: the file names no study: use data.bag = "patient"')
    keys = [case.study if kind == "study" else case.patient for case in cases]
    return _together(cases, keys, f"the images of a {kind}", kind)


def _together(cases: Sequence[Case], keys: Sequence[str], what: str, kind: str) -> list[tuple[Case, ...]]:
    groups: dict[str, list[Case]] = {}
    for case, key in zip(cases, keys, strict=True):
        groups.setdefault(key, []).append(case)
    for members in groups.values():
        if len({(case.label, case.patient) for case in members}) > 1:
            raise DataError(f"{members[0].image}: {what} have different labels or patients: label by {kind}")
    return [tuple(members) for members in groups.values()]


def bag_of(members: Sequence[Case], data: DataSection) -> Pixels:
    """Return the bag of these cases. Raises FileRefusedError."""
    count = data.size[0]
    images = _tiles(members, data, count) if data.bag == "slide" else _images(members, data, count)
    filled = np.zeros((*data.size, data.channels), dtype=np.float32)
    for at, image in enumerate(images):
        filled[at] = image
    return filled


def bagged_cases(members: Sequence[Case], data: DataSection) -> Iterator[Pixels]:
    """Yield the cases (C, *size) of a bag, or of a slide without one. Raises FileRefusedError.

    A slide gives `data.tiles` cases: where its tissue has fewer tiles, some come again, so that how many cases a
    collection has follows from the number of its slides alone.
    """
    if data.bagged:
        yield np.moveaxis(bag_of(members, data), -1, 0)
        return
    for tile in islice(cycle(_tiles(members, data, data.tiles)), data.tiles):
        yield np.moveaxis(tile, -1, 0)


def cut_of(data: DataSection, tiles: int) -> Cut:
    """Return how the job has slides cut."""
    return Cut(tiles, data.size[-2], data.size[-1], data.mpp)


def _tiles(members: Sequence[Case], data: DataSection, count: int) -> Iterator[Pixels]:
    tiles = format_named(members[0].format).tiles
    if tiles is None:
        raise FileRefusedError("no slide")
    for tile in tiles([case.image for case in members], cut_of(data, count)):
        yield with_channels(tile, data.channels)


def _images(members: Sequence[Case], data: DataSection, count: int) -> Iterator[Pixels]:
    """Some of the members' images in the job's size, each file read once."""
    taken = np.unique(np.linspace(0, len(members) - 1, min(count, len(members))).round().astype(int))
    plane = data.model_copy(update={"size": data.size[1:], "bag": "none"})
    wanted: dict[Path, tuple[str, set[int]]] = {}
    for case in (members[at] for at in taken):
        wanted.setdefault(case.image, (case.format, set()))[1].add(case.frame or 0)
    for path, (name, numbers) in wanted.items():
        for number, image in enumerate(format_named(name).frames(path)):
            if number in numbers:
                yield np.moveaxis(as_case(image, plane), 0, -1)
