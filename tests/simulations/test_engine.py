"""A simulated federation is a deployed one without the wire: the same bits, however it is run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_federation import SITES, job, population, same

from client.training import train_round
from common.errors import DataError, UsageError
from common.networks import build_network, initial_model, tensors_of
from common.strategies import PARAMETERS
from common.tasks.registry import build_task
from server.exchange import Stopped
from simulations.engine import simulate
from simulations.faults import Fault


@pytest.mark.parametrize("strategy", PARAMETERS)
def test_every_strategy_learns(strategy):
    extra = {"fedbuff": "parameters.K = 3", "qfedavg": "parameters.q = 0.2", "fedadagrad": "parameters.eta = 0.05"}
    rounds = 20 if strategy == "cyclic" else 12
    found = simulate(job(strategy, rounds=rounds, aggregation=extra.get(strategy, "")), population(count=30))
    assert found.records[-1].kind == "test"
    aucs = [site.metrics["eval.auc"] for site in found.records[-1].sites]
    assert np.mean(aucs) > 0.9


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold", "feddyn", "ditto", "fedrep", "fedbn"])
def test_one_site_alone_is_plain_training_to_the_bit(strategy):
    one = ("alder",)
    if strategy in ("ditto", "fedavg", "fedbn", "scaffold"):
        wanted = job("fedavg", sites=one)
        found = simulate(job(strategy, sites=one), population(one))
    else:
        pytest.skip("its one site does not train plainly: it has a regulariser, or trains in two phases")
    task, data = build_task(wanted), population(one)["alder"].splits["train"]
    network = build_network(wanted)
    torch.set_num_threads(1)
    for number in range(1, wanted.aggregation.rounds + 1):
        train_round(network, data, task.targets(data), task, wanted, number, mechanism=None, device=torch.device("cpu"))
    plain = tensors_of(network)
    if strategy == "fedbn":
        plain |= {name: tensor for name, tensor in initial_model(wanted).items() if name in ("1.weight", "1.bias")}
        assert found.model["0.weight"].tobytes() == plain["0.weight"].tobytes()
    elif strategy == "scaffold":
        assert all(np.allclose(found.model[name], plain[name], atol=1e-6) for name in plain)
    else:
        assert same(found.model, plain)


def test_two_runs_are_the_same_to_the_bit():
    assert same(simulate(job(), population()).model, simulate(job(), population()).model)


def test_a_hospital_that_the_population_lacks_is_named():
    with pytest.raises(UsageError, match='"elm", which is no hospital'):
        simulate(job(), population(SITES[:4]))


def test_only_the_sites_drawn_for_a_round_are_asked():
    found = simulate(job(rounds=8, aggregation="sites_per_round = 2"), population(), evaluate=False)
    rounds = [tuple(row.site for row in record.sites) for record in found.records]
    assert all(len(sites) == 2 for sites in rounds)
    assert len(set(rounds)) > 2
    again = simulate(job(rounds=8, aggregation="sites_per_round = 2"), population(), evaluate=False)
    assert [tuple(row.site for row in record.sites) for record in again.records] == rounds


def test_cyclic_goes_round():
    found = simulate(job("cyclic", rounds=9), population(), evaluate=False)
    assert [record.sites[0].site for record in found.records] == [*SITES, *SITES[:2]]


def test_local_layers_never_reach_the_coordinator():
    found = simulate(job("fedbn"), population())
    start = initial_model(job("fedbn"))
    kept = {name.removeprefix("layer/") for name in found.memories["alder"]}
    assert kept
    assert all(found.model[name].tobytes() == start[name].tobytes() for name in kept)
    assert all(found.model[f"{layer}.weight"].tobytes() != start[f"{layer}.weight"].tobytes() for layer in (0, 4, 8))
    assert found.memories["alder"]["layer/1.weight"].tobytes() != found.memories["birch"]["layer/1.weight"].tobytes()


def test_a_personal_model_predicts_at_its_own_hospital():
    found = simulate(job("ditto", aggregation="parameters.lambda = 0.0"), population())
    personal = {name.removeprefix("personal/"): tensor for name, tensor in found.memories["birch"].items()}
    assert sorted(personal) == sorted(found.model)
    assert not same({name: personal[name] for name in found.model}, found.model)


def test_stragglers_do_not_hold_fedbuff_up():
    slow = (Fault("straggler", ("gorse",), 50.0),)
    waits = simulate(job("fedavg", rounds=6), population(), faults=slow, evaluate=False)
    asynchronous = job("fedbuff", rounds=6, aggregation="parameters.K = 3")
    goes_on = simulate(asynchronous, population(), faults=slow, evaluate=False)
    assert waits.clock == 6 * 50
    assert goes_on.clock < 20
    assert any("working" in {row.status for row in record.sites} for record in goes_on.records)


def test_an_update_of_an_older_model_counts_in_a_later_round():
    slow = (Fault("straggler", ("alder",), 2.5),)
    text = "parameters.K = 6"
    found = simulate(job("fedbuff", rounds=6, aggregation=text), population(), faults=slow, evaluate=False)
    rows = [row for record in found.records for row in record.sites if row.site == "alder"]
    assert {"working", "aggregated"} <= {row.status for row in rows}
    assert all(np.isfinite(tensor).all() for tensor in found.model.values())


def test_sites_that_drop_out_cost_only_their_turn():
    found = simulate(job(rounds=6), population(), faults=(Fault("drop-out", SITES[:3], 0.5),), evaluate=False)
    failed = [row for record in found.records for row in record.sites if row.status == "failed"]
    assert 3 <= len(failed) <= 15
    assert {row.site for row in failed} <= set(SITES[:3])


def test_a_hospital_that_joins_late_is_not_in_the_rounds_before():
    found = simulate(job(rounds=4), population(), joins={"fir": 3}, evaluate=False)
    there = [{row.site for row in record.sites if row.status == "aggregated"} for record in found.records]
    assert [("fir" in sites) for sites in there] == [False, False, True, True]


@pytest.mark.parametrize("strategy", ["median", "trimmed-mean", "multi-krum", "krum", "bulyan"])
def test_liars_ruin_an_average_but_not_a_robust_one(strategy):
    liars = (Fault("poison", ("cedar",), 30.0),)
    extra = "parameters.beta = 0.2" if strategy == "trimmed-mean" else ""

    def auc(history):
        return float(np.mean([row.metrics.get("eval.auc", 0.5) for row in history.records[-1].sites]))

    robust = auc(simulate(job(strategy, rounds=10, aggregation=extra), population(), faults=liars))
    assert robust > 0.9
    if strategy == "median":
        assert auc(simulate(job("fedavg", rounds=10), population(), faults=liars)) < robust - 0.1


def test_wrong_labels_are_wrong_in_training_only():
    found = simulate(job(rounds=2), population(), faults=(Fault("label-flip", SITES, 1.0),))
    assert np.mean([row.metrics["eval.auc"] for row in found.records[-1].sites]) < 0.5


def test_with_privacy_every_round_is_paid_for_and_the_epsilon_is_kept():
    private = '[privacy]\nmechanism = "dp-sgd"\nepsilon = 4.0\ndelta = 1e-3'
    for strategy in ("fedavg", "scaffold", "ditto", "fedrep"):
        found = simulate(job(strategy, privacy=private), population())
        rows = [row for record in found.records if record.kind == "train" for row in record.sites]
        spent = [row.metrics["privacy.epsilon"] for row in rows]
        assert len(spent) == 3 * len(SITES)
        assert 3.5 < max(spent) <= 4.0


def test_a_site_that_is_drawn_less_often_needs_less_noise():
    private = '[privacy]\nmechanism = "dp-sgd"\nepsilon = 4.0\ndelta = 1e-3'

    def noise(aggregation):
        found = simulate(job(rounds=9, aggregation=aggregation, privacy=private), population(), evaluate=False)
        return max(row.metrics["privacy.noise_multiplier"] for record in found.records for row in record.sites)

    assert noise("sites_per_round = 2") < noise("")


def test_a_killed_run_goes_on_from_its_checkpoint_to_the_same_bits(tmp_path):
    from simulations import notebook

    path = tmp_path / "run" / "checkpoint.safetensors"
    for strategy in ("scaffold", "fedavgm"):
        path.unlink(missing_ok=True)
        whole = simulate(job(strategy, rounds=6), population())
        seen = []

        def stop(seen=seen):
            return len(seen) >= 3

        before, notebook.SAVE_SECONDS = notebook.SAVE_SECONDS, 0.0
        try:
            with pytest.raises(Stopped):
                simulate(
                    job(strategy, rounds=6), population(), checkpoint=path, stopped=stop,
                    watch=lambda record, model, _, seen=seen: seen.append(record) if record.kind == "train" else None,
                )  # fmt: skip
        finally:
            notebook.SAVE_SECONDS = before
        again = simulate(job(strategy, rounds=6), population(), checkpoint=path)
        assert same(again.model, whole.model)
        assert [record.number for record in again.records if record.kind == "train"] == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_of_another_job_is_refused(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(b"nonsense")
    with pytest.raises(DataError, match="no checkpoint can be read"):
        simulate(job(), population(), checkpoint=path)


def test_a_job_for_one_class_of_network_builds_once(monkeypatch):
    from simulations import members

    built = []
    real = members.build_network
    monkeypatch.setattr(members, "build_network", lambda *args: built.append(1) or real(*args))
    simulate(job(), population(), evaluate=False)
    assert len(built) == 1
