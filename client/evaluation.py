"""A model on a validation or test split: its scores, and the metrics in the form in which they may leave.

Exact metrics leave for a split that the hospital declares releasable. Otherwise they are estimated from a tally of the
scores with Gaussian noise, paid for in the ledger. Splits are disjoint by patient, so a patient's loss is that of one
split only: each split has the whole of the run's epsilon (parallel composition; McSherry, SIGMOD 2009, theorem 4).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from client.dataset import CaseSet
from client.privacy.noise import SecureNoise
from client.subgroups import released
from common import bins
from common.release import Basis, ByGroup, Evaluation, Numbers, evaluation_of
from common.tasks.task import Tally, Task

BATCH, PIXELS = 256, 2**22
"""Most images, and most pixels or voxels, that are evaluated at once: memory stays in bounds in 3D too."""


Rows = np.ndarray | slice
"""Some of a split's cases: (N,) bool, or EVERY one, of which nothing is copied."""
EVERY = slice(None)


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


def exact_metrics(
    predictions: Predictions, split: Split, task: Task, basis: Basis, *, groups_from: int | None = None
) -> Evaluation:
    """Return the metrics as they are; undefined ones, and a loss that is not finite, are left out.

    With `groups_from` those of the split's groups go with them, of groups of at least so many patients.
    """
    found = evaluation_of(basis, {"seconds": predictions.seconds} | _exact(predictions, split, task, EVERY))
    groups = released(split.cases.groups, groups_from) if groups_from is not None else []
    values = [_exact(predictions, split, task, _rows_of(split, *group)) for group in groups]
    return replace(found, by_group=_by_group(basis, groups, values))


def _exact(predictions: Predictions, split: Split, task: Task, rows: Rows) -> dict[str, float | None]:
    loss = float(predictions.losses[rows].mean())
    patients = split.cases.patients[rows]
    known = {
        "images": float(len(patients)),
        "patients": float(len(np.unique(patients))),
        "loss": loss if math.isfinite(loss) else None,
    }
    return known | task.metrics(predictions.scores[rows], split.targets.numpy()[rows])


def noised_metrics(predictions: Predictions, split: Split, task: Task, noise_multiplier: float) -> Evaluation:
    """Return metrics from a tally with noise of `noise_multiplier` times its sensitivity: one Gaussian mechanism.

    Those of the split's groups go with them, for one mechanism more a trait (`mechanisms`). The noise must be in the
    ledger before this is called. It is always cryptographic: there are few values.
    """
    found = evaluation_of(
        "noised", {"seconds": predictions.seconds} | _noised(predictions, split, task, noise_multiplier, EVERY)
    )
    # Every bin, an empty one too: which are left over follows from noised values alone.
    every = [(trait, place) for trait in split.cases.groups for place in range(len(bins.HISTOGRAMS[trait].bins))]
    values = {group: _noised(predictions, split, task, noise_multiplier, _rows_of(split, *group)) for group in every}
    told = [group for group in every if {f"{name}_low" for name in values[group]} & values[group].keys()]
    return replace(found, by_group=_by_group("noised", told, [values[group] for group in told]))


def mechanisms(split: Split) -> int:
    """Return how many Gaussian mechanisms the noised metrics of a split are, those of its groups included."""
    return 1 + len(split.cases.groups)


def _by_group(
    basis: Basis, groups: Sequence[tuple[str, int]], values: Sequence[Mapping[str, float | None]]
) -> tuple[ByGroup, ...]:
    return tuple(
        ByGroup(*group, replace(evaluation_of(basis, found), by_label=()))
        for group, found in zip(groups, values, strict=True)
    )


def _noised(
    predictions: Predictions, split: Split, task: Task, noise_multiplier: float, rows: Rows
) -> dict[str, float]:
    tally = task.tally(predictions.scores[rows], split.targets.numpy()[rows], split.cases.patients[rows])
    deviation = noise_multiplier * tally.sensitivity
    noise = SecureNoise().like(torch.from_numpy(tally.values), deviation).numpy()
    return task.metrics_of(Tally(tally.values + noise, tally.sensitivity, deviation))


def _rows_of(split: Split, trait: str, place: int) -> np.ndarray:
    """Which cases are of patients in a bin: (N,) bool."""
    return np.asarray(split.cases.groups[trait][split.cases.patients] == place)


def evaluate(network: nn.Module, split: Split, task: Task, device: torch.device) -> dict[str, float]:
    """Return the exact metrics of `network` on a split by their names in METRIC_FIELDS, for use in the hospital."""
    found = exact_metrics(predict(network, split, task, device), split, task, "exact")
    return Numbers(evaluation=found).flat()
