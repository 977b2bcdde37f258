"""Engines that make a gradient, or its norm, for each image: Opacus' hooks and ghost clipping, and torch.func's vmap.

Opacus refuses some networks, and on some it is wrong without a word: use these only where they were shown to agree with
`plain`, as `choice` does.

References: Yousefpour et al., "Opacus", 2021 (hooks); Li et al., "Large Language Models Can Be Strong Differentially
Private Learners", ICLR 2022 (ghost clipping).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from client.privacy.clipping import Gradients, Loss, Sample, clip_factors, mean_losses, shares, trainable


def hooks(network: nn.Module, loss: Loss, sample: Sample, clip_norm: float) -> tuple[Gradients, float]:
    """Opacus' hooks: one pass for all images, a gradient an image, summed by unit, then clipped."""
    weights, units = shares(sample)
    with _opacus(network, norms_only=False) as wrapped:
        values = loss(wrapped(sample.images), sample.targets)
        # The hooks take the sum's gradient apart by image, so each image's share of its unit's mean goes in here.
        _backward((values * weights.to(values.dtype)).sum())
        per_image = [_grad_sample(parameter) for parameter in trainable(network)]
    return _clip_and_sum(per_image, units, sample, clip_norm), mean_losses(values.detach(), weights, units, sample)


def vmap(network: nn.Module, loss: Loss, sample: Sample, clip_norm: float) -> tuple[Gradients, float]:
    """torch.func's vectorised map: a gradient an image in one pass, summed by unit, then clipped."""
    weights, units = shares(sample)
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
    return _clip_and_sum(per_image, units, sample, clip_norm), mean_losses(losses, weights, units, sample)


def ghost(network: nn.Module, loss: Loss, sample: Sample, clip_norm: float) -> tuple[Gradients, float]:
    """Opacus' ghost clipping: a first pass for the images' norms, a second one for the sum of weighted gradients.

    Raises ValueError where a unit has more than one image: its norms are of images.
    """
    if any(size != 1 for size in sample.sizes):
        raise ValueError("ghost clipping takes one image a unit")
    weights, units = shares(sample)
    with _opacus(network, norms_only=True) as wrapped:
        values = loss(wrapped(sample.images), sample.targets)
        _backward(values.sum(), keep_graph=True)
        factors = clip_factors(wrapped.get_norm_sample().double(), clip_norm)
        for parameter in trainable(network):
            parameter.grad = None
        wrapped.disable_hooks()
        keep = factors > 0
        if bool(keep.all()):
            _backward((values * factors.to(values.dtype)).sum())
        elif bool(keep.any()):  # a broken image would spoil the others' sum: 0 times infinity is no number
            some = loss(wrapped(sample.images[keep]), sample.targets[keep])
            _backward((some * factors[keep].to(some.dtype)).sum())
        found = [parameter.grad for parameter in trainable(network)]
    gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(trainable(network), found, strict=True)]
    return gradients, mean_losses(values.detach(), weights, units, sample)


def _clip_and_sum(per_image: Gradients, units: Tensor, sample: Sample, clip_norm: float) -> Gradients:
    by_unit = [_sum_by(gradient, units, len(sample.sizes)) for gradient in per_image]
    lengths = [torch.linalg.vector_norm(gradient.flatten(1), dim=1, dtype=torch.float64) for gradient in by_unit]
    factors = clip_factors(torch.linalg.vector_norm(torch.stack(lengths), dim=0), clip_norm)
    keep = factors > 0  # 0 times infinity is no number: what contributes nothing is left out
    return [torch.tensordot(factors[keep].to(gradient.dtype), gradient[keep], dims=1) for gradient in by_unit]


@contextmanager
def _opacus(network: nn.Module, *, norms_only: bool) -> Iterator[Any]:
    """Hang Opacus' hooks into the network, and take them out again whatever happens."""
    from opacus.grad_sample import GradSampleModule
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping

    kind = GradSampleModuleFastGradientClipping if norms_only else GradSampleModule
    wrapped = kind(network, strict=True, loss_reduction="sum")
    try:
        yield wrapped
    finally:
        for parameter in network.parameters():
            parameter.grad = None
            for name in ("grad_sample", "_norm_sample"):
                with suppress(AttributeError):
                    setattr(parameter, name, None)
        wrapped.remove_hooks()
        wrapped.to_standard_module()


def _backward(value: Tensor, *, keep_graph: bool = False) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")  # true, and without effect here
        value.backward(retain_graph=keep_graph)  # type: ignore[no-untyped-call]


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
