"""A model on a hospital's images: what it says of each, in files that a viewer or PACS shows.

Nothing leaves: it needs neither a coordinator nor a network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from client.intake.image import FileRefusedError
from client.results.about import About
from client.results.labels import probabilities
from client.results.output import TABLE, results_folder, write_listing, write_table
from client.results.overlay import Overlays
from client.results.prediction import answers, views
from client.results.saliency import Saliency
from client.results.slides import write_slide
from client.results.source import Source, find_sources, require_sources
from client.results.writer import Writer, Written
from client.results.writers import writer_of
from client.training import pick_device
from common.errors import UsageError
from common.job import Job
from common.model_file import SavedModel, code_version
from common.networks import build_network, case_shape, load_tensors
from common.tasks.registry import build_task
from common.tasks.task import Task

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Predicted:
    """What was done: how many sources have results, which files could not be used and why, and the files written."""

    sources: int
    refused: tuple[tuple[str, str], ...]
    files: tuple[str, ...]


@dataclass(frozen=True)
class _Predictor:
    """A model ready for use."""

    network: nn.Module
    task: Task
    about: About
    writer: Writer
    device: torch.device
    saliency: Saliency | None = None

    def write(self, source: Source, folder: Path) -> Written:
        """Write what the model says of a source. Raises FileRefusedError."""
        target = folder / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        job = self.about.job
        if source.format == "kspace" and job.task.kind != "reconstruction":
            raise FileRefusedError(f"raw MR data, and the model is one of {job.task.kind}")
        if source.slide:
            return write_slide(source, self.network, self.task, self.about, target, self.device)
        said = answers(self.network, self.task, job, views(source, job.data), self.device)
        written = self.writer(source, said, self.task, self.about, target)
        if self.saliency is not None:
            self._explain(self.saliency, source, target)
        return written

    def _explain(self, saliency: Saliency, source: Source, target: Path) -> None:
        """Write where the network looked for the likeliest label, one image or volume at a time."""
        overlays, job = Overlays(source, self.about, target), self.about.job
        for view in views(source, job.data, own=True):
            (answer,) = answers(self.network, self.task, job, [view], self.device)
            likely = probabilities(self.task, answer)
            label = likely.index(max(likely))
            overlays.add(view, saliency.of(view, label, self.device), job.task.labels[label])


def predict(
    model: SavedModel,
    images: Path,
    out: Path,
    *,
    explain: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
) -> Predicted:
    """Write what `model` says of every image, volume or series in `images` into the folder `out`.

    With `explain` an overlay goes with each image or volume that says where the network looked.

    Memory: one volume, or some 2D images, at a time, and of a series its masks.

    Raises
    ------
    UsageError
        The model is not for images, or `out` is in use.
    UpdateError, JobError
        The model is not of its job's network.
    DataError
        There is nothing that can be predicted on, or the results can't be written.
    """
    predictor = _ready(model, device, explain=explain)
    found = find_sources(images)
    require_sources(found, images)
    with results_folder(out, overwrite=overwrite) as folder:
        rows: list[dict[str, str]] = []
        refused, done = list(found.refused), 0
        for number, source in enumerate(found.sources, start=1):
            try:
                written = predictor.write(source, folder)
                rows += [row | {"file": _below(row["file"], images)} for row in written.rows]
                done += 1
            except FileRefusedError as error:
                refused.append((_below(str(source.paths[0]), images), str(error)))
            if progress is not None:
                progress(number, len(found.sources))
        if not done:
            require_sources(replace(found, sources=(), refused=tuple(refused)), images)
        write_table(folder, rows)
        files = write_listing(folder, _listing(predictor.about, refused))
    return Predicted(done, tuple(sorted(refused)), tuple(files))


def _ready(model: SavedModel, device: str, *, explain: bool) -> _Predictor:
    job, chosen = model.job, pick_device(device)
    if job.data.table:
        raise UsageError("the model is one of tables' rows, and results are written of images")
    if job.data.bag not in ("none", "slide"):
        raise UsageError(
            f"the model is one of all images of a {job.data.bag} at once: results are written of each image"
        )
    if job.aggregation.keeps_layers:
        raise UsageError(
            f'layers of this model stay at each site (strategy "{job.aggregation.strategy}"): the common part alone '
            "predicts nothing"
        )
    writer, network = writer_of(job.task.kind), build_network(job)
    load_tensors(network, model.tensors)
    network, task = network.to(chosen).eval(), build_task(job)
    seen = _saliency(network, job, chosen) if explain else None
    return _Predictor(network, task, About.of(model), writer, chosen, seen)


def _saliency(network: nn.Module, job: Job, device: torch.device) -> Saliency:
    if job.task.kind != "classification" or job.data.bagged:
        raise UsageError(
            "--explain is for networks that give an image labels; masks and heat maps show where they look"
        )
    return Saliency(network, torch.zeros((1, *case_shape(job)), device=device))


def _below(path: str, images: Path) -> str:
    folder = images if images.is_dir() else images.parent
    return Path(path).relative_to(folder).as_posix()


def _listing(about: About, refused: list[tuple[str, str]]) -> dict[str, Any]:
    return {
        "wardround": code_version(),
        "model": about.facts,
        "table": TABLE,
        "refused": [{"file": file, "reason": reason} for file, reason in sorted(refused)],
    }
