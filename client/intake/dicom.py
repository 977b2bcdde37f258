"""DICOM: any transfer syntax that pydicom reads with its pylibjpeg plugins, one frame at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi
from pydicom.pixels.utils import get_nr_frames, iter_pixels, pixel_array
from pydicom.uid import UID

from client.intake.acquisition import acquired
from client.intake.confidentiality import burned_in_annotation, identifying_keywords
from client.intake.image import Facts, FileRefusedError, Pixels, reasoned
from client.intake.intensity import Window, full_range, stretched, windowed
from client.intake.sight import Sight

DICOMDIR = "1.2.840.10008.1.3.10"
NOT_IMAGES = {
    "SEG": "a segmentation, not an image",
    "RTDOSE": "a dose distribution, not an image",
}
"""Modalities whose pixels are no picture of a patient."""
MAKER, MODEL_NAME = "Ward Round", "wardround"
"""What a model's results say that made them (`client.results`)."""
DRAFT = "a model's draft, which says nothing that is true of the patient"
_FRAME_MACROS = (
    "PixelValueTransformationSequence", "FrameVOILUTSequence", "PlanePositionSequence", "PlaneOrientationSequence",
    "PixelMeasuresSequence",
)  # fmt: skip


def matches(head: bytes) -> bool:
    """Whether the first bytes are DICOM: the PS3.10 prefix, or a data set that begins without one."""
    if head[128:132] == b"DICM":
        return True
    return any(_starts_a_data_set(head, order) for order in ("little", "big"))


def _starts_a_data_set(head: bytes, order: Any) -> bool:
    """The first element is of group 2 or 8, and has a value representation or a plausible length."""
    if len(head) < 8 or int.from_bytes(head[:2], order) not in (0x0002, 0x0008):
        return False
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return int.from_bytes(head[2:4], order) < 0x0100 and (explicit or int.from_bytes(head[4:8], order) <= 64)


def inspect(path: Path) -> Facts:
    """Read header and pixels and return what the file says of itself.

    Raises
    ------
    FileRefusedError
        It holds no image, is damaged or cut short, or its pixels can't be decoded.
    """
    header = read_header(path)
    shape: tuple[int, ...] = ()
    frames, sight = 0, Sight()
    for image in _frames_of(path, header):
        shape, frames = image.shape, frames + 1
        sight.add(image)
    if frames == 0:
        raise FileRefusedError("no frame in the pixel data")
    with reasoned("not a readable DICOM file"):
        how = acquired([frame_header(header, index) for index in range(frames)])
    return Facts(
        modality=_text(header, "Modality") or "OT",
        frames=frames, rows=shape[0], columns=shape[1], channels=shape[2],
        patient=_text(header, "PatientID"),
        study=_text(header, "StudyInstanceUID"),
        series=_text(header, "SeriesInstanceUID"),
        instance=_text(header, "SOPInstanceUID"),
        identifiers=identifying_keywords(header),
        burned_in=burned_in_annotation(header),
        acquired=how,
        seen=sight.seen(),
    )  # fmt: skip


def frames(path: Path) -> Iterator[Pixels]:
    """Yield each frame as (rows, columns, channels) in [0, 1]. Raises FileRefusedError as `inspect` does."""
    yield from _frames_of(path, read_header(path))


def read_header(path: Path) -> Dataset:
    """Read everything before the pixels. Raises FileRefusedError, also when the file can't hold an image."""
    with reasoned("not a readable DICOM file"):
        header = pydicom.dcmread(path, force=True, stop_before_pixels=True)
        meta = getattr(header, "file_meta", Dataset())
        kind = _text(header, "SOPClassUID") or _text(meta, "MediaStorageSOPClassUID")
    if kind == DICOMDIR or "DirectoryRecordSequence" in header:
        raise FileRefusedError("no image: a DICOMDIR, the index of other files")
    if "Rows" not in header:
        if not kind and "PatientID" not in header and "Modality" not in header:
            raise FileRefusedError("not a readable DICOM file: it has neither a SOP class nor an image")
        name = UID(kind).name or _text(header, "Modality") or "of no known kind"
        raise FileRefusedError(f"no image: the file has no pixel data ({name})")
    if is_draft(header):
        raise FileRefusedError(f"no image: {DRAFT}")
    if (modality := _text(header, "Modality")) in NOT_IMAGES:
        raise FileRefusedError(f"no image: {modality}, {NOT_IMAGES[modality]}")
    return header


def is_draft(header: Dataset) -> bool:
    """Whether an object is a result of a model, as `wardround predict` writes them: it comes back from a PACS."""
    return (_text(header, "Manufacturer"), _text(header, "ManufacturerModelName")) == (MAKER, MODEL_NAME)


def modality_values(path: Path, header: Dataset) -> Iterator[tuple[Dataset, npt.NDArray[Any], npt.NDArray[np.bool_]]]:
    """Yield each grey frame in modality units (after rescale or modality LUT), with its header and its padding mask."""
    with reasoned("the pixels can't be decoded"):
        for index, stored in enumerate(_stored_frames(path)):
            if stored.ndim != 2:
                raise FileRefusedError("colour frames have no modality values")
            frame = frame_header(header, index)
            yield frame, apply_modality_lut(stored, frame), _padding(stored, header)


def is_inverted(header: Dataset) -> bool:
    """Whether low values are shown white: MONOCHROME1 (PS3.3 C.7.6.3.1.2), or Presentation LUT Shape INVERSE."""
    inverse = _text(header, "PresentationLUTShape") == "INVERSE"
    return inverse or _text(header, "PhotometricInterpretation") == "MONOCHROME1"


def window_of(frame: Dataset) -> Window | None:
    """Return the first VOI window of a frame's header, or None; one that PS3.3 C.11.2.1.2 forbids is none."""
    try:
        center, width = (_first(frame.get(name)) for name in ("WindowCenter", "WindowWidth"))
        if center is None or width is None:
            return None
        window = Window(float(center), float(width), _text(frame, "VOILUTFunction") or "LINEAR")
    except (TypeError, ValueError, ArithmeticError):
        return None
    return window if window.usable else None


def frame_header(header: Dataset, index: int) -> Dataset:
    """Return the header as it holds for one frame: with the shared and per-frame functional groups (PS3.3 C.7.6.16)."""
    groups = [*(header.get("SharedFunctionalGroupsSequence") or ())[:1]]
    groups += (header.get("PerFrameFunctionalGroupsSequence") or ())[index : index + 1]
    macros = [item for group in groups for name in _FRAME_MACROS for item in (group.get(name) or ())[:1]]
    if not macros:
        return header
    frame = Dataset()
    frame.update(header)
    for macro in macros:
        frame.update(macro)
    if hasattr(header, "file_meta"):
        frame.file_meta = header.file_meta
    return frame


def _frames_of(path: Path, header: Dataset) -> Iterator[Pixels]:
    with reasoned("the pixels can't be decoded"):
        for index, stored in enumerate(_stored_frames(path)):
            yield _shown(stored, frame_header(header, index))


def _stored_frames(path: Path) -> Iterator[npt.NDArray[Any]]:
    """Each frame's stored values, read from the file one at a time.

    What pydicom can't read that way (deflated files, a damaged offset table) is read whole.
    """
    given = 0
    try:
        for stored in iter_pixels(path):
            given += 1
            yield stored
    except Exception:
        if given:
            raise
        yield from _stored_frames_at_once(path)


def _stored_frames_at_once(path: Path) -> Iterator[npt.NDArray[Any]]:
    dataset = pydicom.dcmread(path, force=True)
    if not any(keyword in dataset for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise FileRefusedError("no image: the file has no pixel data")
    stored = pixel_array(dataset)
    yield from stored if get_nr_frames(dataset, warn=False) > 1 else (stored,)


def _shown(stored: npt.NDArray[Any], frame: Dataset) -> Pixels:
    """One decoded frame as it is meant to be seen, in [0, 1].

    With a window each value is shown by itself: where there are fewer values than pixels, each is worked out once.
    """
    if stored.ndim == 2 and stored.dtype.kind in "iu" and _by_value(frame):
        low, high = int(stored.min()), int(stored.max())
        if high - low + 1 < stored.size // 2:
            ramp = np.arange(low, high + 1, dtype=np.int64).astype(stored.dtype)[np.newaxis]
            return np.asarray(_worked_out(ramp, frame)[0][stored.astype(np.int64) - low])
    return _worked_out(stored, frame)


def _by_value(frame: Dataset) -> bool:
    """Whether a pixel's shown value follows from its stored one alone: not so for percentiles of the image."""
    windowed = bool(frame.get("VOILUTSequence")) or window_of(frame) is not None
    return windowed and _text(frame, "PhotometricInterpretation") != "PALETTE COLOR"


def _worked_out(stored: npt.NDArray[Any], frame: Dataset) -> Pixels:
    if _text(frame, "PhotometricInterpretation") == "PALETTE COLOR":
        stored = apply_color_lut(stored, frame)
        return full_range(stored, np.iinfo(stored.dtype).max)
    if stored.ndim == 3:
        return full_range(stored[..., :3], 2 ** int(frame.BitsStored) - 1)
    values = apply_modality_lut(stored, frame)
    padding = _padding(stored, frame)
    grey = _grey(stored, values, padding, frame)
    if is_inverted(frame):
        grey = 1 - grey
    grey[padding] = 0  # PS3.3 C.7.5.1.1.2: padding is background, whatever the window says
    return grey[..., np.newaxis]


def _grey(stored: npt.NDArray[Any], values: npt.NDArray[Any], padding: npt.NDArray[np.bool_], frame: Dataset) -> Pixels:
    if frame.get("VOILUTSequence"):
        depth = int(frame.VOILUTSequence[0].LUTDescriptor[2])
        return full_range(apply_voi(np.rint(values).astype(np.int32), frame), 2**depth - 1)
    if (window := window_of(frame)) is not None:
        return windowed(values, window)
    rescaled = values is not stored and not np.array_equal(values, stored)
    if stored.dtype.kind == "u" and int(frame.BitsStored) <= 8 and not rescaled:
        return full_range(stored, 2 ** int(frame.BitsStored) - 1)
    return stretched(values, ~padding)


def _padding(stored: npt.NDArray[Any], header: Dataset) -> npt.NDArray[np.bool_]:
    """Where Pixel Padding Value (up to Pixel Padding Range Limit) stands in place of an image."""
    first = header.get("PixelPaddingValue")
    if not isinstance(first, int):
        return np.zeros(stored.shape, dtype=bool)
    limit = header.get("PixelPaddingRangeLimit")
    low, high = sorted((first, limit if isinstance(limit, int) else first))
    return np.asarray((stored >= low) & (stored <= high))


def _text(dataset: Dataset, keyword: str) -> str:
    """An attribute's (first) value as text; nothing when it is absent or broken."""
    try:
        value = _first(dataset.get(keyword))
    except Exception:  # a broken value is no value
        return ""
    return "" if value is None else str(value).strip("\0 ")


def _first(value: Any) -> Any:
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return value[0] if len(value) else None
    return value
