"""DICOM objects drawn on images: Segmentation (PS3.3 A.51), RT Structure Set (A.19), and regions of reports (TID 1410).

They name the images by UID. Which file that is, the catalog knows by the UIDs' pseudonyms; the UIDs themselves stay in
memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from matplotlib.path import Path as Outline
from pydicom.dataset import Dataset

from client.annotations import Annotation
from client.catalog import FileRecord
from client.intake.annotation.masks import MOST_STRUCTURES, Structures
from client.intake.dicom import DRAFT, frame_header, is_draft, read_header
from client.intake.identity import Pseudonyms
from client.intake.image import FileRefusedError, one_line
from client.intake.series import Place, place_of
from client.intake.told import REPORTS, instances_of, read_report

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
KINDS = {SEGMENTATION: "DICOM SEG", STRUCTURE_SET: "RTSTRUCT"} | dict.fromkeys(REPORTS, "DICOM SR")
PRESENT = 0.5
"""From this share on, a fractional segment is taken to be there."""
_ALMOST = 1e-3


@dataclass(frozen=True)
class Images:
    """The indexed DICOM files of a collection, by the pseudonyms of their instances and series."""

    by_instance: Mapping[str, FileRecord]
    by_series: Mapping[str, tuple[FileRecord, ...]]
    pseudonyms: Pseudonyms

    @classmethod
    def of(cls, records: Sequence[FileRecord], pseudonyms: Pseudonyms) -> Images:
        """Return the indexed DICOM files among `records`."""
        taken = [record for record in records if record.format == "dicom" and not record.reason]
        series: dict[str, list[FileRecord]] = {}
        for record in taken:
            series.setdefault(record.series, []).append(record)
        by_series = {name: tuple(members) for name, members in series.items() if name}
        return cls({record.instance: record for record in taken if record.instance}, by_series, pseudonyms)

    def of_instance(self, uid: str) -> FileRecord | None:
        """Return the file of a SOP Instance UID."""
        return self.by_instance.get(self.pseudonyms.of("instance", uid))

    def of_series(self, uid: str) -> tuple[FileRecord, ...]:
        """Return the files of a Series Instance UID."""
        return self.by_series.get(self.pseudonyms.of("series", uid), ())


def read_object(path: Path) -> Dataset | None:
    """Return a DICOM object that is drawn on images; None for any other file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"])
            return pydicom.dcmread(path) if str(header.get("SOPClassUID", "")) in KINDS else None
        except Exception:  # foreign bytes make pydicom raise nearly anything: it is no such object
            return None


def drawn_by(drawing: Dataset, images: Images, structures: Structures) -> Iterator[tuple[FileRecord, Annotation]]:
    """Yield the images that an object is drawn on, each with its mask. Of a series, every image has one.

    Raises
    ------
    FileRefusedError
        It refers to no image that is indexed, can't be understood, or is a model's draft: a model that learns from
        its own mistakes keeps them.
    """
    if is_draft(drawing):
        raise FileRefusedError(DRAFT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            kind = {SEGMENTATION: _segmented, STRUCTURE_SET: _outlined}.get(str(drawing.SOPClassUID), _boxed)
            found = list(kind(drawing, images, structures))
        except FileRefusedError:
            raise
        except Exception as error:  # foreign bytes make pydicom and highdicom raise nearly anything
            raise FileRefusedError(f"what it has drawn can't be read: {one_line(error)}") from error
    if not found:
        raise FileRefusedError("it is drawn on no image that is indexed here")
    yield from found


def _segmented(drawing: Dataset, images: Images, structures: Structures) -> Iterator[tuple[FileRecord, Annotation]]:
    from highdicom.seg import Segmentation

    segmentation = Segmentation.from_dataset(drawing, copy=False)
    called = [structures.called(str(segment.SegmentLabel)) for segment in drawing.SegmentSequence]
    names = _names(called)
    places = np.array([names.index(name) + 1 for name in called], dtype=np.uint8)
    referred = {str(item.ReferencedSOPInstanceUID) for item in _items(drawing, "ReferencedInstanceSequence")}
    referred |= {str(item.ReferencedSOPInstanceUID) for item in _items(drawing, "SourceImageSequence")}
    done: set[str] = set()
    for uid in sorted(referred):
        record = images.of_instance(uid)
        if record is None:
            continue
        done.add(record.path)
        if record.frames == 1:
            parts = segmentation.get_pixels_by_source_instance(
                [uid], ignore_spatial_locations=True, assert_missing_frames_are_empty=True
            )
        else:
            parts = segmentation.get_pixels_by_source_frame(
                uid, range(1, record.frames + 1), ignore_spatial_locations=True, assert_missing_frames_are_empty=True
            )
        yield record, _of_segments(np.asarray(parts), places, names, record)
    series = {str(item.SeriesInstanceUID) for item in _items(drawing, "ReferencedSeriesSequence")}
    for record in (one for uid in sorted(series) for one in images.of_series(uid)):
        if record.path not in done:  # a slice of the series with nothing on it
            yield record, Annotation(names, _extent(record), np.zeros(_extent(record), dtype=np.uint8))


def _of_segments(
    parts: npt.NDArray[Any], places: npt.NDArray[np.uint8], names: tuple[str, ...], record: FileRecord
) -> Annotation:
    """A mask from (frames, rows, columns, segments); where segments overlap, the last one counts."""
    if parts.shape[:3] != _extent(record):
        raise FileRefusedError("its segments are not on the image's grid of pixels")
    mask = np.zeros(_extent(record), dtype=np.uint8)
    for segment, place in enumerate(places):
        mask[parts[..., segment] >= PRESENT] = place
    return Annotation(names, _extent(record), mask)


def _outlined(drawing: Dataset, images: Images, structures: Structures) -> Iterator[tuple[FileRecord, Annotation]]:
    """Masks from contours in mm, filled by whether a pixel's middle is inside; a contour in a contour is a hole."""
    rois = {int(roi.ROINumber): structures.called(str(roi.ROIName)) for roi in drawing.StructureSetROISequence}
    names = _names(list(rois.values()))
    contours = [
        (
            names.index(rois[int(roi.ReferencedROINumber)]) + 1,
            np.array(item.ContourData, dtype=np.float64).reshape(-1, 3),
        )
        for roi in drawing.get("ROIContourSequence") or ()
        for item in roi.get("ContourSequence") or ()
        if str(item.get("ContourGeometricType")) == "CLOSED_PLANAR"
    ]
    series = {str(item.SeriesInstanceUID) for item in _items(drawing, "RTReferencedSeriesSequence")}
    for record in (one for uid in sorted(series) for one in images.of_series(uid)):
        header = read_header(Path(record.root) / record.path)
        mask = np.zeros(_extent(record), dtype=np.uint8)
        for frame in range(record.frames):
            place = place_of(frame_header(header, frame))
            _fill(mask[frame], place, contours)
        yield record, Annotation(names, _extent(record), mask)


def _boxed(drawing: Dataset, images: Images, structures: Structures) -> Iterator[tuple[FileRecord, Annotation]]:
    """Boxes about a report's regions of single images; an image that it refers to without a region has none.

    Regions are in pixels from the upper left edge, columns first (PS3.3 C.18.6.1.1).
    """
    if (report := read_report(Path(str(drawing.filename)))) is None:
        raise FileRefusedError("no report of measurements (TID 1500)")
    regions: dict[str, list[tuple[str, int, npt.NDArray[np.float64]]]] = {uid: [] for uid in instances_of(report)}
    for group in report.content.get_planar_roi_measurement_groups():
        region, source = group.roi, None
        if region is not None and region.value_type.value == "SCOORD":
            source = region.ContentSequence[0].ReferencedSOPSequence[0]
        if source is None or group.finding_type is None:
            continue
        points = np.asarray(region.value, dtype=np.float64)[:, :2]
        if region.graphic_type.value == "CIRCLE":  # its middle, and a point on it
            radius = float(np.linalg.norm(points[1] - points[0]))
            points = np.stack([points[0] - radius, points[0] + radius])
        frame = int(np.atleast_1d(source.get("ReferencedFrameNumber") or 1)[0]) - 1
        name = structures.called(str(group.finding_type.meaning))
        regions.setdefault(str(source.ReferencedSOPInstanceUID), []).append((name, frame, points))
    for uid, found in regions.items():
        if (record := images.of_instance(uid)) is None or not any(regions.values()):
            continue
        names = _names([name for name, *_ in found])
        rows = [
            [names.index(name), frame, *points.min(axis=0)[::-1], frame + 1, *points.max(axis=0)[::-1]]
            for name, frame, points in found
        ]
        boxes = np.array(rows, dtype=np.float32).reshape(-1, 7)
        boxes[:, 1:] = np.clip(boxes[:, 1:], 0, np.tile(_extent(record), 2))
        yield record, Annotation(names, _extent(record), None, boxes)


def _fill(plane: npt.NDArray[np.uint8], place: Place, contours: Sequence[tuple[int, npt.NDArray[np.float64]]]) -> None:
    """Draw the contours that lie in the plane of one frame."""
    if place.normal is None or place.position is None or place.along_row is None or place.along_column is None:
        raise FileRefusedError("the images do not say where they lie, so contours can't be drawn on them")
    if place.spacing is None:
        raise FileRefusedError("the images do not say how far their pixels lie apart")
    near = (place.thickness or 1.0) / 2
    drawn: dict[int, npt.NDArray[np.bool_]] = {}
    for structure, points in contours:
        if np.abs((points - place.position) @ place.normal).max() > near - _ALMOST:
            continue
        rows = (points - place.position) @ place.along_column / place.spacing[0]
        columns = (points - place.position) @ place.along_row / place.spacing[1]
        inside = _inside(rows, columns, plane.shape)
        drawn[structure] = drawn.get(structure, np.zeros(plane.shape, dtype=bool)) ^ inside
    for structure, inside in drawn.items():
        plane[inside] = structure


def _inside(
    rows: npt.NDArray[np.float64], columns: npt.NDArray[np.float64], shape: tuple[int, ...]
) -> npt.NDArray[np.bool_]:
    found = np.zeros(shape, dtype=bool)
    top, left = (max(0, int(np.floor(side.min()))) for side in (rows, columns))
    bottom, right = (min(n, int(np.ceil(side.max())) + 1) for n, side in zip(shape, (rows, columns), strict=True))
    if bottom <= top or right <= left:
        return found
    middles = np.stack(np.meshgrid(np.arange(left, right), np.arange(top, bottom)), axis=-1).reshape(-1, 2)
    part = Outline(np.stack([columns, rows], axis=1)).contains_points(middles)
    found[top:bottom, left:right] = part.reshape(bottom - top, right - left)
    return found


def _names(called: Sequence[str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(called))
    if len(names) > MOST_STRUCTURES:
        raise FileRefusedError(f"it has {len(names)} structures, and at most {MOST_STRUCTURES} are taken")
    return names


def _items(dataset: Dataset, keyword: str) -> Iterator[Dataset]:
    """Every item of a sequence of that name, at whatever depth."""
    for element in dataset:
        if element.VR != "SQ":
            continue
        for item in element.value:
            if element.keyword == keyword:
                yield item
            yield from _items(item, keyword)


def _extent(record: FileRecord) -> tuple[int, int, int]:
    return record.frames, record.rows, record.columns
