"""Clipped gradients by bookkeeping: one pass for all units, their norms on the way back, and one weighted sum.

The backward pass computes no gradient of a weight. Beside each layer with parameters it finds the layer's input and the
gradient at its output. From these comes first the norm of each unit's gradient, layer by layer; then, once the clip
factors are known, the sum of all units' clipped gradients, as a layer's ordinary gradient with weighted rows. Where an
image has few positions (deep layers) the norm comes from inner products of positions, without the gradient itself;
where a layer has few weights (early ones), each unit's gradient is made and kept until the factors are known.

Guarantees: those of `clipping`. A norm from inner products is rounded up by more than they are rounded, so that it is
not below the true one. Memory: the activations of the images of a sample, their gradients in deep layers, and some tens
of megabytes; no gradient of the whole network for each unit.

References: Goodfellow, "Efficient per-example gradient computations", 2015 (norms from inner products); Bu et al.,
"Differentially Private Optimization on Large Model at Small Cost", ICML 2023 (bookkeeping, the rule which way to go).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from client.privacy.clipping import Gradients, Loss, Sample, clip_factors, mean_losses, shares, trainable
from client.privacy.layers import Grouping, Summed, work_on


def bookkeeping(network: nn.Module, loss: Loss, sample: Sample, clip_norm: float) -> tuple[Gradients, float]:
    """One pass for all units. Raises TypeError for a network with parameters outside layers that can be watched."""
    weights, units = shares(sample)
    # What is summed must be as long as what was measured: no convolution on a GPU may round its numbers to 10 bits.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        values, gradients = _pass(network, loss, sample, Grouping(sample.sizes, units), weights, clip_norm)
    return gradients, mean_losses(values, weights, units, sample)


def _pass(
    network: nn.Module, loss: Loss, sample: Sample, grouping: Grouping, weights: Tensor, clip_norm: float
) -> tuple[Tensor, Gradients]:
    """The images' losses, and the sum of the units' clipped gradients."""
    with _watched(network, grouping) as (anchor, books):
        values = loss(network(sample.images), sample.targets)
    total = (values * weights.to(values.dtype)).sum()
    torch.autograd.grad(total, anchor, allow_unused=True)  # nothing is asked of the anchor: the books fill on the way
    if any(book.summed is None for book in books):
        raise TypeError("the loss does not depend on every layer that has parameters")
    squares = torch.stack([book.summed.squares for book in books if book.summed is not None]).sum(dim=0)
    factors = clip_factors(squares.sqrt(), clip_norm)
    found: dict[nn.Parameter, Tensor] = {}
    with torch.no_grad():
        for book in books:
            if book.summed is not None:
                found.update(zip(book.parameters, book.summed.weighted(factors), strict=True))
    return values.detach(), [found[parameter] for parameter in trainable(network)]


@dataclass
class _Book:
    """What is known of one layer: its input once it has run, and, once the backward pass was there, its sums."""

    layer: nn.Module
    parameters: tuple[nn.Parameter, ...]
    grouping: Grouping
    inputs: list[Tensor] = field(default_factory=list)
    summed: Summed | None = None

    def take(self, gradient: Tensor) -> None:
        (images,) = self.inputs
        self.inputs.clear()
        self.summed = work_on(self.layer, images, gradient, self.grouping.of_rows(len(images)))


class _Tap(torch.autograd.Function):
    """Changes nothing on the way forward; on the way back it hands the gradient to a layer's book."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor, book: _Book) -> Tensor:
        ctx.book = book
        ctx.mark_dirty(output)  # so that the network may change the output in place afterwards
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        ctx.book.take(gradients[0])
        return gradients[0], None, None


@contextmanager
def _watched(network: nn.Module, grouping: Grouping) -> Iterator[tuple[Tensor, list[_Book]]]:
    """Put a tap behind every layer that has trainable parameters, which need no gradient of their own meanwhile."""
    wanted = trainable(network)
    books = [
        _Book(layer, own, grouping)
        for layer in network.modules()
        if (own := tuple(p for p in layer.parameters(recurse=False) if p.requires_grad))
    ]
    if any(next(book.layer.children(), None) is not None for book in books):
        raise TypeError("a module with layers in it has parameters of its own")
    anchor = torch.zeros((), device=wanted[0].device, requires_grad=True)
    handles = [book.layer.register_forward_hook(_hook(book, anchor)) for book in books]
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        yield anchor, books
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
        for handle in handles:
            handle.remove()


def _hook(book: _Book, anchor: Tensor) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
    def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or not isinstance(output, Tensor):
            raise TypeError("a layer takes or gives more than one tensor")
        if book.inputs:
            raise TypeError("a layer is used twice")
        book.inputs.append(inputs[0].detach())
        return _Tap.apply(output, anchor, book)  # type: ignore[no-untyped-call]

    return hook
