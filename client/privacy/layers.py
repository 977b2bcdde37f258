"""What `bookkeeping` needs to know of a layer: the norm of each unit's gradient, and the weighted sum of these.

Shapes: N images in U units, n at most in one; a layer's input (N, ...) and the gradient of the loss at its output, here
its slopes, (N, ...). A convolution or linear layer multiplies, at each of T positions of a unit (all images of the unit
together), what it sees of its input with its weights, G groups of channels apart.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

ROUNDING = 8
"""A norm from inner products is rounded up by this many units in the last place of its largest possible terms."""
KEPT_BYTES = 32 * 1024**2
"""Gradients of one layer, of all units, that are kept until the clip factors are known."""
CHUNK_BYTES = 8 * 1024**2
"""What is laid out at once for several units; more only where a single unit needs more."""
PRODUCTS = 16
"""Inner products of positions are taken where this many times their number is less than the number of weights."""
PIECE = 4096


@dataclass(frozen=True)
class Grouping:
    """Which rows are whose: `sizes` (U) in order of the rows, and each row's unit (N,)."""

    sizes: tuple[int, ...]
    units: Tensor

    def of_rows(self, count: int) -> Grouping:
        """Return the grouping of a layer that sees `count` rows: of each image as many parts, beside each other.

        Raises TypeError where that can't be.
        """
        times, rest = divmod(count, sum(self.sizes))
        if rest or not times:
            raise TypeError("a layer sees rows that are neither images nor parts of one")
        if times == 1:
            return self
        return Grouping(tuple(size * times for size in self.sizes), self.units.repeat_interleave(times))

    def by_unit(self, rows: Tensor) -> Tensor:
        """Return rows (N, ...) as (U, n, ...), with zeros where a unit has fewer."""
        most = max(self.sizes)
        if len(rows) == most * len(self.sizes):
            return rows.reshape(len(self.sizes), most, *rows.shape[1:])
        padded = rows.new_zeros(len(self.sizes), most, *rows.shape[1:])
        padded[self.units, torch.cat([torch.arange(size, device=rows.device) for size in self.sizes])] = rows
        return padded

    def chunks(self, bytes_a_unit: int) -> Iterator[tuple[slice, Grouping]]:
        """Yield the rows of as many units as take `CHUNK_BYTES`, at least one, with their own grouping."""
        most, start = max(1, CHUNK_BYTES // max(1, bytes_a_unit)), 0
        for first in range(0, len(self.sizes), most):
            sizes = self.sizes[first : first + most]
            rows = slice(start, start + sum(sizes))
            start = rows.stop
            yield rows, Grouping(sizes, self.units[rows] - first)


@dataclass(frozen=True)
class Summed:
    """Of one layer: the squared norm of each unit's gradient, (U,) float64, and what sums them with weights.

    `weighted` takes the units' factors (U,) and returns a gradient for each of the layer's trainable parameters; a unit
    whose factor is 0 has no part in it, whatever its gradient.
    """

    squares: Tensor
    weighted: Callable[[Tensor], list[Tensor]]


def work_on(layer: nn.Module, images: Tensor, slopes: Tensor, grouping: Grouping) -> Summed:
    """Return what is needed of `layer`, from its input and the gradient at its output."""
    whole = all(parameter.requires_grad for parameter in layer.parameters(recurse=False))
    if whole and type(layer) is nn.GroupNorm:
        return _kept(_of_group_norm(layer, images, slopes, grouping))
    if whole and type(layer) is nn.Linear:
        return _product(_Product.of_linear(layer), _channels_second(images), _channels_second(slopes), grouping)
    if whole and type(layer) in (nn.Conv1d, nn.Conv2d, nn.Conv3d) and _zeros_around(layer):
        return _product(_Product.of_convolution(cast(nn.Conv2d, layer)), images, slopes, grouping)
    return _any_layer(layer, images, slopes, grouping)


def squares(gradients: Tensor) -> Tensor:
    """Return the squared norm of each unit's gradient (U, ...), as (U,) float64."""
    pieces = [torch.linalg.vector_norm(part, dim=1) for part in torch.split(gradients.flatten(1), PIECE, dim=1)]
    return torch.stack(pieces).double().square().sum(dim=0)


def _kept(gradients: Sequence[Tensor]) -> Summed:
    """From the units' own gradients, (U, *shape) for each parameter."""
    norms = torch.stack([squares(of) for of in gradients]).sum(dim=0)
    return Summed(norms, lambda factors: _weighted(gradients, factors))


def _weighted(gradients: Sequence[Tensor], factors: Tensor) -> list[Tensor]:
    keep = factors > 0  # 0 times infinity is no number: what contributes nothing is left out
    return [torch.tensordot(factors[keep].to(of.dtype), of[keep], dims=1) for of in gradients]


def _of_group_norm(layer: nn.GroupNorm, images: Tensor, slopes: Tensor, grouping: Grouping) -> list[Tensor]:
    """All images' channels beside each other are the channels of one image with more groups: its gradient is theirs."""
    count, channels = images.shape[:2]
    shape = (1, count * channels, images[0, 0].numel(), count * layer.num_groups)
    images, slopes, ones = images.contiguous(), slopes.contiguous(), images.new_ones(count * channels)
    _, mean, scale = torch.ops.aten.native_group_norm(images, None, None, *shape, layer.eps)
    found = torch.ops.aten.native_group_norm_backward(slopes, images, mean, scale, ones, *shape, (False, True, True))
    return [grouping.by_unit(each.view(count, channels)).sum(dim=1) for each in found[1:]]


def _any_layer(layer: nn.Module, images: Tensor, slopes: Tensor, grouping: Grouping) -> Summed:
    """Any layer of one tensor in and one out: its gradient a unit by running it again."""
    values = {name: each.detach() for name, each in layer.named_parameters(recurse=False) if each.requires_grad}

    def pulled(rows: Tensor, slope: Tensor) -> dict[str, Tensor]:
        pull = torch.func.vjp(lambda given: torch.func.functional_call(layer, given, (rows,)), values)[1]
        return cast(dict[str, Tensor], pull(slope)[0])

    each = torch.func.vmap(pulled)(grouping.by_unit(images), grouping.by_unit(slopes))
    return _kept([each[name] for name in values])


def _zeros_around(layer: nn.Module) -> bool:
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _product(product: _Product, images: Tensor, slopes: Tensor, grouping: Grouping) -> Summed:
    """A convolution or linear layer: norms from inner products of positions, or from gradients where these are less."""
    weight, units = product.weight, len(grouping.sizes)
    bias = [grouping.by_unit(slopes.flatten(2).sum(dim=2)).sum(dim=1)] if product.bias else []
    size = weight.numel() * weight.element_size()
    positions = max(grouping.sizes) * slopes[0, 0].numel()
    found, kept = [], []
    if PRODUCTS * positions**2 * product.groups < weight.numel():
        seen = max(grouping.sizes) * max(slopes[0, 0].numel(), images[0, 0].numel())
        for rows, some in grouping.chunks(2 * product.groups * seen**2 * weight.element_size()):
            found.append(product.norms(images[rows], slopes[rows], some))
    else:
        for rows, some in grouping.chunks(size):
            gradients = product.gradients(images[rows], slopes[rows], some)
            found.append(squares(gradients))
            kept += [gradients] if units * size <= KEPT_BYTES else []
    norms = torch.stack([torch.cat(found), *map(squares, bias)]).sum(dim=0)
    if kept:
        whole = torch.cat(kept)
        return Summed(norms, lambda factors: _weighted([whole, *bias], factors))

    def weighted(factors: Tensor) -> list[Tensor]:
        keep = (factors > 0)[grouping.units]
        scaled = slopes * factors[grouping.units].to(slopes.dtype).view(-1, *[1] * (slopes.dim() - 1))
        rows = (images, scaled) if bool(keep.all()) else (images[keep], scaled[keep])
        return [product.gradient(*rows), *_weighted(bias, factors)]

    return Summed(norms, weighted)


@dataclass(frozen=True)
class _Product:
    """A convolution, or a linear layer as one of width 1 over positions: images (N, C, *size), slopes (N, O, *out)."""

    weight: Tensor
    shape: tuple[int, ...]
    """Of the weights, (O, C / G, *kernel)."""
    bias: bool
    stride: tuple[int, ...] = (1,)
    padding: tuple[int, ...] = (0,)
    dilation: tuple[int, ...] = (1,)
    groups: int = 1

    @classmethod
    def of_linear(cls, layer: nn.Linear) -> _Product:
        return cls(layer.weight.detach(), (*layer.weight.shape, 1), layer.bias is not None)

    @classmethod
    def of_convolution(cls, layer: nn.Conv2d) -> _Product:
        around = (layer.stride, cast(tuple[int, ...], layer.padding), layer.dilation, layer.groups)
        return cls(layer.weight.detach(), tuple(layer.weight.shape), layer.bias is not None, *around)

    @property
    def pointwise(self) -> bool:
        """Whether an output sees one position of the input, the one where it is itself."""
        return math.prod(self.shape[2:]) == 1 and set(self.stride) == {1} and set(self.padding) == {0}

    def gradient(self, images: Tensor, slopes: Tensor) -> Tensor:
        """Return the gradient of all rows together, of the weights' own shape."""
        return self._backward(images, slopes, self.groups, self.shape).view_as(self.weight)

    def gradients(self, images: Tensor, slopes: Tensor, grouping: Grouping) -> Tensor:
        """Return each unit's gradient, (U, *the weights' own shape)."""
        of_units, tilts = grouping.by_unit(images), grouping.by_unit(slopes)
        units = len(grouping.sizes)
        if self.pointwise and self.groups == 1:
            found = _positions_last(tilts, 1) @ _positions_last(of_units, 1).transpose(-1, -2)
        else:
            # Units beside each other, each a group of channels of its own: one convolution for all.
            beside = [rows.transpose(0, 1).flatten(1, 2) for rows in (of_units, tilts)]
            shape = (units * self.shape[0], *self.shape[1:])
            found = self._backward(beside[0], beside[1], units * self.groups, shape)
        return found.reshape(units, *self.weight.shape)

    def norms(self, images: Tensor, slopes: Tensor, grouping: Grouping) -> Tensor:
        """Return the squared norm of each unit's gradient, (U,) float64, by inner products of positions."""
        inputs = self._seen(images, grouping)
        outputs = _inner(_positions_last(grouping.by_unit(slopes), self.groups))
        total = (inputs * outputs).sum(dim=-1).double().sum(dim=(1, 2))
        lengths = [products.diagonal(dim1=-2, dim2=-1).clamp(min=0).double().sqrt() for products in (inputs, outputs)]
        largest = (lengths[0] * lengths[1]).sum(dim=(1, 2)).square()
        return total.clamp(min=0) + ROUNDING * torch.finfo(slopes.dtype).eps * largest

    def _seen(self, images: Tensor, grouping: Grouping) -> Tensor:
        """Inner products of what the outputs see of the input, for every two positions of a unit: (U, G, T, T)."""
        rows = grouping.by_unit(images)
        if self.pointwise:
            return _inner(_positions_last(rows, self.groups))
        padded = functional.pad(rows, [side for pad in reversed(self.padding) for side in (pad, pad)])
        if set(self.stride) != {1}:
            return _inner(_positions_last(self._columns(padded), self.groups))
        # A product of what two positions see is the sum of products of single pixels, shifted together.
        units, most, size = *rows.shape[:2], padded.shape[3:]
        pixels = _inner(_positions_last(padded, self.groups)).view(units, self.groups, most, *size, most, *size)
        spans = [range(0, apart * kernel, apart) for kernel, apart in zip(self.shape[2:], self.dilation, strict=True)]
        out = [s - span[-1] for s, span in zip(size, spans, strict=True)]
        windows = (
            tuple(slice(start, start + length) for start, length in zip(shift, out, strict=True))
            for shift in itertools.product(*spans)
        )
        total = sum(pixels[:, :, :, *window, :, *window] for window in windows)
        positions = most * math.prod(out)
        return cast(Tensor, total).reshape(units, self.groups, positions, positions)

    def _columns(self, padded: Tensor) -> Tensor:
        """What each output sees: (U, n, C * kernel, *out), the channels of a group together."""
        dimensions = len(self.shape) - 2
        for d, (kernel, stride, apart) in enumerate(zip(self.shape[2:], self.stride, self.dilation, strict=True)):
            padded = padded.unfold(3 + d, apart * (kernel - 1) + 1, stride)[..., ::apart]
        kernel_first = padded.movedim([*range(-dimensions, 0)], [*range(3, 3 + dimensions)])
        return kernel_first.flatten(2, 2 + dimensions)

    def _backward(self, images: Tensor, slopes: Tensor, groups: int, shape: tuple[int, ...]) -> Tensor:
        weight = self.weight.new_empty(shape)  # only its shape and type are looked at
        found = torch.ops.aten.convolution_backward(
            slopes, images, weight, None, self.stride, self.padding, self.dilation, False, [0] * len(self.stride),
            groups, (False, True, False),
        )  # fmt: skip
        return cast(Tensor, found[1])


def _positions_last(rows: Tensor, groups: int) -> Tensor:
    """Put a unit's images side by side: (U, n, C, *size) to (U, G, C / G, T)."""
    rows = rows.reshape(*rows.shape[:2], groups, -1, rows[0, 0, 0].numel())
    return rows[:, 0] if rows.shape[1] == 1 else rows.permute(0, 2, 3, 1, 4).flatten(3)


def _channels_second(rows: Tensor) -> Tensor:
    """Put (N, *, C) in the form (N, C, positions)."""
    return rows.reshape(len(rows), -1, rows.shape[-1]).transpose(1, 2)


def _inner(rows: Tensor) -> Tensor:
    return rows.transpose(-1, -2) @ rows
