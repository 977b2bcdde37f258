"""From right guesses to a lower bound on epsilon: the statistics of an audit, apart from any training.

An audit tosses a fair coin for each of m canaries, trains with those whose coin says so, and guesses the coins from
what was released; it may abstain. Whoever guesses better than the claimed privacy allows has refuted the claim.

Guarantees: if a claim is true, `chance` and `refuted` err with at most the stated probability, whatever the training
does and however the canaries hang together. The functions on `Rates` need canaries that do not hang together, as under
a training that is what it claims to be. The converse is not so: a low bound proves nothing.

References: Steinke, Nasr and Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023 (`chance`);
Mahloujifar, Melis and Chaudhuri, "Auditing f-Differential Privacy in One Run", ICML 2025 (`refuted`); Nasr et al.,
"Tight Auditing of Differentially Private Machine Learning", USENIX Security 2023 (rates against a whole curve);
Clopper and Pearson, Biometrika 1934 (their intervals).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, binom

TOLERANCE = 1e-4
LARGEST_EPSILON = 50.0


@dataclass(frozen=True)
class Guesses:
    """How an audit guessed: of `canaries` coins `made` were guessed (the rest are abstentions), `right` rightly."""

    canaries: int
    made: int
    right: int

    def __post_init__(self) -> None:
        """Refuse counts that can't be."""
        if not 0 <= self.right <= self.made <= self.canaries:
            raise ValueError(f"no such guesses: {self}")


@dataclass(frozen=True)
class Rates:
    """A test's outcome: `caught` of `members` were called members, and `mistaken` of `others` were too."""

    caught: int
    members: int
    mistaken: int
    others: int

    def turned(self) -> Rates:
        """Return the outcome of the test that calls others what this one calls members."""
        return Rates(self.others - self.mistaken, self.others, self.members - self.caught, self.members)

    def unfavourable(self, confidence: float) -> tuple[float, float]:
        """Return the least true-positive and the largest false-positive rate that, together, are that credible."""
        tail = (1 - confidence) / 2
        least = float(beta.ppf(tail, self.caught, self.members - self.caught + 1)) if self.caught else 0.0
        most = self.mistaken < self.others
        return least, float(beta.ppf(1 - tail, self.mistaken + 1, self.others - self.mistaken)) if most else 1.0


@dataclass(frozen=True)
class Curve:
    """A mechanism's whole privacy: it is (`epsilons`[i], `deltas`[i])-DP for every i, in both directions."""

    epsilons: np.ndarray
    deltas: np.ndarray

    def least_without(self, likely: np.ndarray) -> np.ndarray:
        """Return the least probability of an event which, with one unit more or less, has the probability `likely`."""
        near_zero = (likely[..., None] - self.deltas) * np.exp(-self.epsilons)
        near_one = 1 - self.deltas - np.exp(self.epsilons) * (1 - likely[..., None])
        return np.asarray(np.maximum(0.0, np.maximum(near_zero, near_one).max(axis=-1)))


def chance(guesses: Guesses, epsilon: float, delta: float) -> float:
    """Return the largest probability with which (`epsilon`, `delta`)-DP allows so many right guesses, or more.

    Theorem 5.2 of Steinke et al.: with delta 0 the right guesses are at most binomial, with the success probability of
    randomised response; delta adds at most 2 m delta times the largest of the means below.
    """
    right, made = guesses.right, guesses.made
    success = 1 / (1 + math.exp(-epsilon))
    pure = float(binom.sf(right - 1, made, success))
    if delta == 0 or right == 0:
        return min(1.0, pure)
    below = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), made, success))  # P[right > B >= right - i], i = 1...
    worst = float(np.max(below / np.arange(1, right + 1)))
    return min(1.0, pure + 2 * guesses.canaries * delta * worst)


def bound_from_guesses(guesses: Guesses, delta: float, confidence: float) -> float:
    """Return the largest epsilon that the guesses refute at `delta`; 0 when they refute none."""
    if chance(guesses, 0.0, delta) >= 1 - confidence:
        return 0.0
    low, high = 0.0, LARGEST_EPSILON
    while high - low > TOLERANCE:
        middle = (low + high) / 2
        low, high = (middle, high) if chance(guesses, middle, delta) < 1 - confidence else (low, middle)
    return low


def refuted(guesses: Sequence[Guesses], curve: Curve, level: float) -> np.ndarray:
    """Return for each of `guesses` whether `curve` allows so many right ones only with a probability below `level`.

    Let p[t] be the probability of exactly t right guesses, R[j] the sum of p[t] t / m over t >= j, and W[j] that of
    p[t] (made - t) / m. To turn one coin over turns a right guess into a wrong one, so for no j may R[j + 1] exceed
    what the curve makes of W[j] (Theorem 9 of Mahloujifar et al.). From P[so many right, or more] = `level` it follows,
    going down, how large R and W must at least be; when they need more probability than there is, it can't be.
    """
    made, first = (np.array([getattr(each, name) for each in guesses]) for name in ("made", "right"))
    total = made / np.array([each.canaries for each in guesses])
    share = np.divide(first, made, out=np.zeros(len(first)), where=made > 0)
    right, wrong = level * total * share, level * total * (1 - share)
    enough = total * (1 + 1e-12)
    for count in range(int(first.max(initial=0)) - 1, -1, -1):
        at_work = (count < first) & (right + wrong <= enough)  # what can't be stays so, and would grow without end
        needed = np.maximum(wrong, curve.least_without(right))
        ratio = count / np.maximum(1, made - count)
        right = np.where(at_work, right + ratio * (needed - wrong), right)
        wrong = np.where(at_work, needed, wrong)
    return np.asarray(right + wrong > enough)


def bound_from_rates(rates: Rates, delta: float, confidence: float) -> float:
    """Return a lower bound on epsilon at `delta`, from independent trials.

    (epsilon, delta)-DP has TPR <= e^epsilon FPR + delta, and the same of the turned test. Each rate is taken at the
    unfavourable end of its exact interval.
    """
    bounds = [0.0]
    for outcome in (rates, rates.turned()):
        least, most = outcome.unfavourable(1 - (1 - confidence) / 2)
        if least > delta and most > 0:
            bounds.append(math.log((least - delta) / most))
    return max(bounds)


def refuted_by_rates(rates: Rates, curve: Curve, confidence: float) -> bool:
    """Return whether rates like these, from independent trials, are too good for a mechanism with `curve`."""
    least, most = rates.unfavourable(confidence)
    return most < float(curve.least_without(np.array(least)))
