"""Local training: SGD or AdamW, a strategy's pull, and DP-SGD.

With privacy off, the same job, data, round and incoming model give the same bits on one machine. With privacy on,
batches and noise come from the operating system's randomness and nothing is repeatable, as it must be.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from client.augmentation import augmented
from client.dataset import CaseSet
from client.privacy.choice import Workload
from client.privacy.clipping import Engine, trainable
from client.privacy.dpsgd import Mechanism as Mechanism
from client.privacy.dpsgd import Parts, private_gradient, usual_parts
from client.privacy.engines import ENGINES, named_engine
from client.privacy.remembered import remembered_engine
from client.privacy.sampling import units_of
from client.pull import BoundPull, Pull
from client.sgd import SGD
from client.warping import warped
from common.errors import JobError, UsageError
from common.job import Job
from common.privacy import sampling_rate
from common.selection import planned_steps
from common.tasks.parameters import kind_of
from common.tasks.task import Task

OF_PHASE = 998_244_353
"""What sets the seeds of a round's later phases apart from those of other rounds."""
NO_PULL = Pull()


@dataclass(frozen=True)
class Plan:
    """What a round at this site consists of. `sample_rate` is a unit's chance to be in a step (with DP)."""

    steps_per_round: int
    sample_rate: float
    units: int


@dataclass(frozen=True)
class LocalResult:
    """What a round of local training did: steps taken, mean loss over them, and wall-clock seconds."""

    steps: int
    loss: float
    seconds: float


def pick_device(wanted: str) -> torch.device:
    """Return the device: "auto" is CUDA where there is one. Raises UsageError for one that is not there."""
    if wanted not in ("auto", "cpu", "cuda"):
        raise UsageError(f'"{wanted}" is no device: use auto, cpu or cuda')
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("this machine has no CUDA device that torch can use: use --device cpu")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def plan_steps(job: Job, cases: CaseSet, released_units: int | None = None) -> Plan:
    """Return the plan of a round: `local_epochs` passes over the images, or, with DP, over the units as expected.

    `released_units` is the count of units that has left, noised or declared: with it nothing in the plan depends on the
    data itself. Without it the true number is taken, which is for what stays in the hospital.

    Raises JobError for an engine that there is not.
    """
    if not job.private:
        images = len(cases.labels)
        return Plan(planned_steps(job, images), min(1.0, job.training.batch_size / images), images)
    if job.privacy.engine != "auto":
        named_engine(job.privacy.engine, _images_a_unit(job, cases))  # here, before any privacy is spent
    count = released_units or len(units_of(cases.patients, job.privacy.unit))
    rate = sampling_rate(job.training.batch_size, count)
    return Plan(planned_steps(job, count), rate, count)


def train_round(
    network: nn.Module,
    cases: CaseSet,
    targets: Tensor,
    task: Task,
    job: Job,
    round_number: int,
    *,
    mechanism: Mechanism | None,
    device: torch.device,
    pull: Pull = NO_PULL,
    plan: Plan | None = None,
    cache: Path | None = None,
    change_parts: Callable[[Parts], Parts] | None = None,
    phase: int = 0,
) -> LocalResult:
    """Train `network` in place for one round, or one `phase` of it (counted from 0), from the weights it has.

    `pull` is what the strategy adds to each gradient. The optimizer starts fresh each time: its state would belong to
    another model. With a `mechanism` this is DP-SGD, and the pull enters after clipping and noise: it depends on no
    record. `cache` is the folder where the choice of an engine is kept. `change_parts` is for audits: it may put a
    broken part in place of a right one, or one that watches.
    """
    started = time.perf_counter()
    network.train()
    optimizer = _optimizer(network, job, device)
    plan = plan or plan_steps(job, cases)
    trainer = _Trainer(network, cases, targets, task, job, optimizer, pull.bind(network, device), device)
    if mechanism is None:
        seed = (job.seed * 1_000_003 + round_number + phase * OF_PHASE) % 2**63
        with _repeatable(seed, device):
            losses = [trainer.step(batch) for batch in _batches(len(cases.labels), plan.steps_per_round, job, seed)]
    else:
        with _only_parameters_change(network):
            parts = trainer.parts(mechanism, plan, cache)
            losses = trainer.private_steps(plan.steps_per_round, change_parts(parts) if change_parts else parts)
    trainer.average.put()
    return LocalResult(len(losses), float(np.mean(losses)), time.perf_counter() - started)


class _Trainer:
    """One round's training: everything that a step needs, bound together."""

    def __init__(
        self,
        network: nn.Module,
        cases: CaseSet,
        targets: Tensor,
        task: Task,
        job: Job,
        optimizer: torch.optim.Optimizer | SGD,
        pull: BoundPull,
        device: torch.device,
    ) -> None:
        self.network, self.cases, self.targets, self.task, self.job = network, cases, targets, task, job
        self.optimizer, self.pull, self.device = optimizer, pull, device
        self.truth = kind_of(job.task.kind).truth
        self.mixed = job.training.mixed_precision and device.type == "cuda"
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.mixed)
        settings = job.training
        self.average = _Average(network, settings.averaging)
        self.kept = 1.0 - settings.learning_rate * settings.weight_decay if settings.optimizer == "sgd" else 1.0

    def step(self, batch: tuple[np.ndarray, torch.Generator]) -> float:
        """Take an ordinary step on a batch of rows; return its mean loss."""
        rows, random = batch
        images, targets = self._load(rows, random)
        self.optimizer.zero_grad(set_to_none=True)
        with self._precision():
            loss = self.task.loss(self.network(images).float(), targets).mean()
        if isinstance(self.optimizer, SGD) or not self.mixed:
            loss.backward()  # type: ignore[no-untyped-call]
            self._before_step()
            self.optimizer.step()
        else:
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            self.scaler.unscale_(self.optimizer)
            self._before_step()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.average.add()
        return float(loss.detach())

    def parts(self, mechanism: Mechanism, plan: Plan, cache: Path | None) -> Parts:
        """Return what this job's steps of DP-SGD are made of."""
        privacy = self.job.privacy
        units = units_of(self.cases.patients, privacy.unit)
        return usual_parts(privacy, units, mechanism, plan.units, self._engine(cache), self.device)

    def private_steps(self, count: int, parts: Parts) -> list[float]:
        """Take `count` steps of DP-SGD; return their mean losses, which are private and must not leave as they are."""
        random = torch.Generator().manual_seed(int.from_bytes(os.urandom(8), "big") >> 1)
        losses = []
        for _ in range(count):
            gradients, loss = private_gradient(
                self.network, self.task.loss, lambda rows: self._load(rows, random), parts
            )
            for parameter, gradient in zip(trainable(self.network), gradients, strict=True):
                parameter.grad = gradient
            self._before_step()
            self.optimizer.step()
            self.average.add()
            losses.append(loss)
        return losses

    def _engine(self, cache: Path | None) -> Engine:
        privacy, usual = self.job.privacy, _images_a_unit(self.job, self.cases)
        if privacy.engine != "auto":
            return ENGINES[privacy.engine]
        work = Workload(self.task.input_shape(self.cases.images.shape[1:]), usual, privacy.physical_batch)
        return ENGINES[remembered_engine(self.network, self.task, work, self.job, cache)]

    def _before_step(self) -> None:
        """What depends on no record: the strategy's pull, and decoupled weight decay (AdamW brings its own)."""
        self.pull.add()
        if self.kept != 1.0:
            with torch.no_grad():
                for parameter in trainable(self.network):
                    parameter.mul_(self.kept)

    def _load(self, rows: np.ndarray, random: torch.Generator) -> tuple[Tensor, Tensor]:
        images = torch.from_numpy(np.asarray(self.cases.images[rows]))  # indexing by rows has copied them
        targets = self.targets[torch.from_numpy(rows)]
        if self.job.data.augment != "none":
            views = warped if self.job.data.augment == "strong" else augmented
            images, targets = views(images, targets, self.truth, random)
        inputs, targets = self.task.inputs(images, targets, random)
        return inputs.to(self.device), targets.to(self.device)

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, dtype=torch.float16) if self.mixed else nullcontext()


class _Average:
    """The running mean of the weights over a round's steps: of what DP-SGD releases anyway, so it costs no privacy.

    References: Polyak and Juditsky, 1992; De et al., 2022 (with DP-SGD, where it takes much of the noise out again).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay, self._steps = decay, 0
        self._weights = trainable(network) if decay > 0 else []
        self._mean = [weight.detach().clone() for weight in self._weights]

    @torch.no_grad()
    def add(self) -> None:
        """Take the weights after a step in. At first the mean is short, so that it forgets where the round began."""
        self._steps += 1
        decay = min(self._decay, self._steps / (self._steps + 9))
        for mean, weight in zip(self._mean, self._weights, strict=True):
            mean.lerp_(weight, 1 - decay)

    @torch.no_grad()
    def put(self) -> None:
        """Put the mean in place of the weights."""
        for mean, weight in zip(self._mean, self._weights, strict=True):
            weight.copy_(mean)


def _images_a_unit(job: Job, cases: CaseSet) -> int:
    """How many images, each view counted, a usual unit has in a step; more than 1 if any unit has."""
    images = 1 if job.privacy.unit == "image" else math.ceil(len(cases.labels) / cases.patient_count)
    return min(images, job.privacy.max_images_per_patient) * job.privacy.augmentations


def _optimizer(network: nn.Module, job: Job, device: torch.device) -> torch.optim.Optimizer | SGD:
    settings, parameters = job.training, trainable(network)
    if settings.optimizer == "sgd" and device.type == "cpu":
        return SGD(parameters, settings.learning_rate, settings.momentum)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    return torch.optim.SGD(parameters, lr=settings.learning_rate, momentum=settings.momentum)


@contextmanager
def _repeatable(seed: int, device: torch.device) -> Iterator[None]:
    """Seed what draws from torch's own generators (dropout, drop-connect), and let cuDNN choose no other algorithm.

    Each generator by itself: `torch.manual_seed` also notes down where it was called from, for devices not yet in use.
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    before = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)


@contextmanager
def only_trained(network: nn.Module, names: frozenset[str] | None) -> Iterator[None]:
    """Let training move only the parameters of these names; None lets it move all that it usually does."""
    if names is None:
        yield
        return
    frozen = [
        parameter for name, parameter in network.named_parameters() if name not in names and parameter.requires_grad
    ]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


@contextmanager
def _only_parameters_change(network: nn.Module) -> Iterator[None]:
    """Refuse a network that keeps statistics of its images beside its parameters: nothing clips these or adds noise."""
    before = {name: buffer.detach().clone() for name, buffer in network.named_buffers()}
    yield
    for name, buffer in network.named_buffers():
        if not torch.equal(buffer, before[name]):
            raise JobError(f'"network.name": the network keeps statistics of images in "{name}": no privacy for these')


def _batches(images: int, steps: int, job: Job, seed: int) -> Iterator[tuple[np.ndarray, torch.Generator]]:
    """Yield `steps` shuffled batches, pass after pass, with the generator of their augmentation; both from `seed`."""
    random = torch.Generator().manual_seed(seed)
    taken = 0
    while taken < steps:
        order = torch.randperm(images, generator=random).numpy()
        for start in range(0, images, job.training.batch_size):
            if taken == steps:
                return
            taken += 1
            yield np.sort(order[start : start + job.training.batch_size]), random
