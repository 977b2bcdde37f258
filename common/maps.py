"""Networks that say something of each place of an image: a detector's heat map, an image restored, k-space unrolled.

Their parts are MONAI's.

References: Ronneberger et al., "U-Net", MICCAI 2015; Zhou et al., "Objects as Points", 2019; Schlemper et al., "A Deep
Cascade of Convolutional Neural Networks for Dynamic MR Image Reconstruction", IEEE TMI 2018; Sriram et al., "End-to-End
Variational Networks for Accelerated MRI Reconstruction", MICCAI 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

MAX_WIDTH, MAX_LEVELS, MAX_CASCADES = 1024, 8, 32
STRIDES = (1, 2, 4, 8, 16)
Parameters = Mapping[str, int | float | str | bool]
Builder = Callable[[int, int, int, Parameters], nn.Module]
RARE = 0.1
"""The share of places that a detector takes for a middle before it has learnt anything (Lin et al., ICCV 2017)."""


class _Added(nn.Module):
    """A network whose outputs are added to its input."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return images + cast(Tensor, self.network(images))


def added(build: Builder) -> Builder:
    """Return a builder of networks that say what is to be added to their input, from one of networks that say all."""

    def built(dimensions: int, channels: int, outputs: int, parameters: Parameters) -> nn.Module:
        if channels != outputs:
            raise ValueError(f"it adds to its input, which has {channels} channels where {outputs} are wanted")
        return _Added(build(dimensions, channels, outputs, parameters))

    return built


def heatmap_detector(dimensions: int, channels: int, outputs: int, parameters: Parameters) -> nn.Module:
    """Return a stem that leaves every `stride`-th place, a UNet over these, and a head of two convolutions.

    Its outputs are those of `common.tasks.heatmap`: all but the last 2 axes of them start rare.
    """
    from monai.networks.blocks.convolutions import Convolution
    from monai.networks.nets.unet import UNet

    settings: dict[str, Any] = {"width": 16, "levels": 3, "stride": 1, **parameters}
    width, levels, stride = settings["width"], settings["levels"], settings["stride"]
    if stride not in STRIDES or not 4 <= width <= MAX_WIDTH or width % 4 or not 2 <= levels <= MAX_LEVELS:
        raise ValueError(
            f"stride must be one of {list(STRIDES)}, width a multiple of 4 up to {MAX_WIDTH}, levels from 2 to "
            f"{MAX_LEVELS}"
        )
    shared: dict[str, Any] = {"act": "RELU", "norm": ("GROUP", {"num_groups": math.gcd(width, 8)})}
    steps = [2] * STRIDES.index(stride) or [1]
    stem = [
        Convolution(dimensions, width if place else channels, width, strides=step, **shared)
        for place, step in enumerate(steps)
    ]
    widths = [width * 2**level for level in range(levels)]
    trunk = UNet(dimensions, width, width, widths, [2] * (levels - 1), num_res_units=0, **shared)
    last = (nn.Conv2d if dimensions == 2 else nn.Conv3d)(width, outputs, 1)
    with torch.no_grad():
        last.weight.mul_(0.1)
        cast(Tensor, last.bias).zero_()[: outputs - 2 * dimensions] = math.log(RARE / (1 - RARE))
    return nn.Sequential(*stem, trunk, Convolution(dimensions, width, width, **shared), last)


class _Refined(nn.Module):
    """What is to be taken from an image (N, 1, *size, 2) of real and imaginary parts: a few convolutions."""

    def __init__(self, dimensions: int, width: int, depth: int) -> None:
        super().__init__()
        convolution = nn.Conv2d if dimensions == 2 else nn.Conv3d
        layers: list[nn.Module] = []
        for place in range(depth - 1):
            layers += [convolution(width if place else 2, width, 3, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers, convolution(width if depth > 1 else 2, 2, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        """Return it in the image's own type: half precision has no Fourier transform."""
        found: Tensor = self.layers(image[:, 0].movedim(-1, 1))
        return found.to(image.dtype).movedim(1, -1).unsqueeze(1)


class Unrolled(nn.Module):
    """Steps of a reconstruction, each a gradient towards what was measured and a small network in image space.

    In: k-space (N, 3, *size): real part, imaginary part, and the mask of what is measured. Out: magnitudes
    (N, 1, *size). There is one coil, whose sensitivity is 1 everywhere.
    """

    def __init__(self, dimensions: int, cascades: int, width: int, depth: int) -> None:
        super().__init__()
        from monai.apps.reconstruction.networks.blocks.varnetblock import VarNetBlock

        self.dimensions = dimensions
        blocks = (VarNetBlock(_Refined(dimensions, width, depth), dimensions) for _ in range(cascades))
        self.cascades = nn.ModuleList(blocks)

    def forward(self, seen: Tensor) -> Tensor:
        """Return the magnitude of the image of the last step's k-space."""
        from monai.networks.blocks.fft_utils_t import ifftn_centered_t

        measured = seen[:, :2].movedim(1, -1).unsqueeze(1).contiguous()
        mask, coil = seen[:, 2:, ..., None] > 0, torch.zeros_like(measured)
        coil[..., 0] = 1
        kspace = measured
        for cascade in self.cascades:
            kspace = cascade(kspace, measured, mask, coil)
        image = ifftn_centered_t(kspace, spatial_dims=self.dimensions)
        # The root has no slope at 0: where both parts are, it is moved off it by less than an intensity's rounding.
        return (image.square().sum(dim=-1) + 1e-12).sqrt()


def unrolled_cnn(dimensions: int, channels: int, outputs: int, parameters: Parameters) -> nn.Module:
    """Return an unrolled network of `cascades` steps, each with `depth` convolutions of `width` channels."""
    settings: dict[str, Any] = {"cascades": 4, "width": 16, "depth": 3, **parameters}
    cascades, width, depth = settings["cascades"], settings["width"], settings["depth"]
    if (channels, outputs) != (3, 1):
        raise ValueError('it sees k-space and its mask: it needs task.parameters.sees = "k-space"')
    if not (1 <= cascades <= MAX_CASCADES and 1 <= width <= MAX_WIDTH and 2 <= depth <= MAX_CASCADES):
        raise ValueError(f"cascades must be from 1 and depth from 2 to {MAX_CASCADES}, width up to {MAX_WIDTH}")
    return Unrolled(dimensions, cascades, width, depth)
