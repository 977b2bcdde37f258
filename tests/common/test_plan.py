"""The plan tells beforehand what the sites will do: the same noise, the same steps, the same epsilon."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.job import parse_job
from common.plan import GUESS, plan_privacy
from common.privacy import Spending, epsilon_of, noise_for


def job(batch=64, rounds=10, epsilon=8.0, mechanism="dp-sgd", extra=""):
    return parse_job(
        f'name = "j"\nsites = ["north", "south"]\n[task]\nlabels = ["n", "p"]\n[data]\ncollection = "c"\n'
        f"[training]\nbatch_size = {batch}\n[aggregation]\nrounds = {rounds}\n"
        f'[privacy]\nmechanism = "{mechanism}"\nepsilon = {epsilon}\n{extra}'
    )


@settings(max_examples=8, deadline=None)
@given(units=st.integers(30, 4000), batch=st.integers(8, 256), rounds=st.integers(1, 30), epsilon=st.floats(0.5, 10))
def test_the_noise_is_what_the_accountant_asks_for_and_the_epsilon_is_never_passed(units, batch, rounds, epsilon):
    north = plan_privacy(job(batch, rounds, epsilon), 1000, units={"north": units, "south": units}).sites[0]
    assert north.noise_multiplier == noise_for(epsilon, 1e-5, north.sample_rate, north.steps)
    assert north.curve[-1] == (rounds, pytest.approx(north.epsilon))
    whole = [Spending(north.noise_multiplier, north.sample_rate, north.steps)]
    assert north.epsilon == epsilon_of(whole, 1e-5) <= epsilon
    assert [value for _, value in north.curve] == sorted(value for _, value in north.curve)
    assert north.rdp_epsilon >= north.epsilon - 1e-6


def test_a_site_steps_as_the_plan_says():
    import numpy as np

    from client.dataset import CaseSet
    from client.training import plan_steps

    cases = CaseSet(np.zeros((300, 1, 8, 8), np.float32), ("n",) * 300, np.arange(300))
    site = plan_steps(job(), cases, 300)
    planned = plan_privacy(job(), 1000, units={"north": 300}).sites[0]
    assert (site.steps_per_round, site.sample_rate) == (planned.steps_per_round, planned.sample_rate)


def test_what_nobody_told_is_guessed_and_said():
    north, south = plan_privacy(job(), 1000, units={"south": 80}).sites
    assert (north.units, north.guessed) == (GUESS, True)
    assert (south.units, south.guessed) == (80, False)


def test_a_budget_that_is_too_small_refuses_with_the_nearest_job_that_fits():
    found = plan_privacy(job(), 1000, units={"north": 300, "south": 300}, left={"north": 3.2, "south": 0.0})
    assert not found.fits
    assert "privacy.epsilon = 3.2" in found.sites[0].refusal
    assert found.sites[0].epsilon <= 3.2
    assert "no job fits" in found.sites[1].refusal
    assert plan_privacy(job(epsilon=3.2), 1000, units={"north": 300}, left={"north": 3.2}).fits


def test_more_sites_more_units_and_fewer_parameters_leave_more_signal():
    def share(parameters=20_000, north=300, south=300):
        return plan_privacy(job(), parameters, units={"north": north, "south": south}).noise_share

    assert share(parameters=80_000) == pytest.approx(2 * share())
    assert share(north=3000, south=3000) < share()
    alone = plan_privacy(job(), 20_000, units={"north": 300}).sites[0].noise_share
    assert share() == pytest.approx(alone / math.sqrt(2))


def test_a_large_network_on_few_patients_is_called_hopeless_and_a_small_one_on_many_good():
    few = plan_privacy(job(), 7_000_000, units={"north": 200, "south": 200})
    many = plan_privacy(job(batch=128, rounds=20), 23_650, units={"north": 2400, "south": 1200})
    assert few.verdict.startswith("hopeless")
    assert many.verdict.startswith("good")


@pytest.mark.parametrize(("a_job", "units", "word"), [
    (job(extra="delta = 0.01\n"), {"north": 500}, "delta"),
    (job(batch=8), {}, "small for DP-SGD"),
    (job(batch=900), {"north": 500}, "everybody"),
    (job(extra='unit = "image"\n'), {}, "not patients"),
    (job(epsilon=50.0), {}, "promises little"),
    (job(mechanism="none"), {}, "no differential privacy"),
    (job(mechanism="central"), {}, "must trust it"),
])  # fmt: skip
def test_what_a_reviewer_would_object_to_is_said(a_job, units, word):
    assert any(word in warning for warning in plan_privacy(a_job, 1000, units=units).warnings)
