"""Auditing in one run: a training with canaries, guesses at each one's coin, and lower bounds on epsilon.

References: Steinke, Nasr and Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023; Nasr et al.,
"Adversary Instantiation", IEEE S&P 2021 (gradient canaries, and what each kind of attacker sees).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from client.dataset import CaseSet
from client.training import plan_steps
from common.errors import UsageError
from common.job import Job
from simulations.attacks.canaries import Canaries
from simulations.attacks.claim import Claim, claim_of
from simulations.attacks.guessing import Bound, Method, View, bounds_of
from simulations.attacks.meters import Reading, read_meters
from simulations.attacks.transcript import ChangeParts, Tell, Transcript, train_with_canaries

METHODS: tuple[Method, ...] = ("one run", "whole curve", "rates")
EVERY_STEP, UPDATES, IMAGES, LAST_MODEL = "every step", "updates", "updates, image canaries", "last model's losses"
VIEWS = {
    EVERY_STEP: "every step's noisy sum, as the proof grants an attacker; gradient canaries",
    UPDATES: "the model after every round, as the coordinator does; gradient canaries",
    IMAGES: "the same, and looks for wrongly labelled images by their gradients",
    LAST_MODEL: "only what the last model makes of wrongly labelled images",
}
"""What each kind of attacker sees."""
METERS = 0.9999
"""The confidence of all meters together, at least: they have so much to go by that they can afford it."""


@dataclass(frozen=True)
class AuditSize:
    """How many canaries of each kind, how many images each has, and how many of the job's rounds are trained."""

    gradient_canaries: int
    image_canaries: int
    images_a_unit: int
    rounds: int


@dataclass(frozen=True)
class Audit:
    """The claim, the bounds by view and method, the meters, and the confidence of all bounds together."""

    claim: Claim
    epsilon: float
    bounds: tuple[Bound, ...]
    readings: tuple[Reading, ...]
    confidence: float
    size: AuditSize

    @property
    def best(self) -> Bound:
        """The bound that says most: one that refutes the claim if any does."""
        return max(self.bounds, key=lambda bound: (bound.refutes, bound.epsilon))

    @property
    def assuming_nothing(self) -> float:
        """The largest of the bounds that assume nothing of the training."""
        return max(bound.epsilon for bound in self.bounds if bound.method == "one run")

    @property
    def refuted(self) -> bool:
        """Whether an attack refutes the claim: what was trained is less private than what was accounted."""
        return self.best.refutes

    @property
    def faulty(self) -> bool:
        """Whether an attack refutes the claim or a meter alarms: the training is not what was accounted."""
        return self.refuted or any(reading.alarm for reading in self.readings)


def audit_in_one_run(
    cases: CaseSet,
    job: Job,
    size: AuditSize,
    *,
    confidence: float,
    device: torch.device,
    change_parts: ChangeParts | None = None,
    seed: int | None = None,
    tell: Tell = lambda line: None,
) -> Audit:
    """Train the job on `cases` with canaries among them, guess, and return the bounds.

    If the training is what it claims to be, the probability that it is refuted is at most 1 - `confidence`, over the
    coins and the training's own randomness. `seed` is the coins'; without it the operating system tosses them.

    Raises
    ------
    UsageError
        The job claims no privacy, or there are too few canaries to say anything.
    """
    if not job.private:
        raise UsageError('"privacy.mechanism" is "none": the job claims no privacy that an audit could refute')
    if size.gradient_canaries < 20:
        raise UsageError(f"{size.gradient_canaries} canaries can't say anything: use 20 at least, better 500")
    claim, noise = claim_of(job, plan_steps(job, cases), size.rounds)
    random = np.random.default_rng(seed)
    canaries = Canaries.toss(size.gradient_canaries, size.image_canaries, size.images_a_unit, random)
    seen = train_with_canaries(cases, job, canaries, noise, size.rounds, device, change_parts=change_parts, tell=tell)
    return judge(seen, claim, confidence, size)


def judge(seen: Transcript, claim: Claim, confidence: float, size: AuditSize) -> Audit:
    """Return what a transcript proves: all bounds hold together with `confidence`, all meters with `METERS`."""
    views = views_of(seen, claim)
    each = 1 - (1 - confidence) / (len(views) * len(METHODS))
    bounds = tuple(bound for view in views for bound in bounds_of(view, claim, each))
    return Audit(
        claim, claim.epsilon, bounds, tuple(read_meters(seen, claim, max(confidence, METERS))), confidence, size
    )


def views_of(seen: Transcript, claim: Claim) -> list[View]:
    """Return what each kind of attacker makes of a transcript."""
    steps, coins = _scores_of_steps(seen, claim), seen.canaries
    views = [View(EVERY_STEP, steps, coins.gradient), View(UPDATES, {"change": seen.updates}, coins.gradient)]
    if len(coins.image):
        views.append(View(IMAGES, {"alignment": seen.alignments}, coins.image))
        views.append(View(LAST_MODEL, {"fall of the loss": seen.losses}, coins.image))
    return views


def _scores_of_steps(seen: Transcript, claim: Claim) -> dict[str, np.ndarray]:
    """Two scores that betray a canary: the likelihood under the claim, and noise that comes again and cancels."""
    scores = {"likelihood": _likelihood(seen.steps, claim)}
    for lag in sorted({1, seen.steps_a_round}):
        if lag < len(seen.steps):
            apart = np.abs(seen.steps[lag:] - seen.steps[:-lag])
            scores[f"differences at {lag}"] = apart.mean(axis=0)
    return scores


def _likelihood(steps: np.ndarray, claim: Claim) -> np.ndarray:
    """The logarithm of how much likelier what was seen is from a member: the best score there is, if all is right."""
    rate, noise = claim.spending.sample_rate, claim.spending.noise_multiplier
    present = np.log(rate) + (steps.astype(np.float64) - 0.5) / noise**2
    absent = np.log1p(-rate) if rate < 1 else -np.inf
    return np.asarray(np.logaddexp(absent, present).sum(axis=0))
