"""Labels as results: a DICOM report (SR, PS3.16 TID 1500) for each source in DICOM, and rows of a table for all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from client.results.about import About, headers_of, making, place_names, save
from client.results.prediction import Answer
from client.results.report import document
from client.results.source import Source
from client.results.writer import Written
from common.tasks.task import Task

ENDING = ".sr.dcm"
Likely = tuple[Sequence[tuple[int, int]], Sequence[float]]
"""What is said of (the files and frames of) an image or volume: each label's probability."""


def write_labels(source: Source, answers: Iterable[Answer], task: Task, about: About, path: Path) -> Written:
    """Write each label's probability for each image or volume of the source."""
    return report_labels(source, [(answer.view.order, probabilities(task, answer)) for answer in answers], about, path)


def report_labels(source: Source, found: Sequence[Likely], about: About, path: Path) -> Written:
    """Write the labels' probabilities for each of some images or volumes of the source. Raises FileRefusedError."""
    rows = tuple(_row(source, order, values, about) for order, values in found)
    if not source.dicom:
        return Written((), rows)
    headers = headers_of(source)
    with making("report"):
        groups = [
            _group(headers, source, order, label, value, about)
            for order, values in found
            for label, value in zip(about.job.task.labels, values, strict=True)
        ]
        report = document(headers, groups, about)
    target = path.with_name(path.name + ENDING)
    save(report, target)
    return Written((target,), rows)


def probabilities(task: Task, answer: Answer) -> list[float]:
    """Return each label's probability by the network's outputs."""
    return [float(value) for value in task.scores(answer.outputs[None], torch.zeros(1, dtype=torch.int64))[0]]


def called(values: Sequence[float], about: About) -> list[str]:
    """Return the labels that the model gives: the likeliest, or of several at once all from one half on."""
    labels = about.job.task.labels
    if about.job.task.multilabel:
        return [label for label, value in zip(labels, values, strict=True) if value > 0.5]
    return [labels[values.index(max(values))]]


def _row(source: Source, order: Sequence[tuple[int, int]], values: Sequence[float], about: About) -> dict[str, str]:
    file, frame = place_names(source, order)
    likely = {f"p({label})": f"{value:.6f}" for label, value in zip(about.job.task.labels, values, strict=True)}
    return {"file": file, "frame": frame, "label": "|".join(called(values, about))} | likely


def _group(
    headers: Sequence[Dataset],
    source: Source,
    order: Sequence[tuple[int, int]],
    label: str,
    value: float,
    about: About,
) -> Any:
    """TID 1501: one label as the finding, its probability, and the images that it is of."""
    import highdicom.sr as sr

    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=generate_uid(), identifier=label),
        finding_type=about.label(label),
        algorithm_id=about.algorithm(),
        measurements=[sr.Measurement(codes.DCM.Probability, round(value, 6), codes.UCUM.NoUnits)],
        source_images=[
            sr.SourceImageForMeasurementGroup(headers[file].SOPClassUID, headers[file].SOPInstanceUID, frames)
            for file, frames in references(source, order)
        ],
    )


def references(source: Source, order: Sequence[tuple[int, int]]) -> list[tuple[int, list[int] | None]]:
    """Return each file once, with its frames (counted from 1); None for a file of one image."""
    by_file: dict[int, list[int]] = {}
    for file, frame in order:
        by_file.setdefault(file, []).append(frame + 1)
    return [(file, None if source.frames[file] == 1 else sorted(frames)) for file, frames in by_file.items()]
