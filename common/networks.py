"""A job's network: built from the table, made fit for differential privacy, checked, filled and read.

Every network has GroupNorm where its author put BatchNorm, private or not: a batch's statistics mix patients, which
DP-SGD can't bound, and averaging them over hospitals with different scanners hurts. In-place activations are switched
off: hooks that see each layer's input would see it changed.

A job comes from outside, so it may set only the parameters that a network lists (`common/architectures.py`): MONAI's
own would also let it fetch weights from the internet, or give the network another shape than the task's.

References: Wu and He, "Group Normalization", ECCV 2018; Hsieh et al., "The Non-IID Data Quagmire of Decentralized
Machine Learning", ICML 2020 (BatchNorm in federations).
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import nn

from common.architectures import FOR, NETWORKS, Architecture, group_norm
from common.errors import JobError
from common.extensions import brought, load
from common.job import Job
from common.standardisation import Standardised
from common.tasks.parameters import kind_of
from common.tasks.registry import build_task
from common.tasks.task import Task
from common.update import Tensors, check_tensors

ENTRY_POINTS = "wardround.networks"
MAX_PARAMETERS = 10**9


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
                setattr(parent, name, group_norm(child.num_features))
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


def _described(tensor: torch.Tensor) -> np.ndarray:
    """An array of the tensor's shape and dtype that takes no memory of its own."""
    if tensor.device.type == "cpu":
        return np.asarray(tensor.detach().numpy())
    dtype = torch.empty(0, dtype=tensor.dtype).numpy().dtype
    return np.broadcast_to(np.zeros((), dtype=dtype), tuple(tensor.shape))
