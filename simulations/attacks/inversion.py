"""Gradient inversion: rebuilds a patient's image from the update that was trained on it, if nothing protects it.

The attacker knows the model, the label and the learning rate, and gets the update of one step on one image: as good a
position as there is. The network is small, smooth and without pooling, which is the easiest to invert; deeper ones with
pooling resist more, but that is luck and no guarantee.

References: Geiping et al., "Inverting Gradients", NeurIPS 2020 (cosine distance and total variation); Wang et al.,
"Image Quality Assessment", IEEE Transactions on Image Processing 2004 (SSIM).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn import functional

from client.dataset import CaseSet
from client.pull import towards
from client.training import Mechanism, Plan, plan_steps, train_round
from common.job import Job
from common.networks import tensors_of
from common.tasks.registry import build_task
from simulations.attacks.claim import claim_of

STEPS, STEP_SIZE, SMOOTHNESS = 300, 0.1, 1e-3
LARGEST_SIDE = 32


@dataclass(frozen=True)
class Likeness:
    """How like the true image a picture is: peak signal-to-noise ratio in dB; structural similarity, 1 if the same."""

    psnr: float
    ssim: float


@dataclass(frozen=True)
class Inversion:
    """The image, what was rebuilt of it without privacy and with the job's, and a flat grey one, for comparison.

    Images (C, *size) in [0, 1]. `private` is None for a job without privacy.
    """

    image: np.ndarray
    open: np.ndarray
    private: np.ndarray | None

    def likeness(self, picture: np.ndarray) -> Likeness:
        """Return how like the image `picture` is."""
        return Likeness(psnr(picture, self.image), ssim(picture, self.image))

    @property
    def flat(self) -> np.ndarray:
        """The picture that knows only how bright the image is."""
        return np.full_like(self.image, self.image.mean())


def invert_updates(cases: CaseSet, job: Job, *, row: int = 0, seed: int = 0) -> Inversion:
    """Train one step on the image of `row` alone, without privacy and as the job has it, and invert both updates.

    The noise is that of a site with `cases`. Raises RefusedError for a budget that no noise keeps.
    """
    alone = CaseSet(_small(cases.images[row])[None], (cases.labels[row],), np.zeros(1, dtype=np.int64))
    network = invertible_network(alone.images.shape[1:], build_task(job).outputs, seed)
    opened = _inverted(network, _update(network, alone, _one_step(job, private=False), None), alone, job, seed)
    if not job.private:
        return Inversion(alone.images[0], opened, None)
    _, noise = claim_of(job, plan_steps(job, cases), job.aggregation.rounds)
    update = _update(network, alone, _one_step(job, private=True), Mechanism(noise, 1.0))
    return Inversion(alone.images[0], opened, _inverted(network, update, alone, job, seed))


def invertible_network(shape: tuple[int, ...], outputs: int, seed: int) -> nn.Module:
    """Return two convolutions with smooth activations and a linear layer, for images of `shape` (C, *size)."""
    convolution = nn.Conv2d if len(shape) == 3 else nn.Conv3d
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = nn.Sequential(
            convolution(shape[0], 12, 5, stride=2, padding=2), nn.ELU(),
            convolution(12, 12, 5, stride=2, padding=2), nn.ELU(), nn.Flatten(),
        )  # fmt: skip
        features = body(torch.zeros(1, *shape)).shape[1]
        return nn.Sequential(*body, nn.Linear(features, outputs))


def psnr(picture: np.ndarray, image: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of `picture` to `image`, both in [0, 1], in dB."""
    error = float(np.mean((picture.astype(np.float64) - image) ** 2))
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(picture: np.ndarray, image: np.ndarray) -> float:
    """Return the mean structural similarity of `picture` and `image`, (C, *size) in [0, 1]: Gaussian window of 1.5."""
    a, b = picture.astype(np.float64), image.astype(np.float64)
    window = (0.0, *(1.5,) * (a.ndim - 1))
    mean_a, mean_b = gaussian_filter(a, window), gaussian_filter(b, window)
    spread_a, spread_b = gaussian_filter(a * a, window) - mean_a**2, gaussian_filter(b * b, window) - mean_b**2
    both = gaussian_filter(a * b, window) - mean_a * mean_b
    light, contrast = 0.01**2, 0.03**2
    above = (2 * mean_a * mean_b + light) * (2 * both + contrast)
    return float(np.mean(above / ((mean_a**2 + mean_b**2 + light) * (spread_a + spread_b + contrast))))


def _small(image: np.ndarray) -> np.ndarray:
    """Take every n-th pixel until no side is longer than `LARGEST_SIDE`: the attack's cost grows with the image."""
    every = max(1, math.ceil(max(image.shape[1:]) / LARGEST_SIDE))
    return np.ascontiguousarray(np.asarray(image)[(slice(None), *(slice(None, None, every),) * (image.ndim - 1))])


def _one_step(job: Job, *, private: bool) -> Job:
    training = job.training.model_copy(
        update={"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "batch_size": 1, "local_epochs": 1.0}
    )
    privacy = job.privacy.model_copy(
        update={"mechanism": job.privacy.mechanism if private else "none", "augmentations": 1, "engine": "plain"}
    )
    plainly = {"data": job.data.model_copy(update={"augment": "none"}), "training": training, "privacy": privacy}
    return job.model_copy(update={**plainly, "aggregation": job.aggregation.model_copy(update={"proximal_mu": 0.0})})


def _update(network: nn.Module, alone: CaseSet, job: Job, mechanism: Mechanism | None) -> list[Tensor]:
    """What one step changes, over the learning rate; the network is as before afterwards."""
    before = [parameter.detach().clone() for parameter in network.parameters()]
    task = build_task(job)
    train_round(
        network, alone, task.targets(alone), task, job, 1,
        mechanism=mechanism, pull=towards(job, tensors_of(network)), device=torch.device("cpu"), plan=Plan(1, 1.0, 1),
    )  # fmt: skip
    with torch.no_grad():
        changed = [
            (old - new) / job.training.learning_rate for old, new in zip(before, network.parameters(), strict=True)
        ]
        for parameter, old in zip(network.parameters(), before, strict=True):
            parameter.copy_(old)
    return changed


def _inverted(network: nn.Module, update: list[Tensor], alone: CaseSet, job: Job, seed: int) -> np.ndarray:
    """The picture whose gradient points where the update does, and which is smooth: (C, *size) in [0, 1]."""
    task = build_task(job)
    target, parameters = task.targets(alone), list(network.parameters())
    random = torch.Generator().manual_seed(seed)
    picture = torch.rand(alone.images.shape, generator=random).requires_grad_(True)
    optimizer = torch.optim.Adam([picture], lr=STEP_SIZE)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [STEPS * 4 // 10, STEPS * 7 // 10, STEPS * 9 // 10])
    for _ in range(STEPS):
        found = torch.autograd.grad(task.loss(network(picture), target).mean(), parameters, create_graph=True)
        distance = 1 - _cosine(list(found), update) + SMOOTHNESS * _variation(picture)
        picture.grad = torch.sign(torch.autograd.grad(distance, picture)[0])
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            picture.clamp_(0, 1)
    return np.asarray(picture.detach().numpy()[0])


def _cosine(ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
    a, b = (torch.cat([tensor.flatten() for tensor in tensors]) for tensors in (ours, theirs))
    return functional.cosine_similarity(a, b, dim=0)


def _variation(picture: Tensor) -> Tensor:
    along = [picture.diff(dim=axis).abs().mean() for axis in range(2, picture.dim())]
    return torch.stack(along).sum()
