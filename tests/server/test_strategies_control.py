"""Strategies against drift, on quadratics f_i(x) = a_i / 2 ||x - b_i||^2, of which the common optimum is known.

What sites do is written out here in NumPy, from the papers; only the coordinator's part is the program's.
"""

from __future__ import annotations

import numpy as np
import pytest
from gatherings import advance, job_with, update_of

from client.memory import OpenMemory
from common.update import Request, round_before
from server.strategies.registry import build_strategy

CURVE = np.array([[0.2, 3.0], [1.0, 1.0], [4.0, 0.5]])
CENTRE = np.array([[5.0, -1.0], [0.0, 2.0], [-3.0, 4.0]])
COUNTS = (100, 10, 40)
RATE = 0.1


def optimum(weights=(1, 1, 1)):
    stiff = np.array(weights)[:, None] * CURVE
    return (stiff * CENTRE).sum(axis=0) / stiff.sum(axis=0)


def descend(site, start, steps, rate, extra=lambda x: 0.0):
    x = start.copy()
    for _ in range(steps):
        x = x - rate * (CURVE[site] * (x - CENTRE[site]) + extra(x))
    return x


class Quadratics:
    """Three sites, the state that each keeps, and the rounds of one job."""

    def __init__(self, strategy, aggregation="", parameters="", steps=(20, 20, 20), rate=RATE, counts=COUNTS):
        self.job = job_with(strategy, 3, aggregation, parameters, rate=rate)
        self.strategy = build_strategy(self.job)
        self.steps, self.rate, self.counts = steps, rate, counts
        self.model, self.state = {"x": np.zeros(2, np.float32)}, {}
        self.memories, self.number = [OpenMemory() for _ in range(3)], 1

    @property
    def kept(self):
        """What each site goes on from."""
        return np.array([self.remembered(site) for site in range(3)])

    def before(self, site):
        control = self.strategy.control(self.model, self.state)
        return round_before(Request("train", "r", self.number, self.job, {}, control=control), self.job.sites[site])

    def remembered(self, site):
        return self.memories[site].read(self.before(site)).get("x", np.zeros(2))

    def keep(self, site, tensor):
        self.memories[site].write(self.number, {"x": tensor}, self.before(site))

    def visit(self, site):
        """What the site answers from here; what it keeps moves on."""
        x, steps, rate = self.model["x"].astype(float), self.steps[site], self.rate
        control = self.strategy.control(self.model, self.state).get("x", np.zeros(2))
        own, name = self.remembered(site), self.job.aggregation.strategy
        if name == "scaffold":
            end = descend(site, x, steps, rate, lambda _: control - own).astype(np.float32)
            self.keep(site, own - control + (x - end) / (steps * rate))
        elif name == "feddyn":
            alpha = self.job.aggregation.known_parameters.alpha
            end = descend(site, x, steps, rate, lambda y: alpha * (y - x) - own).astype(np.float32)
            self.keep(site, own - alpha * (end - x))
        else:
            end = descend(site, x, steps, rate).astype(np.float32)
        loss = float((CURVE[site] / 2 * (x - CENTRE[site]) ** 2).sum())
        return update_of(site, {"x": end}, self.counts[site], steps, loss)

    def run(self, rounds, there=lambda number: (0, 1, 2), arrives=lambda number, site: True):
        for number in range(rounds):
            sent = [(site, self.visit(site)) for site in there(number)]
            updates = [update for site, update in sent if arrives(number, site)]
            if updates:
                made = advance(self.job, self.model, updates, self.state)
                self.model, self.state, self.number = made.model, made.state, self.number + 1
        return self.model["x"]


def two_of_three(number):
    return sorted(np.random.default_rng(number).permutation(3)[:2])


@pytest.mark.parametrize(("weighting", "weights"), [("sites", (1, 1, 1)), ("examples", COUNTS)])
def test_scaffold_reaches_the_optimum_from_which_fedavg_drifts_away(weighting, weights):
    aggregation = f'weighting = "{weighting}"'
    drifted = Quadratics("fedavg", aggregation).run(400)
    reached = Quadratics("scaffold", aggregation).run(400)
    assert np.abs(drifted - optimum(weights)).max() > 0.3
    np.testing.assert_allclose(reached, optimum(weights), atol=1e-4)


@pytest.mark.parametrize(("weighting", "weights"), [("sites", (1, 1, 1)), ("examples", COUNTS)])
def test_scaffold_reaches_it_with_some_of_the_sites_in_each_round(weighting, weights):
    federation = Quadratics("scaffold", f'weighting = "{weighting}"')
    reached = federation.run(2000, two_of_three)
    shares = np.array(weights) / sum(weights)
    np.testing.assert_allclose(federation.state["c/x"], shares @ federation.kept, atol=1e-3)
    np.testing.assert_allclose(reached, optimum(weights), atol=2e-3)


def test_scaffolds_control_is_the_mean_of_the_sites_own_from_the_first_round_on():
    federation = Quadratics("scaffold", 'weighting = "sites"', steps=(3, 17, 40))
    for number in range(12):
        federation.run(1, lambda _, number=number: ((0,), (0, 1), (2,), (0, 1, 2))[number % 4])
        np.testing.assert_allclose(federation.state["c/x"], federation.kept.mean(axis=0), atol=1e-4)


@pytest.mark.parametrize(("strategy", "parameters"), [("scaffold", ""), ("feddyn", "alpha = 0.5")])
def test_answers_that_are_lost_on_their_way_do_not_lead_away_from_the_optimum(strategy, parameters):
    random = np.random.default_rng(3)
    federation = Quadratics(strategy, 'weighting = "sites"', parameters)
    federation.run(400, arrives=lambda number, site: random.random() > 0.4)
    np.testing.assert_allclose(federation.run(400), optimum(), atol=1e-3)
    if strategy == "scaffold":
        np.testing.assert_allclose(federation.state["c/x"], federation.kept.mean(axis=0), atol=1e-4)


def test_feddyn_reaches_the_optimum_from_which_fedavg_drifts_away():
    drifted = Quadratics("fedavg", 'weighting = "sites"', steps=(200,) * 3).run(200)
    reached = Quadratics("feddyn", parameters="alpha = 0.5", steps=(200,) * 3).run(200)
    assert np.abs(drifted - optimum()).max() > 0.3
    np.testing.assert_allclose(reached, optimum(), atol=1e-4)


def test_feddyn_reaches_it_with_some_of_the_sites_in_each_round():
    reached = Quadratics("feddyn", parameters="alpha = 0.5", steps=(200,) * 3).run(500, two_of_three)
    np.testing.assert_allclose(reached, optimum(), atol=1e-3)


def test_fednova_reaches_the_optimum_that_unequal_steps_bias_fedavg_away_from():
    """Both drift by the length of a round; in short ones only FedAvg is left with an error: the steps' weights."""
    unequal, errors = (1, 5, 25), {}
    for strategy in ("fedavg", "fednova"):
        for rate in (0.008, 0.002, 0.0005):
            found = Quadratics(strategy, 'weighting = "sites"', steps=unequal, rate=rate).run(int(1 / rate))
            errors[strategy, rate] = np.abs(found - optimum()).max()
    assert errors["fedavg", 0.0005] > 0.5
    assert errors["fednova", 0.0005] < 0.05
    assert errors["fednova", 0.0005] < errors["fednova", 0.002] / 3 < errors["fednova", 0.008] / 9


@pytest.mark.parametrize(
    ("strategy", "parameters", "within"),
    [
        ("fedavgm", "beta = 0.5", 1e-4),
        ("fedadam", "eta = 0.02", 0.05),
        ("fedyogi", "eta = 0.02", 0.05),
        ("fedadagrad", "eta = 0.5", 0.05),
        ("fedprox", "", 1e-4),
        ("fedbuff", "", 1e-4),
    ],
)
def test_with_one_step_a_round_there_is_no_drift_and_all_others_reach_the_optimum_too(strategy, parameters, within):
    federation = Quadratics(strategy, 'weighting = "sites"', parameters, steps=(1, 1, 1))
    np.testing.assert_allclose(federation.run(2000), optimum(), atol=within)


def test_qfedavg_evens_out_the_losses():
    def spread(q):
        found = Quadratics("qfedavg", parameters=f"q = {q}", steps=(1, 1, 1)).run(1500)
        losses = (CURVE / 2 * (found - CENTRE) ** 2).sum(axis=1)
        return losses.max() / losses.mean()

    assert spread(5) < spread(1) < spread(0)
