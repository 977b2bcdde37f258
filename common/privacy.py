"""Privacy accounting: noise, sampling and steps on one side, epsilon and delta on the other.

Neighbouring relation: one unit (patient or image) is added or removed. Mechanism: the sum of the clipped contributions
of a Poisson sample of units, plus Gaussian noise of standard deviation `noise_multiplier` times the clip norm.

Guarantees: epsilon is never reported too small. The privacy loss distribution is discretised pessimistically; what is
composed is what was spent, step by step, whatever noise and rate each step had.

References: Abadi et al., "Deep Learning with Differential Privacy", CCS 2016; Doroshenko et al., "Connect the Dots:
Tighter Discrete Approximations of Privacy Loss Distributions", PoPETs 2022 (the accountant, in dp-accounting).
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution, from_gaussian_mechanism, identity
from dp_accounting.rdp import RdpAccountant

from common.errors import RefusedError

DISCRETIZATION = 1e-3
TOLERANCE = 1e-3
"""Relative width of the bracket when noise is sought; the side with more noise is taken."""
SMALLEST_NOISE, LARGEST_NOISE = 0.05, 1e5
MOST_STEPS = 10**6
"""More steps than this at one noise and rate take the accountant minutes and gigabytes: they are refused."""


@dataclass(frozen=True)
class Spending:
    """Steps taken with one noise multiplier at one sampling rate (a unit's chance to be in a step, in (0, 1])."""

    noise_multiplier: float
    sample_rate: float
    steps: int

    def __post_init__(self) -> None:
        """Refuse what could be counted as less than it is: a spending that makes no sense is a defect, not a zero."""
        if not (self.noise_multiplier >= 0 and 0 < self.sample_rate <= 1 and self.steps >= 0):
            raise ValueError(f"no such spending: {self}")


def sampling_rate(batch_size: int, units: int) -> float:
    """Return the rate at which the expected number of units in a step is `batch_size`, at most 1."""
    return min(1.0, batch_size / units)


def steps_per_round(local_epochs: float, sample_rate: float) -> int:
    """Return the steps in which every unit is expected to be drawn `local_epochs` times, at least 1."""
    return max(1, round(local_epochs / sample_rate))


def epsilon_of(spendings: Iterable[Spending], delta: float) -> float:
    """Return the epsilon at `delta` of all `spendings` together; infinite when one had no noise.

    Raises
    ------
    RefusedError
        There are more steps of one kind than `MOST_STEPS`.
    """
    return _epsilon(_together(spendings), delta)


def rdp_epsilon_of(spendings: Iterable[Spending], delta: float) -> float:
    """Return the epsilon that the older accountant, by Renyi divergences, would state: for comparison in reports.

    It is never too small either, and as a rule 8 to 14 % larger. References: Mironov, CSF 2017; Mironov, Talwar and
    Zhang, "Renyi Differential Privacy of the Sampled Gaussian Mechanism", 2019; dp-accounting computes it.
    """
    steps = _together(spendings)
    if any(noise <= 0 for noise, _, _ in steps):
        return math.inf
    accountant = RdpAccountant()
    with _quiet():
        for noise, rate, count in steps:
            accountant.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), count)
    return float(accountant.get_epsilon(delta)) if steps else 0.0


def deltas_of(spendings: Iterable[Spending], epsilons: Sequence[float]) -> list[float]:
    """Return the delta of all `spendings` together at each of `epsilons`: the whole curve behind one epsilon.

    Never too small. Raises RefusedError as `epsilon_of` does.
    """
    steps = _together(spendings)
    if any(noise <= 0 for noise, _, _ in steps):
        return [1.0] * len(epsilons)
    return [float(delta) for delta in _composed(steps).get_delta_for_epsilon(list(epsilons))]


def noise_for(epsilon: float, delta: float, sample_rate: float, steps: int, *, spent: Sequence[Spending] = ()) -> float:
    """Return the smallest noise multiplier with which `steps` more, after `spent`, stay within (`epsilon`, `delta`).

    Raises
    ------
    RefusedError
        No noise is enough: `spent` alone has used the budget up. Or there are more steps than `MOST_STEPS`.
    """
    already = _together(spent)
    refusal = f"no noise keeps the run within epsilon {epsilon:g} at delta {delta:g}: its budget is spent"
    if _epsilon(already, delta) >= epsilon:
        raise RefusedError(refusal)
    before = _composed(already)

    def fits(noise: float) -> bool:
        # A hair below, so that the same steps, added up in another order, are still within.
        whole = before.compose(_many_steps(noise, sample_rate, steps))
        return float(whole.get_epsilon_for_delta(delta)) <= epsilon * (1 - 1e-6)

    low, high = 0.5, 1.0
    while not fits(high):
        low, high = high, 2 * high
        if high > LARGEST_NOISE:
            raise RefusedError(refusal)
    while low > SMALLEST_NOISE and fits(low):
        low, high = low / 2, low
    while high - low > TOLERANCE * high:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


@contextmanager
def _quiet() -> Iterator[None]:
    """Without a warning for each Renyi order that is left out: fewer orders can only make epsilon larger."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


Steps = tuple[tuple[float, float, int], ...]
"""Noise multiplier, sampling rate and number of steps, each pair of the first two once, sorted."""


def _together(spendings: Iterable[Spending]) -> Steps:
    steps: Counter[tuple[float, float]] = Counter()
    for spending in spendings:
        if spending.steps > 0:
            steps[spending.noise_multiplier, spending.sample_rate] += spending.steps
    return tuple(sorted((noise, rate, count) for (noise, rate), count in steps.items()))


@lru_cache(maxsize=4096)
def _epsilon(steps: Steps, delta: float) -> float:
    if not steps:
        return 0.0
    if any(noise <= 0 for noise, _, _ in steps):
        return math.inf
    return float(_composed(steps).get_epsilon_for_delta(delta))


def _composed(steps: Steps) -> PrivacyLossDistribution:
    composed = identity(value_discretization_interval=DISCRETIZATION)
    for noise, rate, count in steps:
        composed = composed.compose(_remembered(noise, rate, count))
    return composed


def _many_steps(noise: float, rate: float, steps: int) -> PrivacyLossDistribution:
    if steps > MOST_STEPS:
        raise RefusedError("the run takes more steps than can be accounted: fewer rounds or larger batches will do")
    return _one_step(noise, rate).self_compose(steps)


_remembered = lru_cache(maxsize=64)(_many_steps)
"""For what was spent: each round adds to one of many spendings, and the others are as they were."""


@lru_cache(maxsize=64)
def _one_step(noise: float, rate: float) -> PrivacyLossDistribution:
    return from_gaussian_mechanism(
        noise, sampling_prob=rate, value_discretization_interval=DISCRETIZATION, pessimistic_estimate=True
    )
