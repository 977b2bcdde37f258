"""Networks by name: MONAI's, and one small enough for a laptop; each made fit for differential privacy.

Every network has GroupNorm where its author put BatchNorm, private or not: a batch's statistics mix patients, which
DP-SGD can't bound, and averaging them over hospitals with different scanners hurts. In-place activations are switched
off: hooks that see each layer's input would see it changed.

References: Wu and He, "Group Normalization", ECCV 2018; Hsieh et al., "The Non-IID Data Quagmire of Decentralized
Machine Learning", ICML 2020 (BatchNorm in federations).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from common.errors import JobError
from common.job import Job
from common.tasks.registry import build_task
from common.update import Tensors, check_tensors

MAX_GROUPS = 8
Parameters = Mapping[str, int | float | str | bool]
Builder = Callable[[int, int, int, Parameters], nn.Module]
"""Builds a network from: spatial dimensions (2 or 3), input channels, outputs, the job's own parameters."""


def small_cnn(dimensions: int, channels: int, outputs: int, *, width: int = 32) -> nn.Module:
    """Return three blocks of convolution, GroupNorm, ReLU and pooling, and a linear layer: about 25,000 parameters."""
    convolution = nn.Conv2d if dimensions == 2 else nn.Conv3d
    pool = nn.MaxPool2d if dimensions == 2 else nn.MaxPool3d
    mean = nn.AdaptiveAvgPool2d if dimensions == 2 else nn.AdaptiveAvgPool3d
    layers: list[nn.Module] = []
    for inner, outer in ((channels, width // 2), (width // 2, width), (width, 2 * width)):
        layers += [convolution(inner, outer, 3, padding=1), _group_norm(outer), nn.ReLU(), pool(2)]
    return nn.Sequential(*layers, mean(1), nn.Flatten(), nn.Linear(2 * width, outputs))


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

    settings: dict[str, Any] = {
        "spatial_dims": dimensions,
        "n_input_channels": channels,
        "num_classes": outputs,
        **parameters,
    }
    network: nn.Module = resnet18(**settings)
    return network


def _efficientnet_b0(dimensions: int, channels: int, outputs: int, parameters: Parameters) -> nn.Module:
    from monai.networks.nets.efficientnet import EfficientNetBN

    settings: dict[str, Any] = {"spatial_dims": dimensions, "in_channels": channels, "num_classes": outputs}
    network: nn.Module = EfficientNetBN("efficientnet-b0", pretrained=False, **(settings | dict(parameters)))
    return network


NETWORKS: dict[str, Builder] = {
    "small-cnn": _small_cnn,
    "densenet121": _monai("DenseNet121"),
    "resnet18": _resnet18,
    "efficientnet-b0": _efficientnet_b0,
}


def build_network(job: Job, outputs: int) -> nn.Module:
    """Return the job's network with the weights of the job's seed: the same bits on every machine of one torch version.

    Raises
    ------
    JobError
        There is no network of that name (the message has the nearest), or it does not take a parameter of the job's.
    """
    name = job.network.name
    if name not in NETWORKS:
        near = difflib.get_close_matches(name, NETWORKS, n=1, cutoff=0.4)
        hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(NETWORKS)}"
        raise JobError(f'"network.name": unknown network "{name}": {hint}')
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        try:
            network = NETWORKS[name](len(job.data.size), job.data.channels, outputs, job.network.parameters)
        except (TypeError, ValueError) as error:
            raise JobError(f'"network.parameters": {name} can\'t be built with them: {error}') from error
        return make_private_ready(network)


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
    like = {name: _described(tensor) for name, tensor in network.state_dict().items()}
    check_tensors(tensors, like, "the model")
    network.load_state_dict({name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()})


def initial_model(job: Job) -> Tensors:
    """Return the parameters with which every run of the job starts. Raises JobError as `build_network` does."""
    return tensors_of(build_network(job, build_task(job.task).outputs))


def _group_norm(channels: int) -> nn.GroupNorm:
    """As many groups as divide the channels, at most eight: with the usual 32, small nets have one channel a group."""
    return nn.GroupNorm(math.gcd(channels, MAX_GROUPS), channels)


def _described(tensor: torch.Tensor) -> np.ndarray:
    """An array of the tensor's shape and dtype that takes no memory."""
    dtype = torch.empty(0, dtype=tensor.dtype).numpy().dtype
    return np.broadcast_to(np.zeros((), dtype=dtype), tuple(tensor.shape))
