"""The statistics of an audit: known values, simulated mechanisms, and no false alarm."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.stats import binom, norm

from common.privacy import Spending
from simulations.attacks.bounds import (
    Curve,
    Guesses,
    Rates,
    bound_from_guesses,
    bound_from_rates,
    chance,
    refuted,
    refuted_by_rates,
)
from simulations.attacks.claim import Claim, largest_refuted


def response_curve(epsilon: float) -> Curve:
    """The curve of randomised response."""
    epsilons = np.linspace(0, 2 * epsilon, 101)
    return Curve(epsilons, np.maximum(0, (math.exp(epsilon) - np.exp(epsilons)) / (1 + math.exp(epsilon))))


def gaussian_curve(mu: float) -> Curve:
    """The curve of one Gaussian mechanism: Balle and Wang, ICML 2018."""
    epsilons = np.linspace(0, 12, 200)
    deltas = norm.cdf(mu / 2 - epsilons / mu) - np.exp(epsilons) * norm.cdf(-mu / 2 - epsilons / mu)
    return Curve(epsilons, np.maximum(deltas, 1e-15))


def test_a_hundred_right_guesses_of_a_hundred_give_the_bound_that_can_be_worked_out_by_hand() -> None:
    # (e^eps / (1 + e^eps))^100 = 0.05
    by_hand = math.log(0.05 ** (1 / 100) / (1 - 0.05 ** (1 / 100)))
    assert bound_from_guesses(Guesses(100, 100, 100), 0.0, 0.95) == pytest.approx(by_hand, abs=1e-3)
    assert by_hand == pytest.approx(3.49, abs=0.01)


def test_the_chance_of_guesses_without_delta_is_that_of_randomised_response() -> None:
    assert chance(Guesses(50, 20, 15), 1.0, 0.0) == pytest.approx(binom.sf(14, 20, math.e / (1 + math.e)))


def test_delta_adds_what_the_theorem_adds() -> None:
    # By hand for 2 guesses of 2, both right, at epsilon 0: B is 0, 1, 2 with 1/4, 1/2, 1/4.
    # i = 1: P[2 > B >= 1] = 1/2; i = 2: P[2 > B >= 0] / 2 = 3/8. So p = 1/4 + 2 m delta / 2.
    assert chance(Guesses(2, 2, 2), 0.0, 0.01) == pytest.approx(0.25 + 2 * 2 * 0.01 * 0.5)


@given(st.integers(1, 200), st.data())
@settings(max_examples=60, deadline=None)
def test_more_right_guesses_give_no_smaller_bound_and_more_delta_or_confidence_no_larger_one(made: int, data) -> None:
    right = data.draw(st.integers(1, made))
    bound = bound_from_guesses(Guesses(300, made, right), 1e-5, 0.95)
    assert bound_from_guesses(Guesses(300, made, right - 1), 1e-5, 0.95) <= bound + 1e-3
    assert bound_from_guesses(Guesses(300, made, right), 1e-4, 0.95) <= bound + 1e-3
    assert bound_from_guesses(Guesses(300, made, right), 1e-5, 0.99) <= bound + 1e-3
    assert bound_from_guesses(Guesses(3000, made, right), 1e-5, 0.95) <= bound + 1e-3


def test_randomised_response_is_seldom_thought_less_private_than_it_is_and_its_bound_is_near() -> None:
    random, epsilon = np.random.default_rng(0), 2.0
    right = random.binomial(1000, 1 / (1 + math.exp(-epsilon)), size=400)
    bounds = np.array([bound_from_guesses(Guesses(1000, 1000, int(each)), 0.0, 0.95) for each in right])
    assert (bounds > epsilon).mean() <= 0.08  # 5 % in the long run
    assert bounds.mean() > 0.85 * epsilon


def test_the_whole_curve_bound_is_the_solution_of_its_linear_programme() -> None:
    """`refuted` goes down greedily; the largest P[right or more] under the same inequalities is a linear programme."""
    curve, made, canaries, right = gaussian_curve(1.0), 12, 20, 11
    counts = np.arange(made + 1)
    rows, limits = [], []
    for above in range(1, made + 1):
        gains = np.where(counts >= above, counts, 0) / canaries
        losses = np.where(counts >= above - 1, made - counts, 0) / canaries
        for epsilon, delta in zip(curve.epsilons, curve.deltas, strict=True):
            rows.append(gains - np.exp(epsilon) * losses)  # R <= e^eps W + delta
            limits.append(delta)
            rows.append(gains - np.exp(-epsilon) * losses)  # 1 - R >= e^-eps (1 - delta - W)
            limits.append(1 - np.exp(-epsilon) * (1 - delta))
    solved = linprog(-(counts >= right).astype(float), A_ub=rows, b_ub=limits, A_eq=[np.ones(made + 1)], b_eq=[1.0])
    most = -solved.fun
    assert 0.001 < most < 0.5
    guesses = [Guesses(canaries, made, right)]
    assert not refuted(guesses, curve, most * 0.99)[0]
    assert refuted(guesses, curve, most * 1.01)[0]


def test_the_whole_curve_sees_what_one_point_of_it_does_not() -> None:
    # A Gaussian mechanism of epsilon 4.4 at delta 1e-5 lets nobody guess 95 of 100 coins; (4.4, 1e-5)-DP would.
    guesses = Guesses(100, 100, 95)
    assert refuted([guesses], gaussian_curve(1.0), 0.05)[0]
    assert bound_from_guesses(guesses, 1e-5, 0.95) < 4.4


@pytest.mark.parametrize("mu", [0.5, 1.0])
def test_a_gaussian_mechanism_is_seldom_refuted_and_one_with_a_quarter_of_the_noise_nearly_always_is(mu: float) -> None:
    random, curve = np.random.default_rng(1), gaussian_curve(mu)

    def guess(true_mu: float) -> Guesses:
        coins = random.random(1000) < 0.5
        said = true_mu * coins + random.standard_normal(1000) > true_mu / 2
        return Guesses(1000, 1000, int((said == coins).sum()))

    assert refuted([guess(mu) for _ in range(200)], curve, 0.05).mean() <= 0.05
    assert refuted([guess(4 * mu) for _ in range(100)], curve, 0.05).mean() > 0.9


def test_rates_refute_a_gaussian_mechanism_seldom_and_one_with_two_thirds_of_the_noise_often() -> None:
    random, curve = np.random.default_rng(2), gaussian_curve(1.0)

    def rates(mu: float) -> Rates:
        called = [int((shift + random.standard_normal(500) > mu / 2).sum()) for shift in (mu, 0.0)]
        return Rates(called[0], 500, called[1], 500)

    assert np.mean([refuted_by_rates(rates(1.0), curve, 0.95) for _ in range(400)]) <= 0.05
    assert np.mean([refuted_by_rates(rates(1.5), curve, 0.95) for _ in range(100)]) > 0.9


def test_the_bound_from_rates_is_that_of_the_rates_exact_intervals() -> None:
    # No false positive of 1,000 and no miss of 1,000 at 95 %: each interval ends where p^1000 = 0.0125.
    edge = 1 - 0.0125 ** (1 / 1000)
    found = bound_from_rates(Rates(1000, 1000, 0, 1000), 0.0, 0.95)
    assert found == pytest.approx(math.log((1 - edge) / edge), rel=1e-6)
    assert bound_from_rates(Rates(500, 1000, 500, 1000), 0.0, 0.95) == 0.0
    assert bound_from_rates(Rates(0, 0, 0, 0), 0.0, 0.95) == 0.0


def test_a_bound_exceeds_the_claim_exactly_when_the_claim_itself_is_refuted() -> None:
    claim = Claim(Spending(2.0, 0.1, 50), 1e-5)
    for mistaken in (80, 140, 180):
        rates = Rates(190, 200, mistaken, 200)
        bound = largest_refuted(claim, lambda curve, rates=rates: refuted_by_rates(rates, curve, 0.95))
        assert (bound >= claim.epsilon) == refuted_by_rates(rates, claim.curve, 0.95)


def test_guesses_that_cannot_be_are_no_guesses() -> None:
    with pytest.raises(ValueError, match="no such guesses"):
        Guesses(10, 5, 6)


def test_for_randomised_response_the_whole_curve_refutes_as_much_as_the_binomial_nearly() -> None:
    guesses, epsilon = Guesses(200, 200, 175), 1.5
    assert chance(guesses, epsilon, 0.0) < 0.02
    assert refuted([guesses], response_curve(epsilon), 0.05)[0]
    assert not refuted([guesses], response_curve(2.0), 0.05)[0]
