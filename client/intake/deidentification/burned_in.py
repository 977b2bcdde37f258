"""Text in the pixels: in which files it is looked for, and where it is found.

It is looked for by RapidOCR's detector and reader, whose models come with their package: nothing is downloaded. What
counts as found is a region in which the reader makes out at least two letters or digits, whatever they say: a name
can't be told from a scale.

Not found is not the same as not there: handwriting, text over bright anatomy, scripts other than Latin and Chinese, and
letters of less than about seven pixels are missed more often than plain overlays.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from client.intake.confidentiality import burned_in_annotation
from client.intake.findings import OFTEN_ANNOTATED
from common.errors import DataError

AT_RISK = OFTEN_ANNOTATED | {"XA", "RF", "IVUS", "DMS"}
"""Modalities in whose pixels text is looked for: those above, angiography and fluoroscopy, skin photographs."""
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_SCREENS = ("SCREEN", "REPORT", "DOSE_INFO")
_SURE_ENOUGH = 0.5
_SMALLEST = 16
_MARGIN = 3


class Region(NamedTuple):
    """A rectangle of pixels, ends excluded."""

    top: int
    left: int
    bottom: int
    right: int


def is_at_risk(header: Dataset) -> bool:
    """Whether text must be looked for: by modality, secondary capture or screenshot, or because the file says so."""
    if burned_in_annotation(header):
        return True
    modality, kind = str(header.get("Modality") or "OT"), str(header.get("SOPClassUID") or "")
    if modality in AT_RISK or kind == _SECONDARY_CAPTURE or kind.startswith(f"{_SECONDARY_CAPTURE}."):
        return True
    image_type = header.get("ImageType") or ()
    words = [image_type] if isinstance(image_type, str) else image_type
    return any(screen in str(word).upper() for word in words for screen in _SCREENS)


def shows_a_label(header: Dataset) -> bool:
    """Whether a slide's image is of its label, or shows it: the label names the patient (PS3.3 C.8.12.4.1.1)."""
    image_type = header.get("ImageType") or ()
    flavours = [image_type] if isinstance(image_type, str) else [str(word) for word in image_type]
    return "LABEL" in flavours or header.get("SpecimenLabelInImage") == "YES"


def text_regions(image: npt.NDArray[np.uint8]) -> list[Region]:
    """Return where text stands in an image (rows, columns) or (rows, columns, 3)."""
    colour = np.repeat(image[..., np.newaxis], 3, axis=-1) if image.ndim == 2 else image
    if min(colour.shape[:2]) < _SMALLEST:
        return []
    found = _reader()(np.ascontiguousarray(colour), use_cls=False)
    if found.boxes is None:
        return []
    rows, columns = colour.shape[:2]
    read = zip(found.boxes, found.txts, strict=True)
    return [_region(box, rows, columns) for box, text in read if sum(letter.isalnum() for letter in text) > 1]


def _region(box: Sequence[Sequence[float]], rows: int, columns: int) -> Region:
    """The upright rectangle around a box, with a margin for the strokes' soft edges."""
    xs, ys = [float(x) for x, _ in box], [float(y) for _, y in box]
    return Region(
        max(0, int(min(ys)) - _MARGIN), max(0, int(min(xs)) - _MARGIN),
        min(rows, int(max(ys)) + 1 + _MARGIN), min(columns, int(max(xs)) + 1 + _MARGIN),
    )  # fmt: skip


@cache
def _reader() -> Any:
    """The detector and reader, with the models that came with the package. Raises DataError when they are not there."""
    from rapidocr import RapidOCR

    threads = {f"EngineConfig.onnxruntime.{name}_op_num_threads": 1 for name in ("intra", "inter")}
    models = {f"{part}.model_path": _model(part.lower()) for part in ("Det", "Rec")}
    settings = {"Global.log_level": "critical", "Global.text_score": _SURE_ENOUGH, "Global.use_cls": False}
    return RapidOCR(params={**settings, **threads, **models})


def _model(part: str) -> str:
    """Name the file rather than let the library look: it would ask the network for one that is missing."""
    folder = files("rapidocr").joinpath("models")
    found = sorted(str(path) for path in folder.iterdir() if f"_{part}_" in path.name and path.name.endswith(".onnx"))
    if not found:
        raise DataError("the models that look for text in pixels are missing: install the package rapidocr anew")
    return found[0]
