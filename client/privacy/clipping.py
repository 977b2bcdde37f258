"""How a sample's clipped gradients are made and summed: engines behind one interface.

Every unit contributes the gradient of the mean loss over its images, scaled down to the clip norm if it is longer.

Guarantees, for every engine: adding or removing one unit changes the sum by at most `clip_norm` in L2 norm. A gradient
of norm 0 contributes 0; one with a NaN or an infinity contributes 0; the norm is that over all parameters together.
This holds up to the rounding of float32 sums, about a millionth of the norm.

References: Abadi et al., CCS 2016 (clipping); Yousefpour et al., "Opacus", 2021 (per-sample gradients by hooks).
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
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
    flat = [tensor.reshape(-1) for tensor in tensors]
    whole = [vector[: len(vector) // PIECE * PIECE].view(-1, PIECE) for vector in flat if len(vector) >= PIECE]
    rest = torch.cat([vector[len(vector) // PIECE * PIECE :] for vector in flat])
    norms = [torch.linalg.vector_norm(pieces, dim=1) for pieces in whole]
    return torch.linalg.vector_norm(torch.cat([*norms, torch.linalg.vector_norm(rest)[None]]), dtype=torch.float64)


def hooks(network: nn.Module, loss: Loss, sample: Sample, clip_norm: float) -> tuple[Gradients, float]:
    """Opacus' hooks: one pass for all images, a gradient an image, summed by unit, then clipped.

    Only for networks on which it was shown to agree with `plain`: it refuses some, and on some it is wrong.
    """
    weights, units = _shares(sample)
    with _per_sample_gradients(network) as wrapped:
        values = loss(wrapped(sample.images), sample.targets)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook is firing")  # true, and without effect here
            # The hooks take the sum's gradient apart by image, so each image's share of its unit's mean goes in here.
            (values * weights.to(values.dtype)).sum().backward()  # type: ignore[no-untyped-call]
        per_image = [_grad_sample(parameter) for parameter in trainable(network)]
    return _clip_and_sum(per_image, units, sample, clip_norm), _mean_losses(values.detach(), weights, units, sample)


def vmap(network: nn.Module, loss: Loss, sample: Sample, clip_norm: float) -> tuple[Gradients, float]:
    """torch.func's vectorised map: a gradient an image in one pass, summed by unit, then clipped."""
    weights, units = _shares(sample)
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    values = {name: tensor.detach() for name, tensor in (*network.named_parameters(), *network.named_buffers())}
    fixed = {name: tensor for name, tensor in values.items() if name not in names}

    def of_one(trainable: dict[str, Tensor], image: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        outputs = torch.func.functional_call(network, trainable | fixed, (image.unsqueeze(0),))
        value = loss(outputs, target.unsqueeze(0)).sum()
        return value * weight.to(value.dtype), value.detach()

    each = torch.func.grad(of_one, has_aux=True)
    mapped = torch.func.vmap(each, in_dims=(None, 0, 0, 0), randomness="different")
    gradients, losses = mapped({name: values[name] for name in names}, sample.images, sample.targets, weights)
    per_image = [gradients[name] for name in names]
    return _clip_and_sum(per_image, units, sample, clip_norm), _mean_losses(losses, weights, units, sample)


def _shares(sample: Sample) -> tuple[Tensor, Tensor]:
    """Each image's share in its unit's mean, and the number of its unit: both (N,)."""
    sizes = torch.tensor(sample.sizes, device=sample.images.device)
    units = torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)
    return (1.0 / sizes.double())[units], units


def _clip_and_sum(per_image: Gradients, units: Tensor, sample: Sample, clip_norm: float) -> Gradients:
    by_unit = [_sum_by(gradient, units, len(sample.sizes)) for gradient in per_image]
    lengths = [torch.linalg.vector_norm(gradient.flatten(1), dim=1, dtype=torch.float64) for gradient in by_unit]
    factors = clip_factors(torch.linalg.vector_norm(torch.stack(lengths), dim=0), clip_norm)
    keep = factors > 0  # 0 times infinity is no number: what contributes nothing is left out
    return [torch.tensordot(factors[keep].to(gradient.dtype), gradient[keep], dims=1) for gradient in by_unit]


def _mean_losses(values: Tensor, weights: Tensor, units: Tensor, sample: Sample) -> float:
    means = torch.zeros(len(sample.sizes), device=values.device).index_add_(0, units, values.float() * weights.float())
    return float(torch.nan_to_num(means, nan=0.0, posinf=0.0, neginf=0.0).sum())


ENGINES: dict[str, Engine] = {"plain": plain, "vmap": vmap, "hooks": hooks}


def clip_factors(norms: Tensor, clip_norm: float) -> Tensor:
    """Return what each gradient is multiplied by: min(1, clip_norm / norm), or 0 where the norm is not finite."""
    factors = torch.clamp(clip_norm / norms.clamp(min=torch.finfo(norms.dtype).tiny), max=1.0)
    return torch.where(torch.isfinite(norms), factors, torch.zeros_like(factors))


def trainable(network: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that training changes, in the order of `Gradients`."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


@contextmanager
def _per_sample_gradients(network: nn.Module) -> Iterator[nn.Module]:
    """Hang Opacus' hooks into the network, and take them out again whatever happens."""
    from opacus.grad_sample import GradSampleModule

    wrapped = GradSampleModule(network, strict=True, loss_reduction="sum")
    try:
        yield wrapped
    finally:
        for parameter in network.parameters():
            parameter.grad = None
            with suppress(AttributeError):
                parameter.grad_sample = None  # type: ignore[attr-defined]
        wrapped.remove_hooks()
        wrapped.to_standard_module()


def _grad_sample(parameter: nn.Parameter) -> Tensor:
    found = parameter.grad_sample  # type: ignore[attr-defined]
    # A layer that is used twice leaves a list: the gradient is the sum over its uses.
    return torch.stack(found).sum(dim=0) if isinstance(found, list) else found


def _sum_by(per_image: Tensor, units: Tensor, count: int) -> Tensor:
    if len(per_image) == count:
        return per_image
    return torch.zeros((count, *per_image.shape[1:]), dtype=per_image.dtype, device=per_image.device).index_add_(
        0, units, per_image
    )
