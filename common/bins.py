"""What federated statistics count, and in which bins: public constants, the same at every site and in every job.

A site sends a weight for each bin and nothing else: no value of its own, no name of a scanner, no word of a header. A
patient spreads a weight of 1 over the bins of each histogram, the same to each of its images, so that adding or
removing a patient moves a histogram by at most 1 in L1 and in L2 norm, and all of them together by at most SENSITIVITY.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

UNKNOWN, OTHER = "not said", "other"
MOST_LABELS = 64
GREYS = 16


@dataclass(frozen=True)
class Histogram:
    """What is counted: patients by `title`, in `bins`; for numbers, `values` are the bins' middles, where known.

    `kind` says what it means when sites differ in it.
    """

    title: str
    kind: str
    bins: tuple[str, ...]
    values: tuple[float, ...] = ()


def _between(edges: Sequence[float], unit: str) -> tuple[str, ...]:
    """The bins of numbers: below the first edge, between two, from the last on; and UNKNOWN."""
    inner = (f"{low:g} to {high:g} {unit}" for low, high in pairwise(edges))
    return (f"under {edges[0]:g} {unit}", *inner, f"from {edges[-1]:g} {unit}", UNKNOWN)


SIZES = (64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0)
SPACINGS = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 3.0)
DISTANCES = (0.75, 1.25, 2.0, 3.5, 6.0, 9.0)
FIELDS = (1.0, 1.4, 2.0, 4.0)
IMAGES = (2.0, 4.0, 10.0, 30.0, 100.0, 300.0)
DECADES = tuple(range(0, 90, 10))
MODALITIES = ("CR", "DX", "CT", "MR", "MG", "US", "PT", "NM", "XA", "RF", "OP", "OPT", "XC", "ES", "SM", "OT")
MAKERS = {
    "Siemens": ("siemens",), "GE": ("ge ", "general electric"), "Philips": ("philips",),
    "Canon": ("canon", "toshiba"), "Fujifilm": ("fuji", "hitachi"), "Agfa": ("agfa",), "Carestream": ("carestream",),
    "Hologic": ("hologic", "lorad"), "Samsung": ("samsung",), "United Imaging": ("uih", "united imaging"),
    "Shimadzu": ("shimadzu",), "Konica Minolta": ("konica", "minolta"), "Varian": ("varian",),
}  # fmt: skip
"""Makers of scanners, and what the header's text, with a blank after it, begins with or has in it."""
HISTOGRAMS = {
    "modality": Histogram("modality", "scanner", (*MODALITIES, OTHER)),
    "maker": Histogram("the scanner's maker", "scanner", (*MAKERS, OTHER, UNKNOWN)),
    "field": Histogram("magnetic field", "scanner", _between(FIELDS, "T")),
    "sex": Histogram("sex", "population", ("F", "M", "O", UNKNOWN)),
    "age": Histogram(
        "age", "population", (*(f"{decade} to {decade + 9}" for decade in DECADES[:-1]), "80 and older", UNKNOWN),
        tuple(decade + 5.0 for decade in DECADES),
    ),
    "size": Histogram("the image's longer side", "acquisition", _between(SIZES, "pixels")[:-1]),
    "spacing": Histogram("pixel spacing", "acquisition", _between(SPACINGS, "mm")),
    "distance": Histogram("distance or thickness of slices", "acquisition", _between(DISTANCES, "mm")),
    "images": Histogram("images of a patient", "acquisition", _between(IMAGES, "images")[:-1]),
    "intensity": Histogram(
        "intensity", "intensity", tuple(f"{bin_ / GREYS:.2f} to {(bin_ + 1) / GREYS:.2f}" for bin_ in range(GREYS)),
        tuple((bin_ + 0.5) / GREYS for bin_ in range(GREYS)),
    ),
}  # fmt: skip
"""What is counted beside the labels, by its name on the wire."""
Trait = Literal["sex", "age", "maker"]
TRAITS: tuple[Trait, ...] = get_args(Trait)
"""The histograms by whose bins a model's metrics can be told apart: those of people, and of what scanned them."""
LABEL = "label"
SENSITIVITY = math.sqrt(len(HISTOGRAMS) + 1)
"""L2 norm by which a patient moves all histograms together, at most."""


def histogram(name: str, labels: Sequence[str]) -> Histogram:
    """Return what is counted under a name, in a job with these labels."""
    if name == LABEL:
        return Histogram("label", "label", (*labels, OTHER, "no label"))
    return HISTOGRAMS[name]


def place(value: float | None, edges: Sequence[float]) -> int:
    """Return the bin of a number among those between `edges`; None is in the one after the last."""
    return len(edges) + 1 if value is None else sum(value >= edge for edge in edges)
