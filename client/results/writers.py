"""The table of writers: what is written about an image for each kind of task. One file and one entry a kind."""

from __future__ import annotations

from client.results.boxes import write_boxes
from client.results.images import write_images
from client.results.labels import write_labels
from client.results.masks import write_masks
from client.results.writer import Writer
from common.errors import UsageError

WRITERS: dict[str, Writer] = {
    "classification": write_labels,
    "segmentation": write_masks,
    "detection": write_boxes,
    "reconstruction": write_images,
}


def writer_of(task: str) -> Writer:
    """Return a task's entry of the table. Raises UsageError for a task that has none."""
    if task not in WRITERS:
        raise UsageError(f'no results are written for the task "{task}": there are writers for {", ".join(WRITERS)}')
    return WRITERS[task]
