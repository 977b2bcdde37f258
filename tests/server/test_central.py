"""Central privacy: no site moves the model by more than is paid for, and the report says who is trusted with what."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playground import HonestSite, PlaygroundGrid, job_of, model_of
from scipy.stats import norm

from client.policy import Policy, check_job
from common.errors import RefusedError
from common.job import parse_job
from common.trust import who_is_trusted
from server.central import Central, ClippedSum, split_noise
from server.execution import execute
from server.registry import Registry
from server.report import run_data, run_report
from server.strategies.fedavg import FedAvg

MODEL = {"w": np.zeros((4, 3), np.float32), "b": np.ones(5, np.float32), "steps": np.array(7, np.int64)}


def job(clipping="fixed", rounds=5, sites=3, epsilon=8.0, clip=1.0):
    names = ", ".join(f'"s{number}"' for number in range(sites))
    return parse_job(
        f'name = "j"\nsites = [{names}]\n[task]\nlabels = ["n", "p"]\n[data]\ncollection = "c"\n'
        f'[aggregation]\nrounds = {rounds}\n[privacy]\nmechanism = "central"\nclipping = "{clipping}"\n'
        f"epsilon = {epsilon}\nclip_norm = {clip}\n"
    )


def moved(length, seed=0):
    """MODEL with its floats moved by a vector of this length."""
    random = np.random.default_rng(seed)
    steps = {name: random.normal(size=tensor.shape) for name, tensor in MODEL.items() if tensor.dtype.kind == "f"}
    whole = math.sqrt(sum(float((step**2).sum()) for step in steps.values()))
    return {
        name: (tensor + steps[name] * length / whole).astype(np.float32) if name in steps else tensor
        for name, tensor in MODEL.items()
    }


def distance(left, right):
    return math.sqrt(sum(float(((left[n].astype(float) - right[n]) ** 2).sum()) for n in ("w", "b")))


class NoNoise:
    """Takes the place of the noise where the algebra is looked at."""

    def normal(self, mean, deviation, shape=None):
        return np.zeros(shape) if shape is not None else 0.0


@settings(deadline=None)
@given(
    lengths=st.lists(st.floats(0, 50), min_size=1, max_size=6),
    leaver=st.floats(0, 1000),
    clip=st.floats(0.1, 10),
    sites=st.integers(7, 20),
)
def test_a_site_more_moves_the_model_by_at_most_the_clip_norm_over_the_sites(lengths, leaver, clip, sites):
    without, everyone = ClippedSum(MODEL, clip), ClippedSum(MODEL, clip)
    for seed, length in enumerate(lengths):
        for total in (without, everyone):
            total.add(moved(length, seed), 1, "s")
    everyone.add(moved(leaver, 99), 1_000_000, "leaver")
    apart = distance(everyone.noisy_mean(sites, 0.0, NoNoise()), without.noisy_mean(sites, 0.0, NoNoise()))
    assert apart <= clip / sites * (1 + 1e-3) + 1e-5
    assert everyone.noisy_mean(sites, 0.0, NoNoise())["steps"] == 7


def test_small_updates_are_averaged_as_they_are_and_whoever_is_missing_counts_as_no_change():
    total = ClippedSum(MODEL, 10.0)
    total.add(moved(3.0, 1), 5, "s0")
    total.add(moved(3.0, 1), 500, "s1")
    assert total.unclipped == 2
    assert distance(total.noisy_mean(2, 0.0, NoNoise()), MODEL) == pytest.approx(3.0, rel=1e-4)
    assert distance(total.noisy_mean(4, 0.0, NoNoise()), MODEL) == pytest.approx(1.5, rel=1e-4)


def test_the_noise_has_the_size_that_was_paid_for():
    model = {"w": np.zeros(200_000, np.float32)}
    total = ClippedSum(model, 2.0)
    total.add(model, 1, "s0")
    noisy = total.noisy_mean(4, 3.0 * 2.0, np.random.default_rng(1))
    assert noisy["w"].std() == pytest.approx(3.0 * 2.0 / 4, rel=0.01)


def test_a_run_keeps_its_epsilon_and_it_is_that_of_the_gaussian_mechanism():
    wanted = job(rounds=10)
    central = Central(wanted, FedAvg(wanted))
    for number in range(1, 11):
        total = ClippedSum(MODEL, central.clip_norm)
        total.add(moved(0.5), 1, "s0")
        _, last = central.finish(total, number)
    mu = math.sqrt(10) / last.noise_multiplier
    delta = norm.cdf(mu / 2 - last.epsilon / mu) - math.exp(last.epsilon) * norm.cdf(-mu / 2 - last.epsilon / mu)
    assert 7.9 < last.epsilon <= 8.0
    assert 0.9e-5 < delta <= 1e-5  # at the true epsilon exactly 1e-5: ours is not smaller


def test_the_count_and_the_sum_together_cost_what_is_accounted():
    for multiplier in (0.3, 1.0, 5.0):
        of_sum, of_count = split_noise(multiplier, 50)
        assert of_sum**-2 + (2 * of_count) ** -2 == pytest.approx(multiplier**-2)
        assert of_sum >= multiplier


def test_the_adaptive_clip_norm_comes_to_the_quantile_of_the_updates():
    lengths = np.linspace(0.5, 4.5, 41)
    wanted = job("adaptive", rounds=60, sites=41, epsilon=900.0, clip=0.1)
    central = Central(wanted, FedAvg(wanted))
    for number in range(1, 61):
        total = ClippedSum(MODEL, central.clip_norm)
        for seed, length in enumerate(lengths):
            total.add(moved(length, seed), 1, "s")
        central.finish(total, number)
    assert central.clip_norm == pytest.approx(np.median(lengths), rel=0.3)


@pytest.fixture
def registry(tmp_path):
    return Registry(f"sqlite:///{tmp_path / 'registry.sqlite'}", tmp_path / "models")


def test_a_whole_run_is_recorded_with_its_epsilon_and_goes_on_with_the_clip_norm_it_had(registry):
    text = 'rounds = 4\n[privacy]\nmechanism = "central"\nclipping = "adaptive"\nepsilon = 50.0'
    a_job = job_of(["north", "south"], text)
    federation = {"north": HonestSite("north", 2400), "south": HonestSite("south", 700, target=-1.0)}
    name = registry.submit(a_job, model_of())
    registry.claim(name)

    def fall_silent(request):
        if request.number == 3:
            raise KeyboardInterrupt
        return federation["south"](request)

    grid = PlaygroundGrid(federation | {"south": fall_silent})
    with pytest.raises(KeyboardInterrupt):
        execute(registry, name, grid, lambda: grid.node_ids)
    registry.interrupt_running()
    reached = registry.start_of(name)[1].clip_norm
    assert reached is not None
    assert reached != a_job.privacy.clip_norm
    registry.resume(name)
    registry.claim(name)
    grid = PlaygroundGrid(federation)
    assert execute(registry, name, grid, lambda: grid.node_ids) == "completed"
    detail = registry.run_detail(name)
    trained = [record.central for record in detail.rounds if record.kind == "train"]
    assert trained[2].clip_norm == reached
    assert [central.epsilon for central in trained] == sorted(central.epsilon for central in trained)
    assert 45 < trained[-1].epsilon <= 50
    assert "must be trusted" in run_data(detail)["trust"]
    assert any("must be trusted" in str(part) for part in run_report(detail).renderables)


def test_a_site_sends_exact_updates_only_where_its_policy_trusts_the_coordinator():
    with pytest.raises(RefusedError, match="trust the coordinator"):
        check_job(Policy(collections=("*",)), job())
    check_job(Policy(collections=("*",), trust_coordinator=True), job())


def test_every_mechanism_says_who_must_be_trusted():
    local, none = job().model_copy(), job().model_copy()
    said = {
        mechanism: who_is_trusted(
            local.model_copy(update={"privacy": none.privacy.model_copy(update={"mechanism": mechanism})})
        )
        for mechanism in ("none", "dp-sgd", "central")
    }
    assert "Everybody must be trusted" in said["none"]
    assert "not the coordinator" in said["dp-sgd"]
    assert "exact model" in said["central"]
