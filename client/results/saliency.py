"""Where a network looked when it gave an image its label: Grad-CAM, by MONAI.

It is coarse: a map of some layer's places, stretched over the image. It tells what the label's score rose with, and not
whether that is a reason.

Reference: Selvaraju et al., "Grad-CAM", ICCV 2017.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from client.intake.image import FileRefusedError, Pixels
from client.results.prediction import View
from common.errors import UsageError

FINE = 7
"""The last layer whose map has so many places along each axis is looked at, as in the paper's networks."""


class Saliency:
    """A network whose attention to its inputs' places is asked for."""

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        """Choose the layer by `example`, (1, C, *size). Raises UsageError when no layer has a map of places."""
        from monai.visualize.class_activation_maps import GradCAM

        own = copy.deepcopy(network).eval()  # its hooks stay on it
        self._cam: Any = GradCAM(own, target_layers=_layer(own, example), postprocessing=lambda values: values)

    def of(self, view: View, label: int, device: torch.device) -> Pixels:
        """Return how much each place of the view raises the label's output, at most 1: (*size)."""
        inputs = torch.from_numpy(np.asarray(view.image))[None].to(device)
        with torch.enable_grad():
            found = self._cam(inputs, class_idx=label)
        values: Pixels = np.maximum(found.detach().cpu().float().numpy()[0, 0], 0)
        if not np.isfinite(values).all():
            raise FileRefusedError("the network's saliency is not a number")
        largest = values.max()
        return np.asarray(values / largest if largest > 0 else values, dtype=np.float32)


def _layer(network: nn.Module, example: Tensor) -> str:
    """The name of the last layer with a map of at least FINE places along each axis, else of the largest map."""
    shapes: dict[str, tuple[int, ...]] = {}

    def noting(name: str) -> Any:
        def note(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == example.ndim:
                shapes.pop(name, None)
                shapes[name] = tuple(output.shape[2:])

        return note

    handles = [layer.register_forward_hook(noting(name)) for name, layer in network.named_modules() if name]
    try:
        with torch.no_grad():
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    maps = {name: shape for name, shape in shapes.items() if max(shape) > 1}
    if not maps:
        raise UsageError("--explain: no layer of this network has a map of places")
    finest = min(FINE, max(min(shape) for shape in maps.values()))
    return [name for name, shape in maps.items() if min(shape) >= finest][-1]
