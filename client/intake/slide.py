"""Whole-slide images: TIFF in tiles (Aperio SVS and what else OpenSlide reads of it), and DICOM slides, level by level.

A slide counts as one image of the catalog. It becomes tiles when a job says at which resolution: see `tissue.py`.

What may identify a person: label and macro image (never read, and named in the report), and Aperio's header, which
holds the scanner's user, the date, and what the laboratory writes there (PS3.15 Annex E has the DICOM attributes that
correspond removed or replaced: Operators' Name, Acquisition Date, Barcode Value, Label Text).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from client.intake.acquisition import acquired
from client.intake.confidentiality import burned_in_annotation, identifying_keywords, is_dummy_text
from client.intake.image import Acquired, Cut, Facts, FileRefusedError, Pixels, Seen
from client.intake.intensity import full_range
from client.intake.pyramid import DICOM_SLIDE, Pyramid, is_dicom, open_pyramid, open_tiff, read_dicom_header
from client.intake.sight import Sight
from client.intake.tissue import chosen, overview, read_tile, tissue, tissue_places

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MODALITY = "SM"
_SHOWS_THE_LABEL = ("label", "macro")
_FIELDS_OF_PEOPLE = ("User", "Date", "Title", "Patient", "Case", "Accession", "Barcode")
"""Fields of an Aperio header, and beginnings of their names, that name people or hold dates."""
_SLIDE_MODULE = ("BarcodeValue", "LabelText")
"""Attributes of the Slide Label module (PS3.3 C.12.1.1), which name the patient as the label does."""
_A_CODE = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
"""A UUID where a name was names nobody."""
_LOOKS, _LOOK_EDGE = 8, 32
"""An import looks at no more than so many places down and across, each of so many pixels."""
_WHOLE = 2**25
"""Pixels of a level that an import reads as a whole."""
_PICTURE_EDGE = 512


def matches(head: bytes) -> bool:
    """Whether the first bytes are those of a TIFF, or of a DICOM file that says that it is a slide.

    A file can be both: the preamble of DICOM (PS3.10 7.1) may be a TIFF's header. Then it is read as DICOM.
    """
    return _says_slide(head) if head[128:132] == b"DICM" else head.startswith(_TIFF)


def _says_slide(head: bytes) -> bool:
    """Whether Media Storage SOP Class UID (0002,0002), explicit VR little endian by PS3.10, is the slides'."""
    uid = DICOM_SLIDE.encode() + b"\0" * (len(DICOM_SLIDE) % 2)
    return b"\x02\x00\x02\x00UI" + len(uid).to_bytes(2, "little") + uid in head


def inspect(path: Path) -> Facts:
    """Return what a slide says of itself, after a look at places all over it. Raises FileRefusedError.

    A damaged tile between these places is only found when it is read for a training.
    """
    with open_pyramid([path]) as pyramid:
        _check_tiles(pyramid)
        finest, seen = pyramid.levels[0], _seen(pyramid)
    millimetres = (round(finest.mpp / 1000, 7),) * 2
    if not is_dicom(path):
        maker, identifiers = _of_tiff(path)
        return Facts(
            modality=_MODALITY, frames=1, rows=finest.rows, columns=finest.columns, channels=3, identifiers=identifiers,
            acquired=Acquired(manufacturer=maker, spacing=millimetres), seen=seen,
        )  # fmt: skip
    header = read_dicom_header(path)
    return Facts(
        modality=_MODALITY, frames=1, rows=finest.rows, columns=finest.columns, channels=3,
        patient=str(header.get("PatientID") or ""), study=str(header.get("StudyInstanceUID") or ""),
        series=str(header.get("SeriesInstanceUID") or ""), instance=str(header.get("SOPInstanceUID") or ""),
        identifiers=_of_dicom(header), burned_in=burned_in_annotation(header),
        acquired=replace(acquired([header]), spacing=millimetres), seen=seen,
    )  # fmt: skip


def frames(path: Path) -> Iterator[Pixels]:
    """Yield the whole slide as one small picture, (rows, columns, 3) in [0, 1]. Raises FileRefusedError."""
    with open_pyramid([path]) as pyramid:
        yield full_range(overview(pyramid, _PICTURE_EDGE)[0], 255)


def tiles(paths: Sequence[Path], cut: Cut) -> Iterator[Pixels]:
    """Yield at most `cut.tiles` tiles of the slide's tissue, each (rows, columns, 3) in [0, 1].

    They are spread evenly over the tissue and are the same whenever and wherever this is called. `paths` are one TIFF,
    or the DICOM files of one series. Raises FileRefusedError.
    """
    with open_pyramid(paths) as pyramid:
        for place in chosen(tissue_places(pyramid, cut), cut.tiles):
            yield read_tile(pyramid, cut, place)


def _check_tiles(pyramid: Pyramid) -> None:
    """Raise FileRefusedError unless places all over the finest level can be decoded."""
    finest = pyramid.levels[0]
    steps = [max(_LOOK_EDGE, -(-extent // _LOOKS)) for extent in (finest.rows, finest.columns)]
    for row in range(0, finest.rows, steps[0]):
        for column in range(0, finest.columns, steps[1]):
            pyramid.read(0, row, column, min(_LOOK_EDGE, finest.rows - row), min(_LOOK_EDGE, finest.columns - column))


def _seen(pyramid: Pyramid) -> Seen:
    """What is kept of the pixels. Nothing where no level is small enough to be looked at as a whole.

    Raises FileRefusedError where there is no tissue.
    """
    coarsest = pyramid.levels[-1]
    if coarsest.rows * coarsest.columns > _WHOLE:
        return Seen()
    picture = overview(pyramid)[0]
    if not tissue(picture).any():
        raise FileRefusedError("no tissue on the slide: nothing on it is coloured")
    sight = Sight()
    sight.add(full_range(picture, 255))
    return sight.seen()


def _of_tiff(path: Path) -> tuple[str, tuple[str, ...]]:
    """Who made a TIFF, and what in it may identify a person: names of its parts and fields, never their values."""
    with open_tiff(path) as slide:
        images = [f"{name} image" for name in _SHOWS_THE_LABEL if name in slide.associated_images]
        fields = [
            name for name, value in slide.properties.items()
            if name.startswith("aperio.") and _names_somebody(name.removeprefix("aperio."), value)
        ]  # fmt: skip
        return str(slide.properties.get("openslide.vendor", "")), tuple(sorted([*images, *fields]))


def _names_somebody(field: str, value: str) -> bool:
    listed = field.casefold().startswith(tuple(name.casefold() for name in _FIELDS_OF_PEOPLE))
    return listed and not is_dummy_text(value) and not _A_CODE.fullmatch(value.strip())


def _of_dicom(header: Any) -> tuple[str, ...]:
    label = [name for name in _SLIDE_MODULE if not is_dummy_text(str(header.get(name) or ""))]
    return tuple(sorted({*identifying_keywords(header), *label}))
