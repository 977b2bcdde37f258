"""What a training claims: the steps that were accounted, the epsilon they cost, and the whole curve behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from client.training import Plan
from common.job import Job
from common.privacy import Spending, deltas_of, epsilon_of, noise_for
from simulations.attacks.bounds import Curve

POINTS = 120
TAIL = 1e-10
"""The curve is followed up to the epsilon at which delta is this small."""
LARGEST_EPSILON = 60.0
STEP = 1.05
"""The least private refuted claim is sought among those with the claimed noise times powers of this."""
LEAST_NOISE, HIGHEST_POWER = 0.3, 100


@dataclass(frozen=True)
class Claim:
    """So many steps of the sampled Gaussian mechanism; epsilon is given at `delta`."""

    spending: Spending
    delta: float

    @property
    def epsilon(self) -> float:
        """The claimed upper bound."""
        return epsilon_of([self.spending], self.delta)

    @property
    def curve(self) -> Curve:
        """The claimed privacy at every epsilon."""
        return _curve(self.spending)

    def with_noise(self, power: int) -> Claim:
        """Return the claim of the same steps with the noise times `STEP` to that power; not less than `LEAST_NOISE`."""
        claimed = self.spending.noise_multiplier
        noise = max(min(claimed, LEAST_NOISE), claimed * STEP**power)
        return replace(self, spending=replace(self.spending, noise_multiplier=noise))


def claim_of(job: Job, plan: Plan, rounds: int) -> tuple[Claim, float]:
    """Return what `rounds` rounds of a job claim, and the noise multiplier, as a site computes it before round one.

    The noise is that for all of the job's rounds, so fewer rounds claim less; a job without privacy claims an infinite
    epsilon. Raises RefusedError for a budget that no noise keeps.
    """
    privacy, steps = job.privacy, plan.steps_per_round
    if not job.private:
        return Claim(Spending(0.0, plan.sample_rate, steps * rounds), privacy.delta), 0.0
    noise = noise_for(privacy.epsilon, privacy.delta, plan.sample_rate, steps * job.aggregation.rounds)
    return Claim(Spending(noise, plan.sample_rate, steps * rounds), privacy.delta), noise


def largest_refuted(claim: Claim, is_refuted: Callable[[Curve], bool]) -> float:
    """Return the epsilon of the least private claim, of the same steps with other noise, that is refuted; else 0.

    It exceeds the claim's own epsilon exactly when the claim itself is refuted.
    """
    if not is_refuted(claim.with_noise(HIGHEST_POWER).curve):
        return 0.0
    low, high = (-HIGHEST_POWER, 0) if is_refuted(claim.curve) else (0, HIGHEST_POWER)
    while high - low > 1:  # the claim at `high` is refuted; at `low` it is not, or there is nothing less private
        middle = (low + high) // 2
        low, high = (low, middle) if is_refuted(claim.with_noise(middle).curve) else (middle, high)
    return claim.with_noise(high).epsilon


@lru_cache(maxsize=64)
def _curve(spending: Spending) -> Curve:
    epsilons = np.linspace(0.0, min(LARGEST_EPSILON, epsilon_of([spending], TAIL)), POINTS)
    return Curve(epsilons, np.array(deltas_of([spending], list(epsilons))))
