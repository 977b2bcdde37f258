"""Where on a slide there is tissue, and which tiles of it are looked at: by rule, the same on every machine.

Glass is grey, stained tissue is coloured. The measure is chroma (largest minus smallest of red, green and blue): as
saturation, but quiet where a scanner has left black. The threshold is Otsu's, held within bounds, since a slide may be
all glass or all tissue.

Reference: Otsu, "A Threshold Selection Method from Gray-Level Histograms", IEEE Trans. SMC 9(1), 1979.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from client.intake.image import Cut, FileRefusedError, Pixels
from client.intake.intensity import full_range
from client.intake.pyramid import Level, Pyramid, Region

THRESHOLDS = (10 / 255, 30 / 255)
"""Chroma below the first is glass, above the second is tissue, whatever Otsu says."""
ENOUGH = 0.5
"""A tile is looked at when so much of it is tissue (or, on a slide without one, as much as any has)."""
OVERVIEW_EDGE = 2048
"""Longest edge of an overview, in pixels."""
BLOCK = 1024
"""Edge of the pieces in which a level is read for the overview."""
NEAR = 1.02
"""A level that is this little too coarse is not too coarse."""


@dataclass(frozen=True)
class Place:
    """Where a tile stands in the grid of all tiles, which begins in the slide's upper left corner."""

    row: int
    column: int


def overview(pyramid: Pyramid, edge: int = OVERVIEW_EDGE) -> tuple[Region, float]:
    """Return the whole slide with its longest edge at most `edge` pixels, and micrometres a pixel of it.

    Of the finest level at most a block is in memory; pixels are averaged, so that thin tissue is not missed.
    """
    finest = pyramid.levels[0]
    mpp = max(finest.mpp, finest.mpp * max(finest.rows, finest.columns) / edge)
    chosen = level_for(pyramid, mpp)
    level = pyramid.levels[chosen]
    factor = max(1, math.ceil(mpp / level.mpp - 1e-6))
    block = max(1, BLOCK // factor) * factor
    found = np.full((-(-level.rows // factor), -(-level.columns // factor), 3), 255, dtype=np.uint8)
    for row in range(0, level.rows, block):
        for column in range(0, level.columns, block):
            rows, columns = (
                min(block, -(-rest // factor) * factor) for rest in (level.rows - row, level.columns - column)
            )
            seen = Image.fromarray(pyramid.read(chosen, row, column, rows, columns)).reduce(factor)
            at_row, at_column = row // factor, column // factor
            found[at_row : at_row + seen.height, at_column : at_column + seen.width] = np.asarray(seen)
    return found, level.mpp * factor


def level_for(pyramid: Pyramid, mpp: float) -> int:
    """Return the coarsest level that is as fine as `mpp`, or the finest there is."""
    fine = [at for at, level in enumerate(pyramid.levels) if level.mpp <= mpp * NEAR]
    return max(fine, default=0)


def tissue(seen: Region) -> npt.NDArray[np.bool_]:
    """Return where an overview shows tissue: (rows, columns)."""
    colour = chroma(seen)
    return np.asarray(colour > min(max(_otsu(colour), THRESHOLDS[0]), THRESHOLDS[1]))


def chroma(seen: Region) -> npt.NDArray[np.float64]:
    """Return how far each pixel is from grey, from 0 to 1: (rows, columns)."""
    return np.asarray(seen.max(axis=-1) - seen.min(axis=-1), dtype=np.float64) / 255


def _otsu(values: npt.NDArray[np.float64]) -> float:
    """The threshold that parts values in [0, 1] into the two classes that differ most."""
    counts, edges = np.histogram(values, bins=256, range=(0, 1))
    middles = (edges[:-1] + edges[1:]) / 2
    below, total = np.cumsum(counts), counts.sum()
    sums = np.cumsum(counts * middles)
    above = total - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(edges[1:][int(np.nan_to_num(between).argmax())])


def grid_of(level: Level, cut: Cut) -> tuple[int, int]:
    """Return how many tiles, (down, across), cover the slide; those at the lower and right edge may stand over it."""
    down, across = level.rows * level.mpp / (cut.rows * cut.mpp), level.columns * level.mpp / (cut.columns * cut.mpp)
    return max(1, math.ceil(down - 1e-6)), max(1, math.ceil(across - 1e-6))


def tissue_places(pyramid: Pyramid, cut: Cut) -> list[Place]:
    """Return the tiles that are tissue, in reading order. Raises FileRefusedError where there is none on the slide."""
    seen, mpp = overview(pyramid)
    mask = tissue(seen).astype(np.float64)
    sums = np.pad(mask.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    down, across = grid_of(pyramid.levels[0], cut)
    rows = _edges(down, cut.rows * cut.mpp / mpp, mask.shape[0])
    columns = _edges(across, cut.columns * cut.mpp / mpp, mask.shape[1])
    inside = sums[np.ix_(rows[:, 1], columns[:, 1])] - sums[np.ix_(rows[:, 0], columns[:, 1])]
    inside -= sums[np.ix_(rows[:, 1], columns[:, 0])] - sums[np.ix_(rows[:, 0], columns[:, 0])]
    share = inside / np.outer(rows[:, 1] - rows[:, 0], columns[:, 1] - columns[:, 0])
    if share.max() <= 0:
        raise FileRefusedError("no tissue on the slide: nothing on it is coloured")
    wanted = share >= min(ENOUGH, share.max())
    return [Place(int(row), int(column)) for row, column in np.argwhere(wanted)]


def _edges(count: int, step: float, extent: int) -> npt.NDArray[np.int64]:
    """Where each of `count` tiles begins and ends on an axis of the overview, at least one pixel apart: (count, 2)."""
    starts = np.minimum(np.floor(np.arange(count) * step), extent - 1)
    ends = np.minimum(np.maximum(np.ceil((np.arange(count) + 1) * step), starts + 1), extent)
    return np.stack([starts, ends], axis=1).astype(np.int64)


def chosen(places: list[Place], tiles: int) -> list[Place]:
    """Return at most `tiles` of the places, evenly spread over them in reading order."""
    if len(places) <= tiles:
        return places
    return [places[int(at)] for at in np.linspace(0, len(places) - 1, tiles).round()]


def read_tile(pyramid: Pyramid, cut: Cut, place: Place) -> Pixels:
    """Return a tile as (rows, columns, 3) in [0, 1], from the coarsest level that is fine enough."""
    at = level_for(pyramid, cut.mpp)
    scale = cut.mpp / pyramid.levels[at].mpp
    top, left = place.row * cut.rows * scale, place.column * cut.columns * scale
    bottom, right = top + cut.rows * scale, left + cut.columns * scale
    row, column = math.floor(top + 1e-6), math.floor(left + 1e-6)
    rows, columns = math.ceil(bottom - 1e-6) - row, math.ceil(right - 1e-6) - column
    seen = Image.fromarray(pyramid.read(at, row, column, rows, columns))
    if seen.size != (cut.columns, cut.rows):
        box = (max(0.0, left - column), max(0.0, top - row), min(columns, right - column), min(rows, bottom - row))
        seen = seen.resize((cut.columns, cut.rows), Image.Resampling.BILINEAR, box)
    return full_range(np.asarray(seen), 255)
