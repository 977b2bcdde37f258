"""A model on a validation or test split: its scores, and the metrics in the form in which they may leave.

Exact metrics leave for a split that the hospital declares releasable. Otherwise they are estimated from a tally of the
scores with Gaussian noise, paid for in the ledger. Splits are disjoint by patient, so a patient's loss is that of one
split only: each split has the whole of the run's epsilon (parallel composition; McSherry, SIGMOD 2009, theorem 4).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from client.dataset import CaseSet
from client.privacy.noise import SecureNoise
from common.release import Basis, Evaluation, Numbers, evaluation_of
from common.tasks.task import Tally, Task

BATCH, PIXELS = 256, 2**22
"""Most images, and most pixels or voxels, that are evaluated at once: memory stays in bounds in 3D too."""


@dataclass(frozen=True)
class Split:
    """One split of a collection, decoded, with its targets as the task wants them."""

    cases: CaseSet
    targets: Tensor


@dataclass(frozen=True)
class Predictions:
    """What a network says about a split: scores (N, ...) of the task and losses (N,), float32; seconds it took."""

    scores: np.ndarray
    losses: np.ndarray
    seconds: float


def predict(network: nn.Module, split: Split, task: Task, device: torch.device) -> Predictions:
    """Return the scores and losses of `network` on every case of a split, in its order."""
    started = time.perf_counter()
    network.eval()
    images, scores, losses = split.cases.images, [], []
    batch = max(1, min(BATCH, PIXELS // int(np.prod(images.shape[1:]))))
    with torch.inference_mode():
        for start in range(0, len(split.cases.labels), batch):
            rows = slice(start, start + batch)
            inputs, targets = task.inputs(torch.from_numpy(np.array(images[rows])), split.targets[rows], None)
            outputs, targets = task.infer(network, inputs.to(device)).float(), targets.to(device)
            losses.append(task.loss(outputs, targets).cpu())
            scores.append(task.scores(outputs, targets).cpu())
    return Predictions(torch.cat(scores).numpy(), torch.cat(losses).numpy(), time.perf_counter() - started)


def exact_metrics(predictions: Predictions, split: Split, task: Task, basis: Basis) -> Evaluation:
    """Return the metrics as they are; undefined ones, and a loss that is not finite, are left out."""
    loss = float(predictions.losses.mean())
    known = {
        "images": len(split.cases.labels),
        "patients": split.cases.patient_count,
        "loss": loss if math.isfinite(loss) else None,
        "seconds": predictions.seconds,
    }
    return evaluation_of(basis, known | task.metrics(predictions.scores, split.targets.numpy()))


def noised_metrics(predictions: Predictions, split: Split, task: Task, noise_multiplier: float) -> Evaluation:
    """Return metrics from a tally with noise of `noise_multiplier` times its sensitivity: one Gaussian mechanism.

    The noise must be in the ledger before this is called. It is always cryptographic: there are few values.
    """
    tally = task.tally(predictions.scores, split.targets.numpy(), split.cases.patients)
    deviation = noise_multiplier * tally.sensitivity
    noise = SecureNoise().like(torch.from_numpy(tally.values), deviation).numpy()
    noised = Tally(tally.values + noise, tally.sensitivity, deviation)
    return evaluation_of("noised", {"seconds": predictions.seconds} | task.metrics_of(noised))


def evaluate(network: nn.Module, split: Split, task: Task, device: torch.device) -> dict[str, float]:
    """Return the exact metrics of `network` on a split by their names in METRIC_FIELDS, for use in the hospital."""
    found = exact_metrics(predict(network, split, task, device), split, task, "exact")
    return Numbers(evaluation=found).flat()
