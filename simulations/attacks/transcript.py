"""Trains with canaries by the site's own code, and keeps what each kind of attacker would see."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from client.dataset import CaseSet
from client.privacy.clipping import Gradients, trainable
from client.privacy.dpsgd import Parts
from client.privacy.noise import Noise
from client.pull import towards
from client.training import Mechanism, plan_steps, train_round
from common.job import Job
from common.networks import build_network, tensors_of
from common.tasks.registry import build_task
from simulations.attacks.canaries import Canaries, Tapped, TappedTask, tapped, with_canaries

ChangeParts = Callable[[Parts], Parts]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Transcript:
    """What a training released, about each canary.

    `steps` (T, G): along each gradient canary's direction, the noisy sum of each step, in clip norms; `steps_a_round`
    of them in a round. `updates` (G,): along the same direction, what all updates together changed. `alignments` (I,):
    the sum over rounds of the update's projection on the image canary's own gradient. `losses` (I,): by how much its
    loss fell from the first model to the last.
    """

    canaries: Canaries
    steps_a_round: int
    steps: np.ndarray
    updates: np.ndarray
    alignments: np.ndarray
    losses: np.ndarray


def train_with_canaries(
    cases: CaseSet,
    job: Job,
    canaries: Canaries,
    noise_multiplier: float,
    rounds: int,
    device: torch.device,
    *,
    change_parts: ChangeParts | None = None,
    tell: Tell = lambda line: None,
) -> Transcript:
    """Train `rounds` rounds of a private job on `cases` and the canaries, as a site does, and return what was seen.

    The plan (steps, sampling rate) is that of `cases` alone: the audited claim is the site's own. `change_parts` may
    put a fault in.
    """
    network, task = tapped(build_network(job), build_task(job), job, canaries)
    network.to(device)
    everyone = with_canaries(cases, canaries, job)
    targets = task.targets(everyone)
    plan = plan_steps(job, cases)
    units = plan.units + len(canaries)
    judge = _Judge(with_canaries(cases, canaries, job, hidden=False), targets, task, len(cases.labels), canaries)
    steps: list[np.ndarray] = []
    before, start = judge.losses(network, device), network.tap.weight.detach().cpu().numpy().copy()
    alignments = np.zeros(len(canaries.image))
    for number in range(1, rounds + 1):
        old = copy.deepcopy(network)
        train_round(
            network,
            everyone,
            targets,
            task,
            job,
            number,
            mechanism=Mechanism(noise_multiplier, plan.sample_rate),
            pull=towards(job, tensors_of(network)),
            device=device,
            plan=replace(plan, units=units),
            change_parts=lambda parts: _watched(change_parts(parts) if change_parts else parts, network, steps),
        )
        alignments += judge.alignments(old, network, device)
        tell(f"round {number} of {rounds}")
    changed = start - network.tap.weight.detach().cpu().numpy()
    falls = before - judge.losses(network, device)
    return Transcript(canaries, plan.steps_per_round, np.stack(steps), changed[0], alignments, falls)


def _watched(parts: Parts, network: Tapped, into: list[np.ndarray]) -> Parts:
    """Return the parts with a release that keeps a copy of what it releases along the canaries' directions."""
    index = next(at for at, parameter in enumerate(trainable(network)) if parameter is network.tap.weight)

    def watching(start: Gradients, sums: Iterable[Gradients], noise: Noise, deviation: float) -> Gradients:
        noisy = parts.release(start, sums, noise, deviation)
        into.append(noisy[index].detach().flatten().cpu().numpy() / parts.clip_norm)
        return noisy

    return replace(parts, release=watching)


@dataclass(frozen=True)
class _Judge:
    """Scores image canaries, those that are out too: `shown` has them all, from row `first_row` on."""

    shown: CaseSet
    targets: Tensor
    task: TappedTask
    real: int
    canaries: Canaries

    def losses(self, network: nn.Module, device: torch.device) -> np.ndarray:
        """Return the mean loss of each image canary's images: (I,)."""
        network.eval()
        with torch.inference_mode():
            found = [float(self._loss(network, unit, device)) for unit in range(len(self.canaries.image))]
        return np.array(found)

    def alignments(self, old: Tapped, new: Tapped, device: torch.device) -> np.ndarray:
        """Return how far the update went down each image canary's own gradient, of length one: (I,)."""
        old.eval()
        moved = [before - after for before, after in zip(_body(old), _body(new), strict=True)]
        return np.array([self._alignment(old, moved, unit, device) for unit in range(len(self.canaries.image))])

    def _alignment(self, old: Tapped, moved: list[Tensor], unit: int, device: torch.device) -> float:
        gradients = torch.autograd.grad(self._loss(old, unit, device), _body(old), allow_unused=True)
        pairs = [(found, way) for found, way in zip(gradients, moved, strict=True) if found is not None]
        length = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(found) for found, _ in pairs]))
        return float(sum((found * way).sum() for found, way in pairs).detach() / length.clamp(min=1e-12))  # type: ignore[union-attr]

    def _loss(self, network: nn.Module, unit: int, device: torch.device) -> Tensor:
        first = self.real + (len(self.canaries.gradient) + unit) * self.canaries.images_a_unit
        rows = np.arange(first, first + self.canaries.images_a_unit)
        images = torch.from_numpy(np.array(self.shown.images[rows])).to(device)
        return self.task.loss(network(images), self.targets[torch.from_numpy(rows)].to(device)).mean()


def _body(network: Tapped) -> list[nn.Parameter]:
    return trainable(network.network)
