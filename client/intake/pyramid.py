"""A whole-slide image as a pyramid of levels, read region by region: OpenSlide reads TIFFs, highdicom reads DICOM.

No level is ever in memory as a whole: at full resolution a slide has some ten thousand million pixels. The label and
macro (overview) images of a slide, which show a patient's name, are not opened here by any way.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from client.intake.image import FileRefusedError, one_line

Region = npt.NDArray[np.uint8]
"""A piece of a level: (rows, columns, 3), red, green and blue."""
WHITE = 255
"""What stands outside the slide: glass."""
PLAUSIBLE_MPP = (0.05, 20.0)
"""Micrometres a pixel of a slide's finest level. A TIFF that states no resolution is often said to have 72 dpi: 353."""
SQUARE = 1.1
"""A pixel may be this many times as high as it is wide, or the other way round."""
DICOM_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""VL Whole Slide Microscopy Image Storage."""
DICOM_LEVELS = frozenset({"VOLUME", "THUMBNAIL"})
"""Values of Image Type, third, that show the specimen alone (PS3.3 C.8.12.4.1.1); LABEL and OVERVIEW show the label."""


@dataclass(frozen=True)
class Level:
    """One resolution of a slide: its extent in pixels, and micrometres a pixel."""

    rows: int
    columns: int
    mpp: float


class Pyramid(Protocol):
    """An open slide. Its `levels` are in order, the finest first."""

    levels: tuple[Level, ...]

    def read(self, level: int, row: int, column: int, rows: int, columns: int) -> Region:
        """Return a region of a level, white outside of it. Raises FileRefusedError where it can't be decoded."""

    def close(self) -> None:
        """Close the files."""


@contextmanager
def open_pyramid(paths: Sequence[Path]) -> Iterator[Pyramid]:
    """Open a slide: one TIFF, or the DICOM files of one series, of which each is a level.

    Raises
    ------
    FileRefusedError
        It is no slide, is damaged, says nothing of its resolution, or has parts that don't belong together.
    """
    pyramid: Pyramid = _Dicom(paths) if is_dicom(paths[0]) else _Tiff(paths[0])
    try:
        yield pyramid
    finally:
        pyramid.close()


def is_dicom(path: Path) -> bool:
    """Whether the file is DICOM by its first bytes."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def open_tiff(path: Path) -> Any:
    """Return OpenSlide's handle of a TIFF. Raises FileRefusedError."""
    import openslide

    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise FileRefusedError("a TIFF that is no slide (a slide is stored in tiles), or damaged") from error
    except openslide.OpenSlideError as error:
        raise FileRefusedError(f"the slide can't be read: {one_line(error)}".replace(str(path), "it")) from error


def read_dicom_header(path: Path) -> Any:
    """Return the attributes of a level of a DICOM slide, without pixels. Raises FileRefusedError for other files."""
    from pydicom import dcmread

    try:
        with _quiet():
            header = dcmread(path, stop_before_pixels=True)
    except Exception as error:  # foreign bytes make pydicom raise many kinds
        raise FileRefusedError(f"not a readable DICOM file: {one_line(error)}") from error
    if header.get("SOPClassUID") != DICOM_SLIDE:
        raise FileRefusedError("no slide: its SOP class is another than its file says")
    flavour = next(iter((header.get("ImageType") or [])[2:3]), "")
    if flavour not in DICOM_LEVELS or header.get("SpecimenLabelInImage") == "YES":
        raise FileRefusedError(f"an image of the slide's label, which identifies a person: {flavour or 'no kind'}")
    if "ConcatenationUID" in header:
        raise FileRefusedError("a part of a concatenation: write the level as one file first")
    if header.get("SamplesPerPixel") != 3 or header.get("BitsAllocated") != 8:
        raise FileRefusedError("a slide that is not in colour of 8 bits (fluorescence?) is not read")
    return header


class _Tiff:
    def __init__(self, path: Path) -> None:
        self._path, self._slide = path, open_tiff(path)
        try:
            finest = _resolution(*(self._slide.properties.get(f"openslide.mpp-{axis}") for axis in "yx"))
        except BaseException:
            self._slide.close()
            raise
        sizes = zip(self._slide.level_dimensions, self._slide.level_downsamples, strict=True)
        self.levels = tuple(Level(rows, columns, finest * factor) for (columns, rows), factor in sizes)

    def read(self, level: int, row: int, column: int, rows: int, columns: int) -> Region:
        import openslide
        from PIL import Image

        factor = self._slide.level_downsamples[level]
        at = (round(column * factor), round(row * factor))
        try:
            seen = self._slide.read_region(at, level, (columns, rows))
        except openslide.OpenSlideError as error:
            reason = one_line(error).replace(str(self._path), "it")
            raise FileRefusedError(f"a tile can't be decoded: {reason}") from error
        glass = Image.new("RGBA", seen.size, (WHITE, WHITE, WHITE, 255))
        return np.asarray(Image.alpha_composite(glass, seen).convert("RGB"))

    def close(self) -> None:
        self._slide.close()


class _Dicom:
    def __init__(self, paths: Sequence[Path]) -> None:
        headers = [read_dicom_header(path) for path in paths]
        if len({(str(one.get("ContainerIdentifier")), str(one.get("SeriesInstanceUID"))) for one in headers}) > 1:
            raise FileRefusedError("the files of one slide name several slides or series")
        found = sorted(zip(map(_dicom_level, headers), paths, strict=True), key=lambda pair: (pair[0].mpp, pair[1]))
        self.levels = tuple(level for level, _ in found)
        self._paths, self._open = [path for _, path in found], dict[int, Any]()

    def read(self, level: int, row: int, column: int, rows: int, columns: int) -> Region:
        extent, region = self.levels[level], np.full((rows, columns, 3), WHITE, dtype=np.uint8)
        top, left = max(0, row), max(0, column)
        bottom, right = min(extent.rows, row + rows), min(extent.columns, column + columns)
        if top < bottom and left < right:
            inside = (slice(top - row, bottom - row), slice(left - column, right - column))
            region[inside] = self._matrix(level, top, bottom, left, right)
        return region

    def _matrix(self, level: int, top: int, bottom: int, left: int, right: int) -> Region:
        import highdicom

        try:
            with _quiet():
                if level not in self._open:
                    self._open[level] = highdicom.imread(self._paths[level], lazy_frame_retrieval=True)
                found: Region = self._open[level].get_total_pixel_matrix(
                    top, bottom, left, right, as_indices=True, dtype=np.uint8, apply_icc_profile=False
                )
        except Exception as error:  # foreign bytes make highdicom, pydicom and its plugins raise many kinds
            raise FileRefusedError(f"a tile can't be decoded: {one_line(error)}") from error
        return found

    def close(self) -> None:
        self._open.clear()


def _dicom_level(header: Any) -> Level:
    try:
        spacing = header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
        rows, columns = int(header.TotalPixelMatrixRows), int(header.TotalPixelMatrixColumns)
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise FileRefusedError("a DICOM slide without Total Pixel Matrix or Pixel Spacing") from error
    return Level(rows, columns, _resolution(*(float(step) * 1000 for step in spacing), coarse=True))


def _resolution(down: str | float | None, across: str | float | None, *, coarse: bool = False) -> float:
    """Micrometres a pixel, the mean of both axes. A `coarse` level may have any. Raises FileRefusedError."""
    try:
        steps = float(down or "nan"), float(across or "nan")
    except ValueError:
        steps = math.nan, math.nan
    mean = math.sqrt(max(0.0, steps[0] * steps[1])) if all(map(math.isfinite, steps)) else 0.0
    if mean == 0 or (not coarse and not PLAUSIBLE_MPP[0] <= mean <= PLAUSIBLE_MPP[1]):
        raise FileRefusedError("a slide that does not state its resolution (micrometres a pixel)")
    if max(steps) > SQUARE * min(steps):
        raise FileRefusedError("a slide whose pixels are not square")
    return mean


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what pydicom and highdicom remark on a file to themselves: what matters becomes the reason."""
    loggers = [logging.getLogger(name) for name in ("highdicom", "pydicom")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
