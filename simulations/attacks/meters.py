"""Meters: what training did to the canaries, held against what it claims to do, number by number.

A meter is no attack: it bounds no epsilon, and needs the coins to be read. But it needs few canaries, and it says what
is wrong. If the training is what it claims to be, a meter alarms with at most the stated probability.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom, chi2, norm

from simulations.attacks.claim import Claim
from simulations.attacks.transcript import Transcript


@dataclass(frozen=True)
class Reading:
    """What a meter read: what it is about, the value, what is due, the probability of such a reading, and an alarm."""

    kind: str
    meter: str
    value: float
    expected: float
    probability: float
    alarm: bool


_Found = tuple[str, str, float, float, float]


def read_meters(seen: Transcript, claim: Claim, confidence: float) -> list[Reading]:
    """Return every meter's reading; that any of them alarms at a right training has at most 1 - `confidence`."""
    lags = [lag for lag in sorted({1, seen.steps_a_round}) if lag < len(seen.steps)]
    level = (1 - confidence) / (2 + len(lags))
    out, members = seen.steps[:, ~seen.canaries.gradient], seen.steps[:, seen.canaries.gradient]
    found = [_noise(out, claim), _contribution(members, claim), *(_repetition(out, lag) for lag in lags)]
    return [Reading(*each, alarm=each[-1] < level) for each in found]


def _noise(out: np.ndarray, claim: Claim) -> _Found:
    """The noise along the directions of canaries that are not in: too little of it?"""
    squares = float(np.square(out, dtype=np.float64).sum())
    claimed = claim.spending.noise_multiplier
    chance = float(chi2.cdf(squares / claimed**2, out.size))
    return "noise", "noise, in clip norms", math.sqrt(squares / out.size), claimed, chance


def _contribution(members: np.ndarray, claim: Claim) -> _Found:
    """What a canary adds to a step in the mean: more than its sampling rate, in clip norms?"""
    rate, noise, count = claim.spending.sample_rate, claim.spending.noise_multiplier, members.size
    total = float(members.sum(dtype=np.float64))
    times = np.arange(*binom.interval(1 - 1e-12, count, rate) + np.array([0, 1]))
    beyond = norm.sf((total - times) / (noise * math.sqrt(count)))
    chance = float((binom.pmf(times, count, rate) * beyond).sum()) + 1e-12
    return "share", "a unit's mean share of a step, in clip norms", total / count, rate, chance


def _repetition(out: np.ndarray, lag: int) -> _Found:
    """The correlation of the noise with itself some steps later: any at all?"""
    early, late = out[:-lag].astype(np.float64), out[lag:].astype(np.float64)
    scale = math.sqrt(float((early**2).sum() * (late**2).sum()))
    correlation = float((early * late).sum()) / scale if scale > 0 else 0.0
    chance = 2 * float(norm.sf(abs(correlation) * math.sqrt(early.size)))
    return "repetition", f"noise's correlation {lag} step{'s' if lag > 1 else ''} later", correlation, 0.0, chance
