"""Standardised weights and inputs: what lets a network without batch statistics learn as one with them.

Both are functions of one image and of the weights alone, so they cost no privacy and work with every clipping engine.

References: Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization", 2019;
De et al., "Unlocking High-Accuracy Differentially Private Image Classification through Scale", 2022 (with DP-SGD).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

MIDDLE, SPREAD = 0.5, 0.25
"""What is subtracted from intensities in [0, 1], and what they are divided by. Public: not measured on any image."""
EPSILON = 1e-5
_SETTINGS = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")


class Standardised(nn.Module):
    """A network that takes images in [0, 1] and sees them with about zero mean and unit scale."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's outputs for `images` (N, C, *size) in [0, 1]."""
        return cast(Tensor, self.network((images - MIDDLE) / SPREAD))


class StandardisedConv2d(nn.Conv2d):
    """A 2D convolution each of whose filters has mean zero and a norm of one before it is applied."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of `input` with the standardised filters."""
        return cast(Tensor, self._conv_forward(input, standardised(self.weight), self.bias))


class StandardisedConv3d(nn.Conv3d):
    """A 3D convolution each of whose filters has mean zero and a norm of one before it is applied."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of `input` with the standardised filters."""
        return cast(Tensor, self._conv_forward(input, standardised(self.weight), self.bias))


def standardised(weight: Tensor) -> Tensor:
    """Return filters (out, in, *kernel), each with mean zero and variance 1 / fan-in, whatever the weights' scale."""
    flat = weight.flatten(1)
    variance, mean = torch.var_mean(flat, dim=1, correction=0, keepdim=True)
    return ((flat - mean) * torch.rsqrt(variance * flat.shape[1] + EPSILON)).view_as(weight)


def standardise_weights(network: nn.Module) -> nn.Module:
    """Put a standardised convolution in place of every one of more than one input value, in `network` itself."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d | nn.Conv3d) and child.weight[0].numel() > 1:
                setattr(parent, name, _standardised_like(child))
    return network


def _standardised_like(layer: nn.Conv2d | nn.Conv3d) -> nn.Module:
    kind = StandardisedConv2d if isinstance(layer, nn.Conv2d) else StandardisedConv3d
    settings: dict[str, Any] = {name: getattr(layer, name) for name in _SETTINGS}
    made = kind(**settings, bias=layer.bias is not None, device="meta")
    made.weight, made.bias = layer.weight, layer.bias
    return made
