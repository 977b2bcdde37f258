"""Membership inference: from a model's answers alone, who was in its training? After LiRA, with few shadow models.

Several models are trained as the job says, each with a random half of the units. Each is attacked in turn, with the
others as shadow models, which show how sure a model is of a unit that it was trained with, and of one that it was not.

Reference: Carlini et al., "Membership Inference Attacks From First Principles", IEEE S&P 2022 (online attack, with one
variance for all units, as they advise for few shadow models).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from torch import nn

from client.dataset import CaseSet
from client.privacy.sampling import Units, units_of
from client.pull import towards
from client.training import Mechanism, plan_steps, train_round
from common.errors import UsageError
from common.job import Job
from common.networks import build_network, tensors_of
from common.tasks.registry import build_task
from common.tasks.task import Task
from simulations.attacks.claim import Claim, claim_of
from simulations.attacks.guessing import ASSUMPTIONS, Bound, View, bounds_of

SMALL_RATES = (0.001, 0.01, 0.1)
BATCH = 256
SHRINKAGE = 4
"""So many models' worth of what holds for all units goes into what is believed of each: shadow models are few."""
VIEW = "who was a member"


@dataclass(frozen=True)
class Membership:
    """What the attack came to, over all models: area under the ROC curve, true-positive rates at small false ones.

    `bounds` on epsilon are from the first model alone, whose coins the shadow models know nothing of.
    """

    models: int
    units: int
    auc: float
    hits: dict[float, float]
    claim: Claim
    bounds: tuple[Bound, ...]

    @property
    def refuted(self) -> bool:
        """Whether a bound refutes the claim."""
        return any(bound.refutes for bound in self.bounds)


def attack_membership(
    cases: CaseSet,
    job: Job,
    *,
    models: int,
    rounds: int,
    confidence: float,
    device: torch.device,
    seed: int | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Membership:
    """Train `models` models for `rounds` rounds, each with a random half of the units of `cases`, and attack them.

    Raises
    ------
    UsageError
        There are fewer than four models or forty units.
    """
    units = units_of(cases.patients, job.privacy.unit)
    if models < 4 or len(units) < 40:
        raise UsageError(f"{models} models and {len(units)} units are too few to attack: use 4 and 40 at least")
    members = np.random.default_rng(seed).random((models, len(units))) < 0.5
    half = _of_units(cases, units, np.arange(len(units)) < len(units) // 2)
    plan = plan_steps(job, half)
    claim, noise = claim_of(job, plan, rounds)
    sure = np.empty(members.shape)
    for model in range(models):
        mine = _of_units(cases, units, members[model])
        network = build_network(job).to(device)
        task = build_task(job)
        for number in range(1, rounds + 1):
            train_round(
                network, mine, task.targets(mine), task, job, number,
                mechanism=Mechanism(noise, plan.sample_rate) if job.private else None,
                pull=towards(job, tensors_of(network)), device=device, plan=plan,
            )  # fmt: skip
        sure[model] = _sureness(network, cases, task, units, device)
        tell(f"model {model + 1} of {models}")
    scores = np.stack([_likelihood_ratios(sure, members, model) for model in range(models)])
    first = View(VIEW, {"likelihood": scores[0]}, members[0])
    bounds = bounds_of(first, claim, 1 - (1 - confidence) / len(ASSUMPTIONS))
    return Membership(
        models, len(units), float(roc_auc_score(members.ravel(), scores.ravel())),
        {rate: _hits_at(scores.ravel(), members.ravel(), rate) for rate in SMALL_RATES}, claim, tuple(bounds),
    )  # fmt: skip


def _of_units(cases: CaseSet, units: Units, wanted: np.ndarray) -> CaseSet:
    """Return the cases of the wanted units, each a patient with a number of its own."""
    chosen = [units.images[unit] for unit in np.flatnonzero(wanted)]
    rows = np.concatenate(chosen)
    patients = np.repeat(np.arange(len(chosen), dtype=np.int64), [len(each) for each in chosen])
    return CaseSet(np.asarray(cases.images[rows]), tuple(cases.labels[row] for row in rows), patients)


def _sureness(network: nn.Module, cases: CaseSet, task: Task, units: Units, device: torch.device) -> np.ndarray:
    """The mean over each unit's images of log p / (1 - p), where p is the model's probability of the true label."""
    network.eval()
    targets, losses = task.targets(cases), []
    with torch.inference_mode():
        for start in range(0, len(cases.labels), BATCH):
            rows = slice(start, start + BATCH)
            outputs = network(torch.from_numpy(np.array(cases.images[rows])).to(device)).float()
            losses.append(task.loss(outputs, targets[rows].to(device)).double().cpu().numpy())
    loss = np.maximum(np.concatenate(losses), 1e-9)  # the loss is -log p
    logits = -loss - np.log(-np.expm1(-loss))
    return np.array([logits[rows].mean() for rows in units.images])


def _likelihood_ratios(sure: np.ndarray, members: np.ndarray, target: int) -> np.ndarray:
    """How much likelier each unit's sureness under the target model is for a member, judged by the other models."""
    others = np.arange(len(sure)) != target
    known, inside = sure[others], members[others]
    usual, gain = _usual(known, inside)
    means = [
        (np.where(where, known, 0.0).sum(axis=0) + SHRINKAGE * (usual + more)) / (where.sum(axis=0) + SHRINKAGE)
        for where, more in ((inside, gain), (~inside, 0.0))
    ]
    spread = max(float((known - np.where(inside, *means)).std()), 1e-9)
    member, other = (norm.logpdf(sure[target], mean, spread) for mean in means)
    return np.asarray(member - other)


def _usual(known: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, float]:
    """How sure models are of each unit that they were not trained with, and how much surer training makes them."""
    gain = float(known[inside].mean() - known[~inside].mean())
    usual = np.zeros(known.shape[1])
    for _ in range(3):  # each depends a little on the other, as coins do not fall evenly
        bare = known - gain * inside
        usual = (bare.sum(axis=0) + SHRINKAGE * bare.mean()) / (len(bare) + SHRINKAGE)
        gain = float((known - usual)[inside].mean() - (known - usual)[~inside].mean())
    return usual, gain


def _hits_at(scores: np.ndarray, members: np.ndarray, rate: float) -> float:
    """The true-positive rate at the strictest threshold that lets `rate` of the others through."""
    others = np.sort(scores[~members])[::-1]
    return float((scores[members] > others[int(rate * len(others))]).mean())
