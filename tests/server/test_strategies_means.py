"""Strategies that rest on a mean: what equals federated averaging to the bit, and each formula by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from gatherings import advance, bits, job_with, random_models, update_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.errors import JobError, UpdateError
from server.strategies.mean import distance
from server.strategies.registry import build_strategy

MODEL, *OTHERS = random_models(7)
COUNTS, STEPS = (7, 100, 31, 9, 55, 8), (3, 5, 2, 9, 1, 4)
UPDATES = [update_of(place, OTHERS[place], COUNTS[place], STEPS[place]) for place in range(6)]
EQUAL = [update_of(place, OTHERS[place], COUNTS[place], 3) for place in range(6)]
FLOATS = ("w", "b", "scale")
VALUES = arrays(np.float32, 6, elements=st.floats(-(2.0**100), 2.0**100, width=32))
ROUND = st.lists(st.tuples(VALUES, st.integers(1, 10**6)), min_size=1, max_size=6)
BY_SITE = 'weighting = "sites"'


def fedavg(updates, model=MODEL, aggregation="", state=None):
    return bits(advance(job_with("fedavg", aggregation=aggregation), model, updates, state).model)


AS_FEDAVG = {
    "fedprox with mu = 0": ("fedprox", "", ""),
    "fedavgm with beta = 0 and eta = 1": ("fedavgm", "beta = 0\neta = 1", ""),
    "norm-bound with a bound that none reaches": ("norm-bound", "bound = 1e300", ""),
    "fednova with equal steps": ("fednova", "", ""),
    "ditto, of its common model": ("ditto", "", ""),
    "fedrep, of what is shared": ("fedrep", "", ""),
    "fedbn, of what is shared": ("fedbn", "", ""),
    "qfedavg with q = 0, every site counting the same": ("qfedavg", "q = 0", BY_SITE),
    "fedbuff without staleness, every site counting the same": ("fedbuff", "K = 6", BY_SITE),
    "scaffold's model with eta = 1": ("scaffold", "", ""),
}


@pytest.mark.parametrize("case", AS_FEDAVG)
@settings(max_examples=60, deadline=None)
@given(VALUES, st.lists(ROUND, min_size=2, max_size=3))
def test_it_is_fedavg_to_the_bit(case, start, rounds):
    strategy, parameters, aggregation = AS_FEDAVG[case]
    job = job_with(strategy, parameters=parameters)
    model, state = {"w": start}, {}
    for number, updates in enumerate(rounds):
        arrived = [
            update_of(place, {"w": values}, count, 3 + number, loss=place + 0.3)
            for place, (values, count) in enumerate(updates)
        ]
        expected = fedavg(arrived, model, aggregation)
        made = advance(job, model, arrived, state)
        assert bits(made.model) == expected
        model, state = made.model, made.state


@pytest.mark.parametrize(
    "strategy",
    ["fedavg", "fedprox", "scaffold", "fednova", "ditto", "fedrep", "fedbn", "median", "trimmed-mean", "fedbuff",
     "cyclic"],
)  # fmt: skip
@settings(max_examples=40, deadline=None)
@given(VALUES, VALUES, st.integers(1, 10**6), st.integers(1, 1000))
def test_one_site_alone_makes_the_next_model_to_the_bit(strategy, start, values, count, steps):
    made = advance(job_with(strategy), {"w": start}, [update_of(0, {"w": values}, count, steps)])
    assert made.model["w"].tobytes() == values.tobytes()


def test_with_weighting_by_sites_every_site_counts_the_same():
    equal = [update_of(place, OTHERS[place], 1) for place in range(6)]
    assert fedavg(UPDATES, aggregation=BY_SITE) == fedavg(equal)
    assert fedavg(UPDATES, aggregation=BY_SITE) != fedavg(UPDATES)


def test_fednova_with_unequal_steps_is_the_papers_formula():
    made = advance(job_with("fednova"), MODEL, UPDATES).model
    p = np.array(COUNTS) / sum(COUNTS)
    for name in FLOATS:
        moves = sum(
            share * (other[name].astype(float) - MODEL[name]) / tau
            for share, other, tau in zip(p, OTHERS, STEPS, strict=True)
        )
        np.testing.assert_allclose(made[name], MODEL[name] + (p @ STEPS) * moves, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("mu", [0.0, 1e-9, 0.5, 12.0])
def test_fednova_knows_how_far_a_gradient_is_carried(momentum, mu):
    if momentum and mu:
        with pytest.raises(JobError, match="do not go together"):
            nova(momentum, mu)
        return
    for steps in (1, 2, 7, 40):
        weight, velocity = 0.0, 0.0
        for _ in range(steps):  # one unit of gradient in each step, as torch's SGD and the pull carry it
            velocity = momentum * velocity + 1.0 - mu * weight
            weight += 0.1 * velocity
        assert nova(momentum, mu).normaliser(steps) == pytest.approx(weight / 0.1, rel=1e-9)


def nova(momentum, mu):
    return build_strategy(job_with("fednova", aggregation=f"proximal_mu = {mu}", momentum=momentum))


def test_fednova_refuses_what_it_has_no_formula_for():
    with pytest.raises(JobError, match="ever farther"):
        advance(job_with("fednova", aggregation="proximal_mu = 20"), MODEL, UPDATES)
    with pytest.raises(JobError, match="averaging at 0"):
        advance(job_with("fednova", training="averaging = 0.9"), MODEL, UPDATES)


def test_fedavgm_adds_up_its_velocity():
    job = job_with("fedavgm", parameters="beta = 0.5\neta = 2")
    first = advance(job, MODEL, UPDATES)
    mean = advance(job_with("fedavg"), MODEL, UPDATES).model
    second = advance(job, first.model, UPDATES, first.state)
    for name in FLOATS:
        velocity = mean[name].astype(float) - MODEL[name]
        np.testing.assert_allclose(first.model[name], MODEL[name] + 2 * velocity, rtol=1e-6, atol=1e-6)
        velocity = 0.5 * velocity + mean[name] - first.model[name]
        np.testing.assert_allclose(second.model[name], first.model[name] + 2 * velocity, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(second.state[f"velocity/{name}"], velocity, rtol=1e-6, atol=1e-6)


SECOND = {
    "fedadagrad": lambda v, d: v + d**2,
    "fedyogi": lambda v, d: v - 0.01 * d**2 * np.sign(v - d**2),
    "fedadam": lambda v, d: 0.99 * v + 0.01 * d**2,
}


@pytest.mark.parametrize("strategy", SECOND)
def test_an_adaptive_strategy_follows_the_papers_algorithm_step_by_step(strategy):
    beta = 0.0 if strategy == "fedadagrad" else 0.9
    job, model, state = job_with(strategy, parameters="eta = 0.05\ntau = 0.01"), MODEL, {}
    m, v = dict.fromkeys(FLOATS, 0.0), dict.fromkeys(FLOATS, 0.01**2)
    for number in range(4):
        updates = [update_of(place, OTHERS[(place + number) % 6], COUNTS[place]) for place in range(5)]
        mean, made = advance(job_with("fedavg"), model, updates).model, advance(job, model, updates, state)
        for name in FLOATS:
            delta = mean[name].astype(float) - model[name]
            m[name] = beta * m[name] + (1 - beta) * delta
            v[name] = SECOND[strategy](v[name], delta)
            expected = model[name] + 0.05 * m[name] / (np.sqrt(v[name]) + 0.01)
            np.testing.assert_allclose(made.model[name], expected, rtol=1e-6, atol=1e-7)
        model, state = made.model, made.state


@settings(max_examples=100, deadline=None)
@given(st.floats(1e-3, 1e3), st.lists(VALUES, min_size=1, max_size=5), VALUES)
def test_under_norm_bounding_no_round_moves_the_model_farther_than_the_bound(bound, values, start):
    updates = [update_of(place, {"w": value}) for place, value in enumerate(values)]
    made = advance(job_with("norm-bound", parameters=f"bound = {bound}"), {"w": start}, updates).model
    rounding = 4 * math.sqrt(6) * float(np.spacing(np.abs(start).max()))
    assert distance(made, {"w": start}) <= bound * (1 + 1e-5) + rounding


def test_norm_bounding_scales_what_is_too_long_and_leaves_the_rest():
    start = {"w": np.zeros(2, np.float32)}
    long, short = {"w": np.array([30, 40], np.float32)}, {"w": np.array([0.5, 0], np.float32)}
    made = advance(job_with("norm-bound"), start, [update_of(0, long), update_of(1, short)]).model
    np.testing.assert_allclose(made["w"], [(0.6 + 0.5) / 2, 0.4], rtol=1e-6)


def test_qfedavg_is_the_papers_formula():
    losses, q, lipschitz = (0.7, 2.0, 0.1, 0.4, 1.0, 3.0), 2.0, 10.0
    updates = [update_of(place, OTHERS[place], loss=losses[place]) for place in range(6)]
    made = advance(job_with("qfedavg", parameters=f"q = {q}"), MODEL, updates).model
    lengths = [distance(other, MODEL) for other in OTHERS]
    h = sum(q * f ** (q - 1) * (lipschitz * n) ** 2 + lipschitz * f**q for f, n in zip(losses, lengths, strict=True))
    for name in FLOATS:
        step = sum(
            f**q * lipschitz * (MODEL[name].astype(float) - o[name]) for f, o in zip(losses, OTHERS, strict=True)
        )
        np.testing.assert_allclose(made[name], MODEL[name] - step / h, rtol=1e-5, atol=1e-6)


def test_qfedavg_leans_to_the_site_on_which_the_model_does_worst():
    start, ends = {"w": np.zeros(1, np.float32)}, [{"w": np.array([end], np.float32)} for end in (-1, 1)]
    updates = [update_of(0, ends[0], loss=0.5), update_of(1, ends[1], loss=2.0)]
    moves = [advance(job_with("qfedavg", parameters=f"q = {q}"), start, updates).model["w"][0] for q in (0, 1, 3)]
    assert moves[0] == 0
    assert moves[1] > 0
    assert moves[2] > 0


@pytest.mark.parametrize("loss", [math.nan, -0.1, math.inf])
def test_qfedavg_refuses_an_update_without_a_loss(loss):
    with pytest.raises(UpdateError, match="site-00: q-FedAvg needs"):
        advance(job_with("qfedavg"), MODEL, [update_of(0, OTHERS[0], loss=loss)])


def test_fedbuff_counts_old_updates_less_and_moves_the_model_that_there_is_now():
    now, before = {"w": np.array([10.0], np.float32)}, {"w": np.array([4.0], np.float32)}
    fresh = update_of(0, {"w": np.array([11.0], np.float32)})
    old = update_of(1, {"w": np.array([6.0], np.float32)}, staleness=3, base=before)
    made = advance(job_with("fedbuff", parameters="K = 2\neta = 0.5"), now, [old, fresh]).model
    assert made["w"][0] == pytest.approx(10 + 0.5 / 2 * (1 + 2 * (1 + 3) ** -0.5))


def test_a_very_old_update_counts_next_to_nothing_and_is_no_error():
    now, end = {"w": np.zeros(1, np.float32)}, {"w": np.ones(1, np.float32)}
    updates = [update_of(0, now), update_of(1, end, staleness=200, base=now)]
    assert 0 <= advance(job_with("fedbuff", parameters="a = 10"), now, updates).model["w"][0] < 1e-8


def test_feddyn_takes_the_drift_of_all_rounds_off_the_mean():
    job = job_with("feddyn", sites=4, parameters="alpha = 0.5")
    model, state, h = {"w": np.zeros(2, np.float32)}, {}, np.zeros(2)
    for number in range(3):
        ends = [np.array([place + number, -place], np.float32) for place in range(3)]  # one of four sites is away
        made = advance(job, model, [update_of(place, {"w": end}) for place, end in enumerate(ends)], state)
        h = h - 0.5 / 4 * sum(end - model["w"] for end in ends)
        np.testing.assert_allclose(made.model["w"], np.mean(ends, axis=0) - h / 0.5, rtol=1e-6)
        model, state = made.model, made.state
