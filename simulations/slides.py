"""Phantom histology slides, with and without a tumour.

No substitute for patients, but what a network of tiles has to cope with: glass around the tissue, a stain that differs
between laboratories, a tumour that fills only a part of the tissue, and in slides without one a cluster of small cells
(an inflammation), so that "many cells" is not the answer. A tumour's cells are larger.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from simulations.radiographs import LABELS_FILE, write_table
from simulations.slide_files import Picture, write_dicom, write_tiff

LABELS = ("normal", "tumour")
EDGE = 768
"""Rows and columns of the finest level, of 1 micrometre a pixel."""


@dataclass(frozen=True)
class Laboratory:
    """A hospital's way to stain: how much red, green and blue the two dyes take away, and how thick it cuts."""

    name: str
    haematoxylin: tuple[float, float, float] = (0.55, 0.70, 0.29)
    eosin: tuple[float, float, float] = (0.07, 0.75, 0.30)
    strength: float = 1.0


LABORATORIES = (
    Laboratory("north"),
    Laboratory("south", haematoxylin=(0.65, 0.62, 0.42), eosin=(0.12, 0.60, 0.22), strength=0.85),
    Laboratory("west", haematoxylin=(0.48, 0.72, 0.18), eosin=(0.04, 0.85, 0.42), strength=1.15),
)


@dataclass(frozen=True)
class Region:
    """An ellipse: where on the slide, in parts of its edge, and its half-axes."""

    row: float
    column: float
    height: float
    width: float

    def distance(self, edge: int, ragged: Picture) -> np.ndarray:
        """Return, for each pixel, how far out it lies: 1 at the border, which `ragged` frays."""
        rows, columns = np.mgrid[0:edge, 0:edge] / edge
        out = np.hypot((rows - self.row) / self.height, (columns - self.column) / self.width)
        return np.asarray(out + ragged)


def draw_slide(generator: np.random.Generator, laboratory: Laboratory, *, tumour: bool, edge: int = EDGE) -> Picture:
    """Return a slide's finest level, and draw everything about it from `generator`."""
    between = generator.uniform
    body = Region(between(0.46, 0.54), between(0.46, 0.54), between(0.30, 0.42), between(0.30, 0.42))
    angle, out = between(0, 2 * np.pi), between(0.0, 0.4)
    spot = Region(
        body.row + out * body.height * np.sin(angle), body.column + out * body.width * np.cos(angle),
        between(0.10, 0.20), between(0.10, 0.20),
    )  # fmt: skip
    tissue = body.distance(edge, 0.15 * _clouds(generator, edge, 24)) < 1
    cluster = (spot.distance(edge, 0.25 * _clouds(generator, edge, 12)) < 1) & tissue
    fibres = 0.5 + 0.18 * _clouds(generator, edge, 6) + 0.10 * _clouds(generator, edge, 2)
    cells = _cells(generator, tissue & ~cluster, radius=2.0, share=0.012)
    cells += _cells(generator, cluster, *((3.6, 0.030) if tumour else (2.0, 0.045)))
    dyes = np.clip(fibres, 0.15, 1)[..., None] * laboratory.eosin * tissue[..., None]
    dyes = dyes + np.clip(cells, 0, 1.6)[..., None] * laboratory.haematoxylin
    light = 244 * np.exp(-laboratory.strength * between(0.85, 1.15) * dyes)
    noise = generator.normal(0, 2.0, (edge, edge, 3))
    return np.asarray(np.clip(light + noise, 0, 255), dtype=np.uint8)


def _clouds(generator: np.random.Generator, edge: int, size: float) -> Picture:
    """Smooth noise of mean 0 and deviation 1."""
    noise = gaussian_filter(generator.standard_normal((edge, edge), dtype=np.float32), size, mode="wrap")
    return np.asarray(noise / noise.std())


def _cells(generator: np.random.Generator, where: np.ndarray, radius: float, share: float) -> Picture:
    """Round nuclei of `radius` pixels at random places of `where`; about `share` of it is covered, twofold."""
    centres = ((generator.random(where.shape) < share * 4 / radius**2) & where).astype(np.float32)
    spread = gaussian_filter(centres, radius / 1.6)
    return np.asarray(spread * 2 * np.pi * (radius / 1.6) ** 2 * 1.2)


def write_laboratory(
    laboratory: Laboratory, folder: Path, slides: int, seed: int, *, dicom: bool = False, edge: int = EDGE
) -> Path:
    """Write a laboratory's slides, each of a patient of its own, and labels.csv; return its path.

    Every other slide has a tumour. In DICOM a slide is labelled by its patient, else by its file.
    """
    rows = []
    for number in range(slides):
        generator = np.random.default_rng([seed, *laboratory.name.encode(), number])
        label = LABELS[number % 2]
        picture = draw_slide(generator, laboratory, tumour=label == LABELS[1], edge=edge)
        name = f"{laboratory.name.upper()}-{number:04d}"
        if dicom:
            write_dicom(picture, folder / name, f"{name}/{seed}", patient=name)
            rows.append((name, label))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            rows.append((write_tiff(picture, folder / f"{name}.tif").name, label))
    return write_table(folder / LABELS_FILE, ("patient" if dicom else "file", "label"), rows)
