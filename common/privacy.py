"""Privacy accounting: noise, sampling and steps on one side, epsilon and delta on the other.

Neighbouring relation: one unit (patient or image) is added or removed. Mechanism: the sum of the clipped contributions
of a Poisson sample of units, plus Gaussian noise of standard deviation `noise_multiplier` times the clip norm.

Guarantees: epsilon is never reported too small. The privacy loss distribution is discretised pessimistically; what is
composed is what was spent, step by step, whatever noise and rate each step had.

References: Abadi et al., "Deep Learning with Differential Privacy", CCS 2016; Doroshenko et al., "Connect the Dots:
Tighter Discrete Approximations of Privacy Loss Distributions", PoPETs 2022 (the accountant, in dp-accounting).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant

from common.errors import RefusedError

DISCRETIZATION = 1e-3
TOLERANCE = 1e-3
"""Relative width of the bracket when noise is sought; the side with more noise is taken."""
LARGEST_NOISE = 1e5


@dataclass(frozen=True)
class Spending:
    """Steps taken with one noise multiplier at one sampling rate (a unit's chance to be in a step, in (0, 1])."""

    noise_multiplier: float
    sample_rate: float
    steps: int


def epsilon_of(spendings: Iterable[Spending], delta: float) -> float:
    """Return the epsilon at `delta` of all `spendings` together; infinite when one had no noise."""
    steps: Counter[tuple[float, float]] = Counter()
    for spending in spendings:
        if spending.steps > 0 and spending.sample_rate > 0:
            steps[spending.noise_multiplier, spending.sample_rate] += spending.steps
    return _epsilon(tuple(sorted((noise, rate, count) for (noise, rate), count in steps.items())), delta)


def noise_for(epsilon: float, delta: float, sample_rate: float, steps: int, *, spent: Sequence[Spending] = ()) -> float:
    """Return the smallest noise multiplier with which `steps` more, after `spent`, stay within (`epsilon`, `delta`).

    Raises
    ------
    RefusedError
        No noise is enough: `spent` alone has used the budget up.
    """

    def fits(noise: float) -> bool:
        return epsilon_of([*spent, Spending(noise, sample_rate, steps)], delta) <= epsilon

    low, high = 0.05, 1.0
    while not fits(high):
        low, high = high, 2 * high
        if high > LARGEST_NOISE:
            raise RefusedError(
                f"no noise keeps the run within epsilon {epsilon:g} at delta {delta:g}: its budget is spent"
            )
    while high - low > TOLERANCE * high:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


@lru_cache(maxsize=4096)
def _epsilon(steps: tuple[tuple[float, float, int], ...], delta: float) -> float:
    if not steps:
        return 0.0
    if any(noise <= 0 for noise, _, _ in steps):
        return math.inf
    accountant = PLDAccountant(value_discretization_interval=DISCRETIZATION)
    for noise, rate, count in steps:
        event = PoissonSampledDpEvent(rate, GaussianDpEvent(noise))
        accountant.compose(SelfComposedDpEvent(event, count))
    return float(accountant.get_epsilon(delta))
