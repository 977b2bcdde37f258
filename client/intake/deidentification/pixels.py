"""The pixels of a copy: text is blanked, a face is removed, and what hides in unused bits is cleared.

Pixels that are changed are written back uncompressed, in the file's own byte order where it is uncompressed already,
else in Explicit VR Little Endian. All others stay as they are, to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, convert_color_space
from pydicom.pixels.utils import pixel_array
from pydicom.uid import ExplicitVRBigEndian

from client.intake.deidentification.attributes import OVERLAYS
from client.intake.deidentification.burned_in import Region, text_regions
from client.intake.dicom import frame_header, window_of
from client.intake.image import FileRefusedError
from client.intake.intensity import windowed

_LOOKS = 5
"""So many frames of a file are looked at, evenly spread, the first and the last among them."""
_ROUNDS = 4


@dataclass
class Pictures:
    """The decoded pixels of a data set, (frames, rows, columns) or (frames, rows, columns, samples), to be changed."""

    dataset: Dataset
    stored: npt.NDArray[Any]

    @classmethod
    def of(cls, dataset: Dataset) -> Pictures:
        """Decode a data set's pixels; compressed ones stay decoded in it."""
        if "PixelData" not in dataset or dataset.get("BitsAllocated") not in {8, 16, 32}:
            raise FileRefusedError("its pixels can't be cleaned: they are not of 8, 16 or 32 bits")
        if dataset.file_meta.TransferSyntaxUID.is_compressed and not dataset.file_meta.TransferSyntaxUID.is_deflated:
            dataset.decompress(as_rgb=True, generate_instance_uid=False)
        stored = np.array(pixel_array(dataset, raw=True))
        single = int(dataset.get("NumberOfFrames") or 1) == 1
        return cls(dataset, stored[np.newaxis] if single else stored)

    def blank(self, regions: Sequence[Region]) -> None:
        """Blank regions of all frames."""
        for top, left, bottom, right in regions:
            self.stored[:, top:bottom, left:right] = self._dark()

    def keep_only(self, regions: Sequence[Region]) -> None:
        """Blank all frames but for some regions."""
        outside = np.ones(self.stored.shape[1:3], dtype=bool)
        for top, left, bottom, right in regions:
            outside[top:bottom, left:right] = False
        self.stored[:, outside] = self._dark()

    def blank_where(self, frame: int, mask: npt.NDArray[np.bool_]) -> None:
        """Blank the pixels of one frame."""
        self.stored[frame, mask] = self._dark()

    def write_back(self) -> None:
        """Put the pixels into the data set."""
        dataset = self.dataset
        if dataset.get("PhotometricInterpretation") == "YBR_FULL_422":  # pydicom has filled in the other half
            dataset.PhotometricInterpretation = "YBR_FULL"
        if dataset.SamplesPerPixel > 1:
            dataset.PlanarConfiguration = 0
        big = dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian
        content = self.stored.astype(self.stored.dtype.newbyteorder(">" if big else "<")).tobytes()
        dataset.PixelData = content + b"\0" * (len(content) % 2)
        dataset["PixelData"].VR = "OW" if dataset.BitsAllocated > 8 else "OB"

    def shown(self) -> Iterator[list[npt.NDArray[np.uint8]]]:
        """Yield frames as a viewer may show them: through their window, and over their whole range."""
        count = len(self.stored)
        for index in np.unique(np.linspace(0, count - 1, min(count, _LOOKS)).round().astype(int)):
            yield _views(self.stored[index], frame_header(self.dataset, int(index)))

    def _dark(self) -> Any:
        """What stands for nothing: padding, black, or the least value that there is."""
        header = self.dataset
        if header.SamplesPerPixel > 1:
            ycbcr = str(header.PhotometricInterpretation).startswith("YBR")
            return np.array([0, 128, 128] if ycbcr else [0] * header.SamplesPerPixel, dtype=self.stored.dtype)
        if isinstance(header.get("PixelPaddingValue"), int):
            return header.PixelPaddingValue
        bright = header.PhotometricInterpretation == "MONOCHROME1"
        return self.stored.max() if bright else self.stored.min()


def clean_text(pictures: Pictures, ultrasound: Sequence[Region]) -> int:
    """Blank text, and all but the `ultrasound` regions, if there are any; return how many regions were blanked.

    Text is blanked first: half of it, cut at a region's edge, would not be found. What surrounds the ultrasound counts
    as one region. Raises FileRefusedError when text is still found after all.
    """
    count = 0
    for again in range(_ROUNDS):
        if regions := find_text(pictures):
            pictures.blank(regions)
            count += len(regions)
        if ultrasound and not again:
            pictures.keep_only(ultrasound)
            count += 1
        if not regions:
            return count
    raise FileRefusedError("burned-in text: it is still found after it was blanked")


def find_text(pictures: Pictures) -> list[Region]:
    """Return where text stands in any frame that is looked at."""
    found = [region for views in pictures.shown() for view in views for region in text_regions(view)]
    return list(dict.fromkeys(found))


def ultrasound_regions(header: Dataset) -> list[Region]:
    """Return the regions that an ultrasound image declares (PS3.3 C.8.5.5): outside of them there is no image."""
    keywords = ("RegionLocationMinY0", "RegionLocationMinX0", "RegionLocationMaxY1", "RegionLocationMaxX1")
    found = []
    for item in header.get("SequenceOfUltrasoundRegions") or ():
        places = [item.get(keyword) for keyword in keywords]
        if all(isinstance(place, int) for place in places):
            top, left, bottom, right = places
            found.append(Region(top, left, bottom + 1, right + 1))
    return [region for region in found if region.bottom > region.top + 1 and region.right > region.left + 1]


def has_embedded_overlay(header: Dataset) -> bool:
    """Whether an overlay stands in bits of the pixels that are not used otherwise (retired, PS3.5 8.1.2)."""
    return any(
        tag.group in OVERLAYS and tag.element == 0x0102 and (header[tag].value or 0) > 0
        and (tag.group << 16 | 0x3000) not in header
        for tag in list(header.keys())
    )  # fmt: skip


def clear_unused_bits(pictures: Pictures) -> None:
    """Clear the bits above Bits Stored; a negative number keeps its sign."""
    bits = int(pictures.dataset.BitsStored)
    unsigned = pictures.stored.view(pictures.stored.dtype.str.replace("i", "u"))
    unsigned &= np.array((1 << bits) - 1, dtype=unsigned.dtype)
    if pictures.stored.dtype.kind == "i":
        sign = pictures.stored.dtype.type(1 << (bits - 1)) if bits < pictures.stored.dtype.itemsize * 8 else None
        if sign is not None:
            pictures.stored[...] = (pictures.stored ^ sign) - sign


def _views(stored: npt.NDArray[Any], header: Dataset) -> list[npt.NDArray[np.uint8]]:
    kind = str(header.get("PhotometricInterpretation"))
    if kind == "PALETTE COLOR":
        stored = apply_color_lut(stored, header)
    elif kind.startswith("YBR_FULL"):
        stored = convert_color_space(stored, "YBR_FULL", "RGB")
    if stored.ndim == 3:
        return [_eight_bits(stored[..., :3].astype(np.float32))]
    values = apply_modality_lut(stored, header).astype(np.float32)
    views = [_eight_bits(values)]
    if (window := window_of(header)) is not None:
        views.append(_eight_bits(windowed(values, window)))
        views = views[np.array_equal(views[0], views[1]) :]
    return [255 - view for view in views] if kind == "MONOCHROME1" else views


def _eight_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    scaled: npt.NDArray[np.uint8] = np.rint((values - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)
    return scaled
