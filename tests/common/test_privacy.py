"""Epsilon is never reported too small, and noise is enough for what it was asked for."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant, RDPAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from common.errors import RefusedError
from common.privacy import Spending, epsilon_of, noise_for, rdp_epsilon_of

noises, rates, counts = st.floats(0.6, 8.0), st.floats(0.005, 0.5), st.integers(1, 400)


def gaussian_epsilon(noise: float, delta: float) -> float:
    """The exact epsilon of one Gaussian mechanism: Balle and Wang, ICML 2018, theorem 8."""

    def excess(epsilon: float) -> float:
        a, b = 1 / (2 * noise), epsilon * noise
        return float(norm.cdf(a - b) - math.exp(epsilon) * norm.cdf(-a - b)) - delta

    return brentq(excess, 0, 200)


@pytest.mark.parametrize("noise", [0.7, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("steps", [1, 4, 25])
def test_without_sampling_it_is_the_exact_gaussian_epsilon_and_not_below(noise, steps):
    exact = gaussian_epsilon(noise / math.sqrt(steps), 1e-5)
    assert exact <= epsilon_of([Spending(noise, 1.0, steps)], 1e-5) <= exact * 1.01 + 0.01


def test_a_published_value_is_met():
    # 8.51 by Renyi divergence; the privacy loss distribution is tighter.
    assert epsilon_of([Spending(1.1, 0.02, 5000)], 1e-5) == pytest.approx(7.86, abs=0.01)


@settings(max_examples=15, deadline=None)
@given(noise=noises, rate=rates, steps=counts)
def test_it_lies_between_opacus_tightest_and_its_loosest_accountant(noise, rate, steps):
    ours = epsilon_of([Spending(noise, rate, steps)], 1e-5)
    loose, tight = RDPAccountant(), PRVAccountant()
    loose.history = tight.history = [(noise, rate, steps)]
    assert ours <= loose.get_epsilon(1e-5) * 1.02 + 0.02
    assert ours >= tight.get_epsilon(1e-5, eps_error=0.05) - 0.11  # the estimate's own error, either way


@settings(max_examples=20, deadline=None)
@given(noise=noises, rate=rates, steps=counts)
def test_less_noise_more_steps_or_a_higher_rate_never_cost_less(noise, rate, steps):
    here = epsilon_of([Spending(noise, rate, steps)], 1e-5)
    assert epsilon_of([Spending(noise * 0.9, rate, steps)], 1e-5) >= here
    assert epsilon_of([Spending(noise, rate * 1.1, steps)], 1e-5) >= here
    assert epsilon_of([Spending(noise, rate, steps + 10)], 1e-5) >= here
    assert epsilon_of([Spending(noise, rate, steps)], 1e-6) >= here


@settings(max_examples=15, deadline=None)
@given(parts=st.lists(st.builds(Spending, noises, rates, st.integers(1, 50)), min_size=1, max_size=4))
def test_spendings_of_any_kind_add_up_whatever_their_order(parts):
    together = epsilon_of(parts, 1e-5)
    assert together == epsilon_of(reversed(parts), 1e-5)
    assert together >= max(epsilon_of([part], 1e-5) for part in parts) - 1e-9


@settings(max_examples=6, deadline=None)
@given(epsilon=st.floats(0.5, 10), rate=st.floats(0.01, 0.5), steps=st.integers(5, 300))
def test_the_noise_that_is_asked_for_keeps_the_promise_and_wastes_little(epsilon, rate, steps):
    noise = noise_for(epsilon, 1e-5, rate, steps)
    assert epsilon * 0.97 <= epsilon_of([Spending(noise, rate, steps)], 1e-5) <= epsilon


def test_what_was_spent_before_is_paid_for_with_more_noise():
    spent = [Spending(1.0, 0.1, 20)]
    more = noise_for(4.0, 1e-5, 0.1, 50, spent=spent)
    assert more > noise_for(4.0, 1e-5, 0.1, 50)
    assert epsilon_of([*spent, Spending(more, 0.1, 50)], 1e-5) <= 4.0


def test_a_spent_budget_is_refused():
    with pytest.raises(RefusedError, match="budget is spent"):
        noise_for(1.0, 1e-5, 0.1, 10, spent=[Spending(0.7, 0.5, 100)])


def test_the_same_budget_is_kept_however_the_steps_are_written_down():
    # The ledger adds a run's rounds up in its own order; the noise must leave room for that.
    noise = noise_for(8.0, 1e-5, 0.05, 60, spent=[Spending(1.2, 0.05, 40), Spending(1.5, 0.04, 30)])
    rounds = [Spending(noise, 0.05, 20), Spending(1.2, 0.05, 40), Spending(noise, 0.05, 40), Spending(1.5, 0.04, 30)]
    assert epsilon_of(rounds, 1e-5) <= 8.0


@pytest.mark.parametrize("values", [(-1.0, 0.1, 1), (1.0, 0.0, 1), (1.0, 1.1, 1), (1.0, 0.1, -1)])
@pytest.mark.parametrize("broken", [None, 0, 1])
def test_a_spending_that_makes_no_sense_is_never_counted_as_nothing(values, broken):
    wrong = list(values)
    if broken is not None:
        wrong[broken] = math.nan
    with pytest.raises(ValueError, match="no such spending"):
        Spending(*wrong)


def test_after_a_step_without_noise_no_noise_is_enough():
    with pytest.raises(RefusedError, match="budget is spent"):
        noise_for(8.0, 1e-5, 0.1, 10, spent=[Spending(0.0, 0.1, 1)])


def test_a_run_too_long_to_be_accounted_is_refused_at_once():
    with pytest.raises(RefusedError, match="more steps than can be accounted"):
        noise_for(8.0, 1e-5, 0.01, 10**9)


def test_nothing_spent_costs_nothing_and_no_noise_costs_everything():
    assert epsilon_of([], 1e-5) == 0.0
    assert epsilon_of([Spending(1.0, 0.1, 0)], 1e-5) == 0.0
    assert epsilon_of([Spending(0.0, 0.1, 1)], 1e-5) == math.inf


def test_the_known_value_of_both_accountants():
    steps = [Spending(1.1, 0.02, 5000)]
    assert epsilon_of(steps, 1e-5) == pytest.approx(7.86, abs=0.01)
    assert rdp_epsilon_of(steps, 1e-5) == pytest.approx(8.51, abs=0.01)


def test_the_older_accountant_keeps_to_itself_which_orders_it_left_out(caplog):
    assert rdp_epsilon_of([Spending(0.58, 0.016, 124)], 1e-5) > epsilon_of([Spending(0.58, 0.016, 124)], 1e-5)
    assert caplog.records == []


@settings(max_examples=10, deadline=None)
@given(parts=st.lists(st.builds(Spending, noises, rates, st.integers(1, 50)), min_size=1, max_size=3))
def test_the_older_accountant_never_states_less_for_any_mixture_of_runs(parts):
    assert rdp_epsilon_of(parts, 1e-5) >= epsilon_of(parts, 1e-5) - 1e-6
