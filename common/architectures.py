"""The table of networks: MONAI's, and some small enough for a laptop, by the names that a job gives them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from common.maps import added, heatmap_detector, unrolled_cnn
from common.mil import AttentionMIL
from common.standardisation import standardise_weights
from common.tasks.parameters import Truth

MAX_GROUPS = 8
MAX_DEPTH = 100
MAX_WIDTH, MAX_LEVELS = 1024, 8
Parameters = Mapping[str, int | float | str | bool]
Builder = Callable[[int, int, int, Parameters], nn.Module]
"""Builds a network from: spatial dimensions (2 or 3), input channels, outputs, the job's own parameters."""


Gives = Literal["values", "map", "boxes", "image"]
FOR: dict[Truth, Gives] = {"label": "values", "mask": "map", "boxes": "boxes", "image": "image"}
"""What a network ought to give for each kind of truth."""


@dataclass(frozen=True)
class Architecture:
    """A network that a job can name: how it is built, the parameters that a job may give it, and what it is for.

    One for tables is built with 1 dimension and as many channels as there are features; one for bags takes
    (N, C, images, rows, columns). `gives`: a value for each of its outputs, or a map of them over the image. `weighs`:
    it can't be built without its numbers.
    """

    build: Builder
    parameters: tuple[str, ...] = ()
    table: bool = False
    gives: Gives = "values"
    weighs: bool = False
    bag: bool = False


def group_norm(channels: int) -> nn.GroupNorm:
    """Return as many groups as divide the channels, at most eight: of 32, small nets would have one channel a group.

    Where only one divides them (an odd number of channels), all channels are one group: layer normalisation.
    """
    return nn.GroupNorm(math.gcd(channels, MAX_GROUPS), channels)


def small_cnn(
    dimensions: int, channels: int, outputs: int, *, width: int = 32, weight_standardisation: bool = False
) -> nn.Module:
    """Return three blocks of convolution, GroupNorm, ReLU and pooling, and a linear layer: about 25,000 parameters."""
    convolution = nn.Conv2d if dimensions == 2 else nn.Conv3d
    pool = nn.MaxPool2d if dimensions == 2 else nn.MaxPool3d
    mean = nn.AdaptiveAvgPool2d if dimensions == 2 else nn.AdaptiveAvgPool3d
    layers: list[nn.Module] = []
    for inner, outer in ((channels, width // 2), (width // 2, width), (width, 2 * width)):
        layers += [convolution(inner, outer, 3, padding=1), group_norm(outer), nn.ReLU(), pool(2)]
    network = nn.Sequential(*layers, mean(1), nn.Flatten(), nn.Linear(2 * width, outputs))
    return standardise_weights(network) if weight_standardisation else network


def linear(features: int, outputs: int) -> nn.Module:
    """Return logistic regression: one linear layer, as torch initialises it."""
    return nn.Linear(features, outputs)


def mlp(features: int, outputs: int, *, hidden: int = 32, depth: int = 2, dropout: float = 0.0) -> nn.Module:
    """Return `depth` hidden layers of `hidden` values with ReLU, and a linear layer."""
    if hidden < 1 or not 1 <= depth <= MAX_DEPTH or not 0 <= dropout < 1:
        raise ValueError(f"hidden must be at least 1, depth from 1 to {MAX_DEPTH}, dropout from 0 to under 1")
    layers: list[nn.Module] = []
    for inner in (features, *(hidden for _ in range(depth - 1))):
        layers += [nn.Linear(inner, hidden), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*layers, nn.Linear(hidden, outputs))


def _linear(dimensions: int, channels: int, outputs: int, _: Parameters) -> nn.Module:
    return linear(channels, outputs)


def _mlp(dimensions: int, channels: int, outputs: int, parameters: Parameters) -> nn.Module:
    return mlp(channels, outputs, **parameters)  # type: ignore[arg-type]


def _monai(name: str, **fixed: object) -> Builder:
    """Return a builder of a MONAI network that takes spatial_dims, in_channels and out_channels."""

    def build(dimensions: int, channels: int, outputs: int, parameters: Parameters) -> nn.Module:
        from monai.networks import nets

        network: nn.Module = getattr(nets, name)(
            spatial_dims=dimensions, in_channels=channels, out_channels=outputs, **fixed, **parameters
        )
        return network

    return build


def _small_cnn(dimensions: int, channels: int, outputs: int, parameters: Parameters) -> nn.Module:
    return small_cnn(dimensions, channels, outputs, **parameters)  # type: ignore[arg-type]


def _resnet18(dimensions: int, channels: int, outputs: int, parameters: Parameters) -> nn.Module:
    from monai.networks.nets.resnet import resnet18

    settings: dict[str, Any] = {"weight_standardisation": False, **parameters}
    standardise = settings.pop("weight_standardisation")
    network: nn.Module = resnet18(
        spatial_dims=dimensions, n_input_channels=channels, num_classes=outputs, pretrained=False, **settings
    )
    return standardise_weights(network) if standardise else network


def _efficientnet_b0(dimensions: int, channels: int, outputs: int, _: Parameters) -> nn.Module:
    from monai.networks.nets.efficientnet import EfficientNetBN

    network: nn.Module = EfficientNetBN(
        "efficientnet-b0", pretrained=False, spatial_dims=dimensions, in_channels=channels, num_classes=outputs
    )
    return network


def _unet(dimensions: int, channels: int, outputs: int, parameters: Parameters) -> nn.Module:
    """MONAI's UNet of `levels` levels, the first of `width` channels and each further one of twice as many."""
    from monai.networks.nets.unet import UNet

    network: nn.Module = UNet(
        **_levelled(dimensions, channels, outputs, parameters),
        norm=("INSTANCE", {"affine": True}),
        num_res_units=_within(parameters.get("residual_units", 1), "residual_units", MAX_LEVELS, smallest=0),
        dropout=float(parameters.get("dropout", 0.0)),
    )
    return network


def _attention_unet(dimensions: int, channels: int, outputs: int, parameters: Parameters) -> nn.Module:
    """MONAI's AttentionUnet of `levels` levels, the first of `width` channels."""
    from monai.networks.nets.attentionunet import AttentionUnet

    network: nn.Module = AttentionUnet(**_levelled(dimensions, channels, outputs, parameters))
    return network


def _levelled(dimensions: int, channels: int, outputs: int, parameters: Parameters) -> dict[str, Any]:
    """What MONAI's U-shaped networks are told of their levels."""
    widths = _widths(parameters)
    return {
        "spatial_dims": dimensions, "in_channels": channels, "out_channels": outputs, "channels": widths,
        "strides": [2] * (len(widths) - 1),
    }  # fmt: skip


def _basic_unet(dimensions: int, channels: int, outputs: int, parameters: Parameters) -> nn.Module:
    """MONAI's BasicUNet, whose five levels begin with `width` channels."""
    from monai.networks.nets.basic_unet import BasicUNet

    width = _within(parameters.get("width", 16), "width", MAX_WIDTH)
    network: nn.Module = BasicUNet(
        spatial_dims=dimensions,
        in_channels=channels,
        out_channels=outputs,
        features=(width, width, 2 * width, 4 * width, 8 * width, width),
        dropout=float(parameters.get("dropout", 0.0)),
    )
    return network


def _dynunet(dimensions: int, channels: int, outputs: int, parameters: Parameters) -> nn.Module:
    """MONAI's DynUNet (nnU-Net's network) of `levels` levels with kernels of 3, without deep supervision."""
    from monai.networks.nets.dynunet import DynUNet

    filters = _widths(parameters, fewest=3)
    levels = len(filters)
    network: nn.Module = DynUNet(
        spatial_dims=dimensions,
        in_channels=channels,
        out_channels=outputs,
        kernel_size=[3] * levels,
        strides=[1, *[2] * (levels - 1)],
        upsample_kernel_size=[2] * (levels - 1),
        filters=filters,
        res_block=bool(parameters.get("residual", False)),
    )
    return network


def _widths(parameters: Parameters, fewest: int = 2) -> list[int]:
    """The channels of each of `levels` levels, at least `fewest`: `width`, and at each further one twice as many."""
    width = _within(parameters.get("width", 16), "width", MAX_WIDTH)
    levels = _within(parameters.get("levels", 4), "levels", MAX_LEVELS, smallest=fewest)
    return [width * 2**level for level in range(levels)]


def _within(value: object, name: str, largest: int, smallest: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not smallest <= value <= largest:
        raise ValueError(f"{name} must be a whole number from {smallest} to {largest}")
    return value


def _attention_mil(dimensions: int, channels: int, outputs: int, parameters: Parameters) -> nn.Module:
    """Return attention over a bag, its images encoded by the small network or a ResNet-18 without their heads."""
    settings: dict[str, Any] = {"encoder": "small-cnn", "width": 32, "hidden": 64, "weight_standardisation": False}
    settings |= parameters
    if settings["encoder"] == "small-cnn":
        features = 2 * settings["width"]
        whole = small_cnn(
            2, channels, outputs, width=settings["width"], weight_standardisation=settings["weight_standardisation"]
        )
        encoder: nn.Module = nn.Sequential(*list(whole.children())[:-1])
    elif settings["encoder"] == "resnet18" and "width" not in parameters:
        features, standardise = 512, {"weight_standardisation": settings["weight_standardisation"]}
        encoder = _resnet18(2, channels, outputs, {"feed_forward": False, **standardise})
    else:
        raise ValueError('encoder is "small-cnn", with width, or "resnet18", without')
    return AttentionMIL(encoder, features, outputs, hidden=settings["hidden"])


NETWORKS: dict[str, Architecture] = {
    "small-cnn": Architecture(_small_cnn, ("width", "weight_standardisation")),
    "densenet121": Architecture(
        _monai("DenseNet121", pretrained=False), ("init_features", "growth_rate", "bn_size", "dropout_prob", "act")
    ),
    "resnet18": Architecture(
        _resnet18,
        (
            "widen_factor",
            "conv1_t_size",
            "conv1_t_stride",
            "no_max_pool",
            "shortcut_type",
            "act",
            "weight_standardisation",
        ),
    ),
    "efficientnet-b0": Architecture(_efficientnet_b0),
    "unet": Architecture(_unet, ("width", "levels", "residual_units", "dropout"), gives="map"),
    "basic-unet": Architecture(_basic_unet, ("width", "dropout"), gives="map"),
    "segresnet": Architecture(_monai("SegResNet"), ("init_filters", "dropout_prob"), gives="map"),
    "dynunet": Architecture(_dynunet, ("width", "levels", "residual"), gives="map"),
    "attention-unet": Architecture(_attention_unet, ("width", "levels"), gives="map"),
    "swin-unetr": Architecture(
        _monai("SwinUNETR"), ("feature_size", "window_size", "drop_rate", "attn_drop_rate"), gives="map", weighs=True
    ),
    "attention-mil": Architecture(_attention_mil, ("encoder", "width", "hidden", "weight_standardisation"), bag=True),
    "residual-unet": Architecture(added(_unet), ("width", "levels", "residual_units", "dropout"), gives="image"),
    "heatmap-detector": Architecture(heatmap_detector, ("width", "levels", "stride"), gives="boxes"),
    "unrolled-cnn": Architecture(unrolled_cnn, ("cascades", "width", "depth"), gives="image"),
    "linear": Architecture(_linear, table=True),
    "mlp": Architecture(_mlp, ("hidden", "depth", "dropout"), table=True),
}
"""To add a network: one line. A third party's comes by entry point: an `Architecture` in the group wardround.networks.
"""
