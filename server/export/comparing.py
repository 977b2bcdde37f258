"""A model as a network, what it is tried on, and how far another's answers are from its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import RunError
from common.model_file import SavedModel
from common.networks import build_network, case_shape, load_tensors
from common.tasks.registry import build_task

BATCH = 2
TOLERANCE = 1e-3
"""Largest absolute difference, relative to the largest output, that other kernels' rounding explains."""


def network_of(model: SavedModel) -> nn.Module:
    """Return the model's network, in evaluation. Raises UpdateError when its tensors are another network's."""
    network = build_network(model.job)
    load_tensors(network, model.tensors)
    return network.eval()


def example_of(model: SavedModel, count: int = BATCH) -> Tensor:
    """Return `count` made-up inputs of what the network sees, always the same."""
    shape = build_task(model.job).input_shape(case_shape(model.job))
    return torch.rand((count, *shape), generator=torch.Generator().manual_seed(0))


def difference(network: nn.Module, model: SavedModel, other: Callable[[Tensor], Any], what: str) -> float:
    """Return the largest absolute difference of the outputs, for one input and for several. Raises RunError."""
    largest = 0.0
    for count in (1, BATCH + 1):
        inputs = example_of(model, count)
        with torch.inference_mode():
            wanted = network(inputs).numpy()
            found = np.asarray(other(inputs))
        if found.shape != wanted.shape:
            raise RunError(f"the {what} gives {found.shape} for {count} inputs, and the model {wanted.shape}")
        largest = max(largest, float(np.abs(found - wanted).max(initial=0)))
        if not largest <= TOLERANCE * max(1.0, float(np.abs(wanted).max(initial=0))):
            raise RunError(f"the {what} gives other outputs than the model: they differ by up to {largest:.3g}")
    return largest
