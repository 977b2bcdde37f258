"""From scores to bounds: the rule by which coins are guessed is chosen on half of the canaries, and used on the rest.

So no bound pays for the choice, and none is the best of many tries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import norm

from simulations.attacks.bounds import Guesses, Rates, bound_from_guesses, bound_from_rates, refuted, refuted_by_rates
from simulations.attacks.claim import Claim, largest_refuted

Method = Literal["one run", "whole curve", "rates"]
ASSUMPTIONS: dict[Method, str] = {
    "one run": "nothing",
    "whole curve": "steps of the sampled Gaussian mechanism (Mahloujifar et al. 2025)",
    "rates": "the same, and canaries that do not hang together (Clopper and Pearson)",
}
SHARES = (1.0, 0.5, 0.25, 0.12, 0.06)
"""How many of the canaries may be guessed; the rest are abstentions."""
THRESHOLDS = 64
TRIED_POWERS = (16, 8, 0, -8, -16, -24)
"""The claims on which rules for the whole curve are compared: with the claimed noise times `STEP` to these powers."""


@dataclass(frozen=True)
class View:
    """What one kind of attacker sees: by each way to score, how much each canary looks like a member; and the coins."""

    name: str
    scores: Mapping[str, np.ndarray]
    members: np.ndarray

    def half(self, which: int) -> View:
        """Return every second canary, from `which` (0 or 1) on."""
        return View(self.name, {name: found[which::2] for name, found in self.scores.items()}, self.members[which::2])


@dataclass(frozen=True)
class Bound:
    """A lower bound on epsilon, whether it refutes the claim, by which score, and from what evidence."""

    view: str
    method: Method
    epsilon: float
    refutes: bool
    score: str
    evidence: str


@dataclass(frozen=True)
class _Rule:
    """Guess "member" of the share `ins` of best scores and "no member" of the share `outs` of worst ones."""

    score: str
    ins: float
    outs: float

    def guess(self, view: View) -> Guesses:
        order = np.argsort(-view.scores[self.score], kind="stable")
        ins, outs = int(self.ins * len(order)), int(self.outs * len(order))
        right = view.members[order[:ins]].sum() + (~view.members[order[len(order) - outs :]]).sum()
        return Guesses(len(order), ins + outs, int(right))


@dataclass(frozen=True)
class _Cut:
    """Call a canary a member when its score exceeds `threshold`."""

    score: str
    threshold: float

    def rates(self, view: View) -> Rates:
        called, members = view.scores[self.score] > self.threshold, view.members
        return Rates(
            int((called & members).sum()), int(members.sum()), int((called & ~members).sum()), int((~members).sum())
        )


def bounds_of(view: View, claim: Claim, confidence: float) -> list[Bound]:
    """Return the bounds by each method, each at `confidence`. No bound is worth anything with few canaries."""
    chosen_on, used_on = view.half(0), view.half(1)
    return [
        _in_one_run(chosen_on, used_on, claim, confidence),
        _by_curve(chosen_on, used_on, claim, confidence),
        _by_rates(chosen_on, used_on, claim, confidence),
    ]


def _in_one_run(chosen_on: View, used_on: View, claim: Claim, confidence: float) -> Bound:
    rule = max(_rules(chosen_on), key=lambda tried: bound_from_guesses(tried.guess(chosen_on), claim.delta, confidence))
    guesses = rule.guess(used_on)
    epsilon = bound_from_guesses(guesses, claim.delta, confidence)
    return Bound(used_on.name, "one run", epsilon, epsilon > claim.epsilon, rule.score, _said(guesses))


def _by_curve(chosen_on: View, used_on: View, claim: Claim, confidence: float) -> Bound:
    rules = _rules(chosen_on)
    tried = [rule.guess(chosen_on) for rule in rules]
    wins = (
        sum(refuted(tried, claim.with_noise(power).curve, 1 - confidence).astype(int) for power in TRIED_POWERS)
        + np.array([bound_from_guesses(guesses, 0.0, confidence) for guesses in tried]) / 100
    )  # which settles a draw
    rule = rules[int(np.argmax(wins))]
    guesses = rule.guess(used_on)
    epsilon = largest_refuted(claim, lambda curve: bool(refuted([guesses], curve, 1 - confidence)[0]))
    refutes = bool(refuted([guesses], claim.curve, 1 - confidence)[0])
    return Bound(used_on.name, "whole curve", epsilon, refutes, rule.score, _said(guesses))


def _by_rates(chosen_on: View, used_on: View, claim: Claim, confidence: float) -> Bound:
    cut = max(_cuts(chosen_on), key=lambda tried: _separation(tried.rates(chosen_on), confidence))
    rates = cut.rates(used_on)
    if math.isfinite(claim.epsilon):
        epsilon = largest_refuted(claim, lambda curve: refuted_by_rates(rates, curve, confidence))
    else:  # nothing is claimed, so there is no curve to hold the rates against
        epsilon = bound_from_rates(rates, claim.delta, confidence)
    refutes = refuted_by_rates(rates, claim.curve, confidence)
    said = f"{rates.caught} of {rates.members} members and {rates.mistaken} of {rates.others} others called members"
    return Bound(used_on.name, "rates", epsilon, refutes, cut.score, said)


def _said(guesses: Guesses) -> str:
    return f"{guesses.right} of {guesses.made} guesses right, {guesses.canaries - guesses.made} abstentions"


def _separation(rates: Rates, confidence: float) -> float:
    """How far apart, at least, two Gaussians are that a test with these rates tells apart."""
    least, most = rates.unfavourable(confidence)
    return float(norm.ppf(least) - norm.ppf(most)) if least > 0 and most < 1 else -np.inf


def _rules(view: View) -> Sequence[_Rule]:
    return [
        _Rule(score, share / 2, share / 2 if both else 0.0)
        for score in view.scores
        for share in SHARES
        for both in (True, False)
    ]


def _cuts(view: View) -> Iterator[_Cut]:
    """Thresholds midway between neighbouring scores, as many of each score."""
    for score, found in view.scores.items():
        values = np.unique(found)
        between = (values[1:] + values[:-1]) / 2 if len(values) > 1 else values
        for at in np.unique(np.linspace(0, len(between) - 1, min(THRESHOLDS, len(between))).astype(int)):
            yield _Cut(score, float(between[at]))
