"""Robust aggregation: what a few sites send, of whatever size, does not decide; and none of it piles up in memory."""

from __future__ import annotations

import resource
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from gatherings import advance, bits, job_with, random_models, update_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.errors import JobError, UpdateError
from server.strategies import spool as spool_file
from server.strategies.registry import STRATEGIES, build_strategy

ANY = st.floats(width=32, allow_nan=False, allow_infinity=False)
ZERO = {"w": np.zeros(5, np.float32)}
ROBUST = [name for name, strategy in STRATEGIES.items() if not strategy.streaming]


def rows(count):
    return arrays(np.float32, (count, 5), elements=ANY)


def aggregate(name, honest, lying=(), parameters="", places=None):
    """The lying sites' names are spread among the honest ones'."""
    values = [*honest, *lying]
    places = places or range(len(values))
    updates = [update_of(place, {"w": value}) for place, value in zip(places, values, strict=True)]
    return advance(job_with(name, sites=max(8, len(values)), parameters=parameters), ZERO, updates).model["w"]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 4), st.data())
def test_the_median_stays_among_the_honest_values_while_most_sites_are_honest(lying, data):
    honest = data.draw(rows(lying + 1 + data.draw(st.integers(0, 3))))
    found = aggregate("median", honest, data.draw(rows(lying)))
    assert (honest.min(axis=0) <= found).all()
    assert (found <= honest.max(axis=0)).all()


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 4), st.sampled_from([0.05, 0.1, 0.2, 0.29, 0.3, 0.4]), st.data())
def test_the_trimmed_mean_stays_among_the_honest_values_while_no_more_lie_than_are_cut(least, beta, data):
    sites = data.draw(st.integers(3, 12))
    lying = min(int(np.ceil(round(beta * sites, 9))), (sites - 1) // 2, least)
    honest = data.draw(rows(sites - lying))
    found = aggregate("trimmed-mean", honest, data.draw(rows(lying)), f"beta = {beta}")
    assert (honest.min(axis=0) <= found).all()
    assert (found <= honest.max(axis=0)).all()


@settings(max_examples=200, deadline=None)
@given(rows(7))
def test_krum_picks_one_of_the_updates_as_it_was_sent(values):
    assert aggregate("krum", values).tobytes() in {row.tobytes() for row in values}


@pytest.mark.parametrize("strategy", ["krum", "multi-krum", "bulyan", "median", "trimmed-mean"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_updates_from_afar_do_not_decide_even_if_the_lying_sites_agree(strategy, data):
    f = data.draw(st.integers(1, 2))
    sites = (4 if strategy == "bulyan" else 2) * f + 3
    honest = data.draw(arrays(np.float32, (sites - f, 5), elements=st.floats(-1, 1, width=32)))
    far = st.floats(1e3, 2.0**127, width=32).map(lambda x: np.float32(x))
    way = np.array([data.draw(st.sampled_from([-1, 1])) for _ in range(5)], np.float32)
    same = data.draw(far) * way
    lying = [same if data.draw(st.booleans()) else data.draw(far) * way for _ in range(f)]
    places = data.draw(st.permutations(range(sites)))
    parameters = {"median": "", "trimmed-mean": f"beta = {f / sites}"}.get(strategy, f"f = {f}")
    found = aggregate(strategy, honest, lying, parameters, places)
    assert (honest.min(axis=0) <= found).all()
    assert (found <= honest.max(axis=0)).all()


@pytest.mark.parametrize("strategy", ROBUST)
@settings(max_examples=50, deadline=None)
@given(arrays(np.float32, 5, elements=ANY), st.integers(7, 9))
def test_equal_updates_are_given_back_to_the_bit(strategy, value, sites):
    assert aggregate(strategy, [value] * sites).tobytes() == value.tobytes()


@settings(max_examples=100, deadline=None)
@given(rows(6))
def test_the_trimmed_mean_that_trims_nothing_is_the_mean_to_rounding(values):
    plain = values.astype(np.float64).mean(axis=0).astype(np.float32)
    np.testing.assert_allclose(aggregate("trimmed-mean", values, (), "beta = 0"), plain, rtol=1e-6)


def test_a_share_to_trim_is_rounded_up_so_that_few_sites_are_protected_too():
    honest = np.array([[1] * 5, [2] * 5, [3] * 5], np.float32)
    assert aggregate("trimmed-mean", honest, [np.full(5, 1e30, np.float32)]).tolist() == [2.5] * 5
    exact = np.arange(100, dtype=np.float32)[:, None] ** 3 * np.ones(5, np.float32)
    assert aggregate("trimmed-mean", exact, (), "beta = 0.29")[0] == np.float32(exact[29:71, 0].mean(dtype=float))


def test_multi_krum_averages_the_m_best():
    honest = np.array([[0] * 5, [1] * 5, [2] * 5, [3] * 5], np.float32)
    far = [np.full(5, 1e6, np.float32)]
    assert aggregate("multi-krum", honest, far).tolist() == [1.5] * 5  # by default all but f
    assert aggregate("multi-krum", honest, far, "m = 2").tolist() == [1.5] * 5
    assert aggregate("multi-krum", honest, far, "m = 1").tolist() == aggregate("krum", honest, far).tolist()


@pytest.mark.parametrize(
    ("strategy", "parameters", "needed"),
    [("krum", "f = 3", 9), ("multi-krum", "f = 1\nm = 8", 9), ("bulyan", "f = 2", 11), ("multi-krum", "f = 3", 9)],
)
def test_a_job_with_too_few_sites_for_a_strategy_is_refused_before_it_starts(strategy, parameters, needed):
    with pytest.raises(JobError, match=f'"{strategy}" needs {needed} updates in a round, and the job has 8 sites'):
        build_strategy(job_with(strategy, parameters=parameters))
    build_strategy(job_with(strategy, parameters=parameters, sites=needed))
    with pytest.raises(JobError, match=f"needs {needed} updates in a round, and the job has 8"):
        build_strategy(job_with(strategy, sites=20, parameters=parameters, aggregation="sites_per_round = 8"))


@pytest.mark.parametrize(("strategy", "needed"), [("krum", 5), ("multi-krum", 5), ("bulyan", 7)])
def test_a_round_that_too_many_sites_dropped_out_of_says_so(strategy, needed):
    models = random_models(needed)
    updates = [update_of(place, models[place]) for place in range(needed - 1)]
    with pytest.raises(UpdateError, match=f"needs {needed} updates in a round, and has {needed - 1}"):
        advance(job_with(strategy), models[-1], updates)


@pytest.mark.parametrize("strategy", ROBUST)
def test_the_size_of_blocks_changes_nothing(strategy, monkeypatch):
    models = random_models(10)
    updates = [update_of(place, models[place]) for place in range(9)]
    whole = bits(advance(job_with(strategy, sites=9), models[-1], updates).model)
    for values in (1, 9 * 4, 100):
        monkeypatch.setattr(spool_file, "BLOCK_VALUES", values)
        assert bits(advance(job_with(strategy, sites=9), models[-1], updates).model) == whole


@pytest.mark.parametrize("strategy", ROBUST)
def test_memory_does_not_grow_with_the_sites(strategy, monkeypatch):
    monkeypatch.setattr(spool_file, "BLOCK_VALUES", 1 << 16)

    def peak(sites):
        model = {"w": np.zeros(400_000, np.float32)}
        job = job_with(strategy, sites=sites)
        tracemalloc.start()
        gathering = build_strategy(job).begin(model, {})
        for place in range(sites):
            gathering.add(update_of(place, {"w": model["w"] + np.float32(place)}))
        gathering.finish()
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    assert peak(32) < 1.1 * peak(8) + 1e6


def files_in(folder):
    return list(Path(folder).iterdir())


def test_updates_on_disk_are_gone_with_the_round_however_it_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = len(files_in("/proc/self/fd"))
    models = random_models(5)
    for sites in (3, 5):  # too few, and enough
        gathering = build_strategy(job_with("krum")).begin(models[0], {})
        for place in range(sites):
            gathering.add(update_of(place, models[place]))
        assert files_in(tmp_path) == []  # no name that a killed process could leave behind
        if sites == 5:
            gathering.finish()
        else:
            with pytest.raises(UpdateError):
                gathering.finish()
        del gathering
    assert len(files_in("/proc/self/fd")) == before


def test_a_full_disk_costs_one_update_and_not_the_round():
    model = {"w": np.zeros(20_000, np.float32)}
    sent = [update_of(place, {"w": np.full(20_000, place, np.float32)}) for place in range(6)]
    gathering = build_strategy(job_with("median")).begin(model, {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, limits[1]))  # three updates, and a part of the fourth
    try:
        for update in sent[:3]:
            gathering.add(update)
        with pytest.raises(UpdateError, match="site-03: the update can't be kept for aggregation: File too large"):
            gathering.add(sent[3])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert gathering.updates == 3
    for update in sent[4:]:
        gathering.add(update)
    assert gathering.finish().model["w"].tolist() == [2.0] * 20_000  # of 0, 1, 2, 4, 5
