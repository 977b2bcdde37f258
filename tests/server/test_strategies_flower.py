"""Our strategies beside Flower's own of the same name, driven through their public methods.

Where Flower departs from the paper the test says how, and takes the difference out.
"""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import strategy as flower
from flwr.supercore.task_identity import TaskIdentity
from gatherings import advance, job_with, update_of
from playground import PlaygroundGrid

COUNTS = (7, 100, 31, 9, 55, 8, 60, 12, 90, 33)
LOSSES = (0.7, 2.0, 0.1, 0.4, 1.0, 3.0, 0.5, 0.8, 1.2, 0.3, 0.6, 0.9, 1.1, 0.2, 2.5)


@pytest.fixture(autouse=True)
def _known_to_flower():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SUPERLINK_NODE_ID


def models(count, seed):
    random = np.random.default_rng(seed)
    return [
        {"w": random.normal(size=(3, 4)).astype(np.float32), "b": random.normal(size=5).astype(np.float32)}
        for _ in range(count)
    ]


def reply(node, model, examples, loss):
    asked = Message(RecordDict(), node, MessageType.TRAIN)
    asked.metadata.__dict__["_message_id"] = f"m{node}"
    numbers = MetricRecord({"num-examples": examples, "train_loss": loss})
    arrays = ArrayRecord({name: Array(tensor) for name, tensor in model.items()})
    return Message(RecordDict({"arrays": arrays, "metrics": numbers}), reply_to=asked)


def theirs(strategy, start, rounds, counts=COUNTS):
    """What Flower's strategy makes of the rounds' updates, one model after the other."""
    grid = PlaygroundGrid({f"site-{number}": lambda request: None for number in range(len(rounds[0]))})
    arrays, made = ArrayRecord({name: Array(tensor) for name, tensor in start.items()}), []
    for number, updates in enumerate(rounds, 1):
        list(strategy.configure_train(number, arrays, ConfigRecord(), grid))
        replies = [reply(100 + place, model, counts[place], LOSSES[place]) for place, model in enumerate(updates)]
        arrays, _ = strategy.aggregate_train(number, replies)
        made.append({name: array.numpy() for name, array in arrays.items()})
    return made


def ours(job, start, rounds, counts=COUNTS):
    model, state, made = start, {}, []
    for updates in rounds:
        sent = [update_of(place, tensors, counts[place], loss=LOSSES[place]) for place, tensors in enumerate(updates)]
        next_one = advance(job, model, sent, state)
        model, state = next_one.model, next_one.state
        made.append(model)
    return made


def assert_same(left, right, rtol=1e-5, atol=1e-6):
    assert len(left) == len(right)
    for mine, other in zip(left, right, strict=True):
        for name in mine:
            np.testing.assert_allclose(mine[name], other[name], rtol=rtol, atol=atol)


def a_run(sites=10, rounds=4):
    return models(1, 0)[0], [models(sites, number + 1) for number in range(rounds)]


def test_fedavg_is_flowers():
    start, rounds = a_run()
    assert_same(ours(job_with("fedavg", 10), start, rounds), theirs(flower.FedAvg(), start, rounds))


def test_fedavgm_is_flowers():
    start, rounds = a_run()
    job = job_with("fedavgm", 10, parameters="eta = 0.5\nbeta = 0.7")
    assert_same(
        ours(job, start, rounds), theirs(flower.FedAvgM(server_learning_rate=0.5, server_momentum=0.7), start, rounds)
    )


@pytest.mark.parametrize(("name", "kind"), [("fedyogi", flower.FedYogi), ("fedadagrad", flower.FedAdagrad)])
def test_an_adaptive_strategy_is_flowers_but_for_the_first_second_moment(name, kind):
    """Flower starts it at 0, the paper (algorithm 2) at tau^2 or more: with a tau this small there is no difference."""
    start, rounds = a_run()
    job = job_with(name, 10, parameters="eta = 0.05\ntau = 1e-7")
    assert_same(ours(job, start, rounds), theirs(kind(eta=0.05, tau=1e-7), start, rounds))


def test_fedadam_is_flowers_but_for_the_correction_of_its_start():
    """Flower scales eta by sqrt(1 - beta_2^(t+1)) / (1 - beta_1^(t+1)), which the paper (algorithm 2) does not."""
    start, rounds = a_run(rounds=6)
    for number in range(len(rounds)):
        factor = np.sqrt(1 - 0.99 ** (number + 2)) / (1 - 0.9 ** (number + 2))
        eta = float(0.05 / factor)
        mine = ours(job_with("fedadam", 10, parameters="eta = 0.05\ntau = 1e-7"), start, rounds[: number + 1])
        given = kept_at(flower.FedAdam, eta, start, rounds[: number + 1], mine)
        assert_same(mine[-1:], [given], atol=1e-5)


def kept_at(kind, eta, start, rounds, path):
    """Flower's last model of a run in which each round starts from the model in `path`."""
    strategy = kind(eta=eta, tau=1e-7)
    grid = PlaygroundGrid({f"site-{number}": lambda request: None for number in range(len(rounds[0]))})
    for number, (current, updates) in enumerate(zip([start, *path], rounds, strict=False), 1):
        list(
            strategy.configure_train(
                number, ArrayRecord({name: Array(tensor) for name, tensor in current.items()}), ConfigRecord(), grid
            )
        )
        replies = [reply(100 + place, model, COUNTS[place], 1.0) for place, model in enumerate(updates)]
        arrays, _ = strategy.aggregate_train(number, replies)
    return {name: array.numpy() for name, array in arrays.items()}


@pytest.mark.parametrize("q", [0.0, 0.2, 1.0, 3.0])
def test_qfedavg_is_flowers(q):
    start, rounds = a_run()
    job = job_with("qfedavg", 10, parameters=f"q = {q}")
    given = flower.QFedAvg(client_learning_rate=0.1, q=q, train_loss_key="train_loss")
    assert_same(ours(job, start, rounds), theirs(given, start, rounds), rtol=1e-4, atol=1e-5)


def test_the_median_is_flowers():
    for sites in (9, 10):
        start, rounds = a_run(sites)
        assert_same(ours(job_with("median", sites), start, rounds), theirs(flower.FedMedian(), start, rounds))


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.2, 0.4])
def test_the_trimmed_mean_is_flowers_where_the_share_is_a_whole_number_of_sites(beta):
    start, rounds = a_run()
    job = job_with("trimmed-mean", 10, parameters=f"beta = {beta}")
    assert_same(ours(job, start, rounds), theirs(flower.FedTrimmedAvg(beta=beta), start, rounds))


ALIKE = (10,) * 15
"""Flower weights the updates that Krum picks by their examples; ours count the same, as in the paper."""


@pytest.mark.parametrize("f", [1, 2, 3])
def test_krum_and_multi_krum_are_flowers(f):
    start, rounds = a_run()
    krum, many = job_with("krum", 10, parameters=f"f = {f}"), job_with("multi-krum", 10, parameters=f"f = {f}\nm = 4")
    given = flower.Krum(num_malicious_nodes=f), flower.MultiKrum(num_malicious_nodes=f, num_nodes_to_select=4)
    assert_same(ours(krum, start, rounds, ALIKE), theirs(given[0], start, rounds, ALIKE))
    assert_same(ours(many, start, rounds, ALIKE), theirs(given[1], start, rounds, ALIKE))


def test_bulyan_around_the_median_is_flowers():
    """With f = 0 both take all updates; for f > 0 Flower picks by one pass of Krum, the paper one by one."""
    start, rounds = a_run()
    given = flower.Bulyan(num_malicious_nodes=0)
    job = job_with("bulyan", 10, parameters="f = 0")
    assert_same(ours(job, start, rounds, ALIKE), theirs(given, start, rounds, ALIKE))


def one_by_one(contents, f, wanted):
    """Bulyan's own rule by Flower's Krum: the best update is taken out, and Krum looks at what is left."""
    left, chosen = list(contents), []
    while len(chosen) < wanted:
        best = flower.multikrum.select_multikrum(left, f, 1)[0]
        chosen.append(best)
        left = [content for content in left if content is not best]
    return chosen


def test_bulyan_is_flowers_when_that_picks_one_by_one():
    """With f below 3 the last picks look at one neighbour each, so that two are always equally good."""
    start, rounds = a_run(15)
    given = flower.Bulyan(num_malicious_nodes=3, selection_rule=one_by_one)
    job = job_with("bulyan", 15, parameters="f = 3")
    assert_same(ours(job, start, rounds, ALIKE), theirs(given, start, rounds, ALIKE))
