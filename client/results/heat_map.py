"""What a network sees on a slide, tile by tile: each tile's score, and how much attention it gets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from client.bags import cut_of
from client.intake.image import Pixels
from client.intake.intensity import with_channels
from client.intake.pyramid import open_pyramid
from client.intake.tissue import Place, grid_of, read_tile, tissue_places
from common.errors import UsageError
from common.job import DataSection
from common.mil import AttentionMIL
from common.tasks.classification import Classification

AT_ONCE = 16
"""Tiles that are passed through the network together."""


@dataclass(frozen=True)
class HeatMap:
    """A value in [0, 1] for each tile of a slide, NaN where there is no tissue: (rows, columns) float32.

    `meaning` says of what ("attention", or a label). `edges`: height and width of a tile in micrometres.
    """

    values: np.ndarray
    meaning: str
    edges: tuple[float, float]


@dataclass(frozen=True)
class SlideScan:
    """All tissue tiles of a slide as a network sees them.

    Shapes, of T tiles and K labels: scores (T, K) in [0, 1], of each tile by itself; attention (T,) adds up to 1, and
    is None where the network is one of single tiles. `grid` is how many tiles there are, down and across.
    """

    places: tuple[Place, ...]
    grid: tuple[int, int]
    edges: tuple[float, float]
    scores: np.ndarray
    attention: np.ndarray | None

    def of_label(self, column: int, meaning: str) -> HeatMap:
        """Return the map of one label's score."""
        return self._map(self.scores[:, column], meaning)

    def of_attention(self) -> HeatMap:
        """Return the map of attention, relative to the tile that gets most. Raises UsageError where there is none."""
        if self.attention is None:
            raise UsageError("a network of single tiles has no attention: take the map of a label")
        return self._map(self.attention / self.attention.max(), "attention")

    def _map(self, values: np.ndarray, meaning: str) -> HeatMap:
        found = np.full(self.grid, np.nan, dtype=np.float32)
        found[[place.row for place in self.places], [place.column for place in self.places]] = values
        return HeatMap(found, meaning, self.edges)


def scan_slide(
    network: nn.Module, task: Classification, paths: Sequence[Path], data: DataSection, device: torch.device
) -> SlideScan:
    """Return what `network` says of every tissue tile of the slide at `paths`: one TIFF, or a DICOM slide's files.

    Memory: some tiles at a time, however large the slide is. Raises FileRefusedError as the slide's reader does.
    """
    network.eval()
    cut = cut_of(data, tiles=0)
    with open_pyramid(paths) as pyramid, torch.inference_mode(), _listening(network) as heard:
        places = tissue_places(pyramid, cut)
        tiles = (with_channels(read_tile(pyramid, cut, place), data.channels) for place in places)
        scores = [_scores(task, network(_rows(some, data).to(device))) for some in _batches(tiles)]
        grid = grid_of(pyramid.levels[0], cut)
    attention = torch.softmax(torch.cat(heard), dim=0).numpy() if heard else None
    edges = (cut.rows * cut.mpp, cut.columns * cut.mpp)
    return SlideScan(tuple(places), grid, edges, torch.cat(scores).numpy(), attention)


def _batches(tiles: Iterable[Pixels]) -> Iterator[list[Pixels]]:
    waiting = iter(tiles)
    while some := list(islice(waiting, AT_ONCE)):
        yield some


def _rows(tiles: Sequence[Pixels], data: DataSection) -> Tensor:
    """Tiles as what the network takes: each as a bag of one, or by itself."""
    images = torch.from_numpy(np.moveaxis(np.stack(tiles), -1, 1).copy())
    return images.unsqueeze(2) if data.bagged else images


def _scores(task: Classification, outputs: Tensor) -> Tensor:
    """The labels' scores (M, K), which depend on no target."""
    return task.scores(outputs.float(), torch.zeros(len(outputs))).cpu()


@contextmanager
def _listening(network: nn.Module) -> Iterator[list[Tensor]]:
    """Collect each tile's attention before the softmax, if the network is one of bags: it does not depend on others."""
    heard: list[Tensor] = []
    layers = [layer.attention for layer in network.modules() if isinstance(layer, AttentionMIL)]
    handles = [
        layer.register_forward_hook(lambda _, __, logits: heard.append(logits.detach().flatten().float().cpu()))
        for layer in layers
    ]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()
