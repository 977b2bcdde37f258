"""How a sample's clipped gradients are made and summed: engines behind one interface.

Every unit contributes the gradient of the mean loss over its images, scaled down to the clip norm if it is longer.

Guarantees, for every engine: adding or removing one unit changes the sum by at most `clip_norm` in L2 norm. A gradient
of norm 0 contributes 0; one with a NaN or an infinity contributes 0; the norm is that over all parameters together.
This holds up to the rounding of float32 sums, about a millionth of the norm.

Reference: Abadi et al., CCS 2016.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

Gradients = list[Tensor]
"""One tensor a trainable parameter, in the order of `nn.Module.parameters()`."""
Loss = Callable[[Tensor, Tensor], Tensor]
PIECE = 4096
"""Numbers whose squares are added up in their own type."""


@dataclass(frozen=True)
class Sample:
    """The images of a step's units, ready for the network; `sizes`: how many of the rows each unit has, in order.

    `at_once` is how many images `plain` may pass through the network together: with it a unit of any size fits.
    """

    images: Tensor
    targets: Tensor
    sizes: tuple[int, ...]
    at_once: int = sys.maxsize


class Engine(Protocol):
    """Makes the sum of the units' clipped gradients, and the sum of their losses."""

    def __call__(self, network: nn.Module, loss: Loss, sample: Sample, clip_norm: float) -> tuple[Gradients, float]:
        """Return the sums over the sample's units. The network's parameters are not changed, nor their `.grad`."""


def plain(network: nn.Module, loss: Loss, sample: Sample, clip_norm: float) -> tuple[Gradients, float]:
    """One ordinary backward pass a unit, clipped and accumulated: right for every network, the truth for the others."""
    total, losses, start = [torch.zeros_like(parameter) for parameter in trainable(network)], 0.0, 0
    for size in sample.sizes:
        gradients, value = _of_one_unit(network, loss, sample, slice(start, start + size))
        start += size
        reached = [(into, gradient) for into, gradient in zip(total, gradients, strict=True) if gradient is not None]
        found = [gradient for _, gradient in reached]
        factor = float(clip_factors(length(found), clip_norm))
        if factor > 0:
            torch._foreach_add_([into for into, _ in reached], found, alpha=factor)
        losses += value if math.isfinite(value) else 0.0
    return total, losses


def _of_one_unit(network: nn.Module, loss: Loss, sample: Sample, rows: slice) -> tuple[Sequence[Tensor | None], float]:
    """The gradient of the mean loss over a unit's rows, unclipped, and that loss; `at_once` rows at a time.

    A parameter that the loss does not depend on has None.
    """
    parameters, size = trainable(network), rows.stop - rows.start
    gradients: Sequence[Tensor | None] = [None] * len(parameters)
    losses = 0.0
    for start in range(rows.start, rows.stop, sample.at_once):
        part = slice(start, min(rows.stop, start + sample.at_once))
        value = loss(network(sample.images[part]), sample.targets[part]).sum() / size
        found = torch.autograd.grad(value, parameters, allow_unused=True)
        # Not in place: two parameters may have been given one tensor.
        gradients = [a if b is None else b if a is None else a + b for a, b in zip(gradients, found, strict=True)]
        losses += float(value.detach())
    return gradients, losses


def length(tensors: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm of all `tensors` together, () float64: in pieces of their own type, so that it takes no copy.

    A sum over some thousand numbers is exact enough in float32, one over millions is not.
    """
    if not tensors:
        return torch.zeros((), dtype=torch.float64)
    norms: list[Tensor] = []

    def measured(vector: Tensor) -> Tensor:
        """Take in what fills pieces; return the rest."""
        full = len(vector) // PIECE * PIECE
        if full:
            norms.append(torch.linalg.vector_norm(vector[:full].view(-1, PIECE), dim=1))
        return vector[full:]

    rest = measured(torch.cat([measured(tensor.reshape(-1)) for tensor in tensors]))
    norms.append(torch.linalg.vector_norm(rest)[None])
    whole: Tensor = torch.linalg.vector_norm(torch.cat(norms), dtype=torch.float64)
    return whole


def shares(sample: Sample) -> tuple[Tensor, Tensor]:
    """Each image's share in its unit's mean, and the number of its unit: both (N,)."""
    sizes = torch.tensor(sample.sizes, device=sample.images.device)
    units = torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)
    return (1.0 / sizes.double())[units], units


def mean_losses(values: Tensor, weights: Tensor, units: Tensor, sample: Sample) -> float:
    """Return the sum over the units of the mean loss of each, from the losses (N,) of the images."""
    means = torch.zeros(len(sample.sizes), device=values.device).index_add_(0, units, values.float() * weights.float())
    return float(torch.nan_to_num(means, nan=0.0, posinf=0.0, neginf=0.0).sum())


def clip_factors(norms: Tensor, clip_norm: float) -> Tensor:
    """Return what each gradient is multiplied by: min(1, clip_norm / norm), or 0 where the norm is not finite."""
    factors = torch.clamp(clip_norm / norms.clamp(min=torch.finfo(norms.dtype).tiny), max=1.0)
    return torch.where(torch.isfinite(norms), factors, torch.zeros_like(factors))


def trainable(network: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that training changes, in the order of `Gradients`."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]
