"""One word changes where a simulation runs, and no bit of what comes out."""

from __future__ import annotations

import os

import numpy as np
import pytest
from small_federation import job, population, same

from simulations.engine import simulate
from simulations.faults import Fault

ray = pytest.importorskip("ray", reason="Ray is an extra, and not installed here")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cluster():
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray spells it so; its workers would stand behind all else
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.mark.parametrize(
    ("strategy", "text", "workers"),
    [
        ("fedavg", "sites_per_round = 3", 2),
        ("median", "", 2),
        ("ditto", "", 1),
        ("fedbuff", "parameters.K = 3", 2),
    ],
)
def test_ray_and_one_process_give_the_same_bits(strategy, text, workers):
    slow = (Fault("straggler", ("birch",), 2.5), Fault("drop-out", ("elm",), 0.5))
    here = simulate(job(strategy, rounds=4, aggregation=text), population(), faults=slow)
    there = simulate(job(strategy, rounds=4, aggregation=text), population(), faults=slow, grid="ray", workers=workers)
    assert same(here.model, there.model)
    assert same(here.kept, there.kept)
    assert here.clock == there.clock
    assert list(here.memories) == list(there.memories)
    assert all(same(here.memories[site], there.memories[site]) for site in here.memories)
    for one, other in zip(here.records, there.records, strict=True):
        assert [(row.site, row.status, row.examples) for row in one.sites] == [
            (row.site, row.status, row.examples) for row in other.sites
        ]
        assert one.score == other.score


def test_a_run_on_ray_goes_on_from_a_checkpoint_of_one_process(tmp_path, monkeypatch):
    from server.exchange import Stopped
    from simulations import notebook

    path, seen = tmp_path / "checkpoint.safetensors", []
    whole = simulate(job("scaffold", rounds=5), population(), evaluate=False)
    monkeypatch.setattr(notebook, "SAVE_SECONDS", 0.0)
    with pytest.raises(Stopped):
        simulate(
            job("scaffold", rounds=5), population(), checkpoint=path, evaluate=False,
            stopped=lambda: len(seen) >= 2, watch=lambda record, model, _: seen.append(record),
        )  # fmt: skip
    again = simulate(job("scaffold", rounds=5), population(), checkpoint=path, grid="ray", workers=2, evaluate=False)
    assert same(again.model, whole.model)
    assert np.isfinite(again.seconds)
