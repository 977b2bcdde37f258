"""Slides as results: each label's probability as for other images, and heat maps of what the network saw where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from client.bags import cut_of
from client.intake.formats import format_named
from client.intake.image import FileRefusedError
from client.intake.intensity import with_channels
from client.results.about import About
from client.results.heat_map import HeatMap, SlideScan, scan_slide
from client.results.heat_map_files import write_heat_map
from client.results.labels import report_labels
from client.results.source import Source
from client.results.writer import Written
from common.job import DataSection
from common.tasks.classification import Classification
from common.tasks.task import Task


def write_slide(
    source: Source, network: nn.Module, task: Task, about: About, path: Path, device: torch.device
) -> Written:
    """Write a slide's probabilities, and a heat map of each label (of two, of the second) and of the attention.

    Heat maps are TIFF pyramids; of a DICOM slide they are parametric maps too. Raises FileRefusedError.
    """
    data = about.job.data
    if not isinstance(task, Classification) or (len(data.size) == 3 and not data.bagged):
        raise FileRefusedError("a slide, and the model is not one of slides")
    scan = scan_slide(network, task, source.paths, data, device)
    values = _of_slide(source, network, task, data, device) if data.bagged else scan.scores.mean(axis=0).tolist()
    whole = [(file, 0) for file in range(len(source.paths))]
    written = report_labels(source, [(whole, values)], about, path)
    files = list(written.files)
    for number, found in enumerate(_maps(scan, task), start=1):
        for ending in (".tif", ".dcm") if source.dicom else (".tif",):
            target = path.with_name(f"{path.name}.heat-{number}{ending}")
            files.append(write_heat_map(found, target, source.paths))
    return Written(tuple(files), written.rows)


def _maps(scan: SlideScan, task: Classification) -> list[HeatMap]:
    judged = [1] if len(task.labels) == 2 and not task.multilabel else range(len(task.labels))
    found = [scan.of_label(place, task.labels[place]) for place in judged]
    return found if scan.attention is None else [*found, scan.of_attention()]


def _of_slide(source: Source, network: nn.Module, task: Task, data: DataSection, device: torch.device) -> list[float]:
    """What the network says of the slide's bag, cut as in training."""
    tiles = format_named(source.format).tiles
    if tiles is None:
        raise FileRefusedError("no slide")
    bag = np.zeros((*data.size, data.channels), dtype=np.float32)
    for at, tile in enumerate(tiles(source.paths, cut_of(data, data.size[0]))):
        bag[at] = with_channels(tile, data.channels)
    seen = torch.from_numpy(np.moveaxis(bag, -1, 0).copy())[None]
    with torch.inference_mode():
        outputs = network(seen.to(device)).float()
        scores = task.scores(outputs, torch.zeros(1, dtype=torch.int64)).cpu()
    return [float(value) for value in scores[0]]
