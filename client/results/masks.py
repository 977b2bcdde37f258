"""Masks as results, on the grid of the very images that they are of: DICOM SEG, NIfTI or PNG, as the source is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom.dataset import Dataset

from client.intake.nifti import write_classes
from client.placing import mask_back
from client.results.about import NOTE, About, headers_of, identity, making, place_names, save
from client.results.prediction import Answer
from client.results.source import Source
from client.results.writer import Written
from common.tasks.task import Task

Mask = npt.NDArray[np.uint8]
COLOURS = ((0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
           (204, 121, 167))  # fmt: skip
"""Black for the background, then colours that colour-blind eyes can tell apart (Okabe and Ito, 2008), over again."""


def write_masks(source: Source, answers: Iterable[Answer], task: Task, about: About, path: Path) -> Written:
    """Write the structure of each pixel, and how many pixels each structure has."""
    masks = _by_frame(source, answers)
    target = path.with_name(path.name + {"dicom": ".seg.dcm", "nifti": ".seg.nii.gz"}.get(source.format, ".seg.png"))
    if source.format == "dicom":
        headers = headers_of(source)
        with making("segmentation"):
            save(_segmentation(headers, np.stack(masks), about), target)
    elif source.format == "nifti":
        write_classes(np.stack(masks), source.paths[0], target)
    else:
        _write_png(masks[0], target)
    return Written((target,), tuple(_rows(source, masks, about)))


def _by_frame(source: Source, answers: Iterable[Answer]) -> list[Mask]:
    """The mask of each image of the source, in the order of its files and frames."""
    first = [0, *accumulate(source.frames)]
    found: dict[int, Mask] = {}
    for answer in answers:
        classes = answer.outputs.argmax(dim=0).numpy().astype(np.uint8)
        own = mask_back(classes, answer.view.place)
        planes = own if own.ndim == 3 else own[np.newaxis]
        for (file, frame), plane in zip(answer.view.order, planes, strict=True):
            found[first[file] + frame] = plane
    return [found[place] for place in sorted(found)]


def _segmentation(headers: Sequence[Dataset], masks: Mask, about: About) -> Dataset:
    """PS3.3 A.51, binary: a segment for each structure, found or not."""
    import highdicom.seg as seg
    from pydicom.sr.codedict import codes

    described = [
        seg.SegmentDescription(
            segment_number=number,
            segment_label=label[:64],
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=about.label(label),
            algorithm_type=seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=about.algorithm_sequence(),
            tracking_uid=None,
            tracking_id=None,
        )
        for number, label in enumerate(about.job.task.labels, start=1)
    ]
    made: Dataset = seg.Segmentation(
        source_images=headers,
        pixel_array=masks,
        segmentation_type=seg.SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        content_label="MODEL_DRAFT",
        content_description=NOTE,
        series_description=about.description,
        **identity("SEG"),
        **about.device(),
    )
    if "PlaneOrientationSequence" not in made.SharedFunctionalGroupsSequence[0]:  # PS3.3 C.7.6.1.1.1: then it must be
        made.PatientOrientation = headers[0].get("PatientOrientation") or ""
    return made


def _write_png(mask: Mask, path: Path) -> None:
    """Values are the labels' places, counted from 1; a palette shows them in colours."""
    shown = Image.fromarray(mask)
    shown.putpalette([part for colour in colours(256) for part in colour])
    shown.save(path, format="PNG")


def colours(count: int) -> list[tuple[int, int, int]]:
    """Return a colour for the background and each further value."""
    return [COLOURS[0], *(COLOURS[1 + place % (len(COLOURS) - 1)] for place in range(count - 1))]


def _rows(source: Source, masks: Sequence[Mask], about: About) -> list[dict[str, str]]:
    """How many pixels or voxels of the source each structure has."""
    counts = sum((np.bincount(mask.ravel(), minlength=256) for mask in masks), np.zeros(256, dtype=np.int64))
    file, _ = place_names(source, ((0, 0),))
    pixels: dict[str, Any] = {f"pixels({name})": str(counts[at]) for at, name in enumerate(about.job.task.labels, 1)}
    return [{"file": file, "frame": ""} | pixels]
