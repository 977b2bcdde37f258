"""Networks by name: MONAI's, and one small enough for a laptop; each made fit for differential privacy.

Every network has GroupNorm where its author put BatchNorm, private or not: a batch's statistics mix patients, which
DP-SGD can't bound, and averaging them over hospitals with different scanners hurts. In-place activations are switched
off: hooks that see each layer's input would see it changed.

A job comes from outside, so it may set only the parameters that a network lists here: MONAI's own would also let it
fetch weights from the internet, or give the network another shape than the task's.

References: Wu and He, "Group Normalization", ECCV 2018; Hsieh et al., "The Non-IID Data Quagmire of Decentralized
Machine Learning", ICML 2020 (BatchNorm in federations).
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from common.errors import JobError
from common.extensions import brought, load
from common.job import Job
from common.maps import added, heatmap_detector, unrolled_cnn
from common.mil import AttentionMIL
from common.standardisation import Standardised, standardise_weights
from common.tasks.parameters import Truth, kind_of
from common.tasks.registry import build_task
from common.tasks.task import Task
from common.update import Tensors, check_tensors

ENTRY_POINTS = "wardround.networks"
MAX_GROUPS = 8
MAX_PARAMETERS = 10**9
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


def small_cnn(
    dimensions: int, channels: int, outputs: int, *, width: int = 32, weight_standardisation: bool = False
) -> nn.Module:
    """Return three blocks of convolution, GroupNorm, ReLU and pooling, and a linear layer: about 25,000 parameters."""
    convolution = nn.Conv2d if dimensions == 2 else nn.Conv3d
    pool = nn.MaxPool2d if dimensions == 2 else nn.MaxPool3d
    mean = nn.AdaptiveAvgPool2d if dimensions == 2 else nn.AdaptiveAvgPool3d
    layers: list[nn.Module] = []
    for inner, outer in ((channels, width // 2), (width // 2, width), (width, 2 * width)):
        layers += [convolution(inner, outer, 3, padding=1), _group_norm(outer), nn.ReLU(), pool(2)]
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

    width = _within(parameters.get("width", 16), "width", MAX_WIDTH)
    levels = _within(parameters.get("levels", 4), "levels", MAX_LEVELS, smallest=2)
    network: nn.Module = UNet(
        spatial_dims=dimensions,
        in_channels=channels,
        out_channels=outputs,
        channels=[width * 2**level for level in range(levels)],
        strides=[2] * (levels - 1),
        norm=("INSTANCE", {"affine": True}),
        num_res_units=_within(parameters.get("residual_units", 1), "residual_units", MAX_LEVELS, smallest=0),
        dropout=float(parameters.get("dropout", 0.0)),
    )
    return network


def _attention_unet(dimensions: int, channels: int, outputs: int, parameters: Parameters) -> nn.Module:
    """MONAI's AttentionUnet of `levels` levels, the first of `width` channels."""
    from monai.networks.nets.attentionunet import AttentionUnet

    width = _within(parameters.get("width", 16), "width", MAX_WIDTH)
    levels = _within(parameters.get("levels", 4), "levels", MAX_LEVELS, smallest=2)
    network: nn.Module = AttentionUnet(
        spatial_dims=dimensions,
        in_channels=channels,
        out_channels=outputs,
        channels=[width * 2**level for level in range(levels)],
        strides=[2] * (levels - 1),
    )
    return network


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

    width = _within(parameters.get("width", 16), "width", MAX_WIDTH)
    levels = _within(parameters.get("levels", 4), "levels", MAX_LEVELS, smallest=3)
    network: nn.Module = DynUNet(
        spatial_dims=dimensions,
        in_channels=channels,
        out_channels=outputs,
        kernel_size=[3] * levels,
        strides=[1, *[2] * (levels - 1)],
        upsample_kernel_size=[2] * (levels - 1),
        filters=[width * 2**level for level in range(levels)],
        res_block=bool(parameters.get("residual", False)),
    )
    return network


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
"""To add a network: one line. A third party's comes by entry point: an `Architecture` in the group ENTRY_POINTS."""


def build_network(job: Job) -> nn.Module:
    """Return the job's network with the weights of the job's seed: the same bits on every machine of one torch version.

    Raises
    ------
    JobError
        There is no network of that name (the message has the nearest), it does not take a parameter of the job's, or
        it can't work on images of the job's size.
    """
    architecture, task = check_network(job), build_task(job)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        return _assembled(job, architecture, task)


def check_network(job: Job) -> Architecture:
    """Return what the job's network is made by. Raises JobError as `build_network` does, without making its weights."""
    architecture = _architecture(job.network.name)
    if architecture.table != job.data.table:
        fit = ", ".join(name for name, one in NETWORKS.items() if one.table == job.data.table)
        raise JobError(
            f'"network.name": {job.network.name} is for {"tables" if architecture.table else "images"}, '
            f"and the job has {'a table (data.features)' if job.data.table else 'images'}: choose one of {fit}"
        )
    if architecture.bag != job.data.bagged:
        fit = ", ".join(name for name, one in NETWORKS.items() if one.bag == job.data.bagged and not one.table)
        raise JobError(
            f'"network.name": {job.network.name} is for {"bags" if architecture.bag else "single images"}, and '
            f'data.bag is "{job.data.bag}": choose one of {fit}'
        )
    _check_parameters(job, architecture)
    _check_shape(job, architecture, build_task(job))
    return architecture


def case_shape(job: Job) -> tuple[int, ...]:
    """Return the shape of a case as it is kept: (C, *size), or (F,) of a table's row."""
    return (len(job.data.features),) if job.data.table else (job.data.channels, *job.data.size)


def _assembled(job: Job, architecture: Architecture, task: Task) -> nn.Module:
    if job.data.table:
        return make_private_ready(architecture.build(1, len(job.data.features), task.outputs, job.network.parameters))
    channels, *seen = task.input_shape(case_shape(job))
    network = architecture.build(len(seen), channels, task.outputs, job.network.parameters)
    made = make_private_ready(network)
    return Standardised(made) if job.data.scale == "standard" else made


def _architecture(name: str) -> Architecture:
    if name in NETWORKS:
        return NETWORKS[name]
    outside = brought(ENTRY_POINTS)
    if name in outside:
        architecture: Architecture = load(outside[name])
        return architecture
    raise JobError(f'"network.name": unknown network "{name}": {_nearest(name, (*NETWORKS, *outside))}')


def _check_parameters(job: Job, architecture: Architecture) -> None:
    if unknown := next((name for name in job.network.parameters if name not in architecture.parameters), None):
        hint = _nearest(unknown, architecture.parameters)
        raise JobError(f'"network.parameters": {job.network.name} takes no parameter "{unknown}": {hint}')


def _check_shape(job: Job, architecture: Architecture, task: Task) -> None:
    """Try the network on an input of the job's size without its numbers: that takes neither memory nor long."""
    name, seen = job.network.name, task.input_shape(case_shape(job))
    try:
        with torch.device("cpu" if architecture.weighs else "meta"):
            network = _assembled(job, architecture, task).to("meta")
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise JobError(f'"network.parameters": {name} can\'t be built with them: {_first_line(error)}') from error
    if sum(parameter.numel() for parameter in network.parameters()) > MAX_PARAMETERS:
        raise JobError(f'"network.parameters": they make {name} larger than {MAX_PARAMETERS:,} weights')
    key, extent = ("data.patch" if job.data.patch else "data.size"), list(seen if job.data.table else seen[1:])
    try:
        found = tuple(network(torch.empty(2, *seen, device="meta")).shape)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise JobError(f'"{key}": {name} can\'t work on images of {extent}: {_first_line(error)}') from error
    wanted = (2, *task.output_shape(seen))
    if found == wanted:
        return
    if len(found) != len(wanted):
        gives = FOR[kind_of(job.task.kind).truth]
        fit = ", ".join(name for name, one in NETWORKS.items() if one.gives == gives and not one.table and not one.bag)
        raise JobError(f'"network.name": {name} is not for {job.task.kind}: choose one of {fit}')
    raise JobError(
        f'"network.parameters": {name} gives {list(found[1:])} for an input of {list(seen)}, and {job.task.kind} needs '
        f"{list(wanted[1:])}: change them, or {key}"
    )


def _nearest(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f'did you mean "{near[0]}"?' if near else f"there are {', '.join(known) or 'none'}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def make_private_ready(network: nn.Module) -> nn.Module:
    """Put GroupNorm in place of every BatchNorm and switch in-place activations off, in `network` itself."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, _group_norm(child.num_features))
        if getattr(parent, "inplace", False) is True:
            parent.inplace = False  # type: ignore[assignment]
    return network


def tensors_of(network: nn.Module) -> Tensors:
    """Return copies of the network's parameters and buffers, on the CPU, by name."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in network.state_dict().items()}


def load_tensors(network: nn.Module, tensors: Mapping[str, np.ndarray]) -> None:
    """Put `tensors` into the network. Raises UpdateError, changing nothing, when they are of another architecture."""
    state = network.state_dict()
    check_tensors(tensors, {name: _described(tensor) for name, tensor in state.items()}, "the model")
    for name, tensor in state.items():  # they share their memory with the network's
        array = tensors[name]
        tensor.copy_(torch.from_numpy(array if array.flags.writeable else array.copy()))


def initial_model(job: Job) -> Tensors:
    """Return the parameters with which every run of the job starts. Raises JobError as `build_network` does."""
    return tensors_of(build_network(job))


def local_names(job: Job) -> frozenset[str]:
    """Return the names of the tensors that stay at each site: those that the job lists, or the strategy's default.

    FedBN keeps normalisation layers, FedRep the last layer. Nothing for most jobs, and then no network is built.

    Raises
    ------
    JobError
        A pattern fits no tensor, or all tensors would stay and nothing would be learnt together.
    """
    if not job.aggregation.keeps_layers:
        return frozenset()
    patterns, default = job.aggregation.local_layers, job.aggregation.known_parameters.keeps
    network = build_network(job)
    names = list(network.state_dict())
    if unmatched := next((pattern for pattern in patterns if not fnmatch.filter(names, pattern)), None):
        raise JobError(
            f'"aggregation.local_layers": no tensor of {job.network.name} is called "{unmatched}": there are '
            f"{', '.join(names[:4])}, ..."
        )
    found = {name for pattern in patterns for name in fnmatch.filter(names, pattern)}
    if not patterns:
        found = _normalisation(network) if default == "normalisation" else _head(network)
    if not found or len(found) == len(names):
        raise JobError(
            f'"aggregation.local_layers": {"all" if found else "none"} of {job.network.name}\'s tensors would stay at '
            "the sites: name others"
        )
    return frozenset(found)


NORMALISATION = (nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm, nn.modules.batchnorm._BatchNorm)


def _normalisation(network: nn.Module) -> set[str]:
    layers = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, NORMALISATION)]
    return {f"{name}.{part}" for name, layer in layers for part in layer.state_dict()}


def _head(network: nn.Module) -> set[str]:
    """The tensors of the last layer that has any of its own."""
    layers = [(name, list(layer.state_dict())) for name, layer in network.named_modules() if not list(layer.children())]
    name, parts = [(name, parts) for name, parts in layers if parts][-1]
    return {f"{name}.{part}" for part in parts}


def _group_norm(channels: int) -> nn.GroupNorm:
    """As many groups as divide the channels, at most eight: with the usual 32, small nets have one channel a group.

    Where only one divides them (an odd number of channels), all channels are one group: layer normalisation.
    """
    return nn.GroupNorm(math.gcd(channels, MAX_GROUPS), channels)


def _described(tensor: torch.Tensor) -> np.ndarray:
    """An array of the tensor's shape and dtype that takes no memory of its own."""
    if tensor.device.type == "cpu":
        return np.asarray(tensor.detach().numpy())
    dtype = torch.empty(0, dtype=tensor.dtype).numpy().dtype
    return np.broadcast_to(np.zeros((), dtype=dtype), tuple(tensor.shape))
