"""Boxes as results: regions of a DICOM report (SR, PS3.16 TID 1410) for sources in DICOM, rows of a table for all.

A box of a volume is drawn on each of the slices that it crosses, under one tracking UID.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from client.intake.image import FileRefusedError
from client.results.about import About, headers_of, making, place_names, save
from client.results.labels import ENDING, references
from client.results.prediction import Answer, View
from client.results.report import document
from client.results.source import Source
from client.results.writer import Written
from common.tasks.detection import Detection
from common.tasks.task import Task

EDGES = ("x_min", "y_min", "x_max", "y_max")
"""Columns of the table, in pixels from the image's own edges."""
Place = tuple[int, int]
"""A file of the source and a frame of that file, both from 0."""


@dataclass(frozen=True)
class Box:
    """A thing that was found: `edges` (left, top, right, bottom) in the image's pixels from its own first edges.

    `slices` are the images that it is on: one, or of a volume all that it crosses.
    """

    label: str
    score: float
    edges: tuple[float, float, float, float]
    slices: tuple[Place, ...]


def write_boxes(source: Source, answers: Iterable[Answer], task: Task, about: About, path: Path) -> Written:
    """Write the boxes that the job's threshold calls, each with its score; an image without any is said to have none.

    Raises FileRefusedError.
    """
    if not isinstance(task, Detection):
        raise FileRefusedError("the model is not one of boxes")
    found = [(answer.view.order, boxes_of(task, answer)) for answer in answers]
    rows = tuple(row for order, boxes in found for row in _rows(source, order, boxes))
    if not source.dicom:
        return Written((), rows)
    headers = headers_of(source)
    with making("report"):
        groups = [group for _, boxes in found for box in boxes for group in _regions(headers, source, box, about)]
        nothing = [_nothing(headers, source, [place for order, _ in found for place in order], about)]
        report = document(headers, groups or nothing, about)
    target = path.with_name(path.name + ENDING)
    save(report, target)
    return Written((target,), rows)


def boxes_of(task: Detection, answer: Answer) -> list[Box]:
    """Return the boxes of an image or volume from the job's threshold on, surest first, cut off where the image is."""
    (rows,) = task.boxes(answer.outputs[None])
    found = []
    for label, score, *edges in rows.tolist():
        place = answer.view.place
        corners = np.clip(place.unscaled(np.reshape(edges, (2, task.axes))), 0, place.extent)
        if score < task.parameters.threshold or (corners[1] <= corners[0]).any():
            continue
        top, left, bottom, right = corners[:, -2:].ravel().tolist()
        slices = _crossed(answer.view, corners)
        found.append(Box(task.labels[int(label)], score, (left, top, right, bottom), slices))
    return found


def _crossed(view: View, corners: np.ndarray) -> tuple[Place, ...]:
    """The one image, or the slices that a box of a volume reaches into."""
    if corners.shape[1] == 2:
        return view.order
    first, last = corners[:, 0]
    return view.order[floor(first) : ceil(last)]


def _rows(source: Source, order: Sequence[Place], boxes: Sequence[Box]) -> list[dict[str, str]]:
    if not boxes:
        file, frame = place_names(source, order)
        return [{"file": file, "frame": frame, "label": "", "score": ""} | dict.fromkeys(EDGES, "")]
    rows = []
    for box in boxes:
        edges = {name: f"{edge:.2f}" for name, edge in zip(EDGES, box.edges, strict=True)}
        for place in box.slices:
            file, frame = place_names(source, [place])
            rows.append({"file": file, "frame": frame, "label": box.label, "score": f"{box.score:.6f}"} | edges)
    return rows


def _regions(headers: Sequence[Dataset], source: Source, box: Box, about: About) -> list[Any]:
    """TID 1410 for each slice that a box is on: the box as a closed polyline, its label, and how sure the model is.

    Points are in pixels, columns first, from the image's upper left edge (PS3.3 C.18.6.1.1).
    """
    import highdicom.sr as sr

    left, top, right, bottom = box.edges
    outline = np.array([[left, top], [right, top], [right, bottom], [left, bottom], [left, top]])
    tracking = sr.TrackingIdentifier(uid=generate_uid(), identifier=box.label)
    return [
        sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=tracking,
            referenced_region=sr.ImageRegion(
                sr.GraphicTypeValues.POLYLINE,
                outline,
                sr.SourceImageForRegion(headers[file].SOPClassUID, headers[file].SOPInstanceUID, frames),
            ),
            finding_type=about.label(box.label),
            algorithm_id=about.algorithm(),
            measurements=[sr.Measurement(codes.DCM.CertaintyOfFinding, round(100 * box.score, 4), codes.UCUM.Percent)],
        )
        for file, frames in (reference for place in box.slices for reference in references(source, [place]))
    ]


def _nothing(headers: Sequence[Dataset], source: Source, order: Sequence[Place], about: About) -> Any:
    """TID 1501: that the images were looked at, and nothing was found."""
    import highdicom.sr as sr

    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=generate_uid(), identifier=about.job.name),
        algorithm_id=about.algorithm(),
        qualitative_evaluations=[
            sr.QualitativeEvaluation(
                codes.DCM.CADProcessingAndFindingsSummary, codes.DCM.AllAlgorithmsSucceededWithoutFindings
            )
        ],
        source_images=[
            sr.SourceImageForMeasurementGroup(headers[file].SOPClassUID, headers[file].SOPInstanceUID, frames)
            for file, frames in references(source, order)
        ],
    )
