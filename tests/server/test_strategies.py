"""Every strategy in the table keeps the contract of a strategy."""

from __future__ import annotations

import copy
import itertools
import pickle
import types

import numpy as np
import pytest
from gatherings import ENOUGH_FOR, advance, bits, job_with, random_models, update_of
from safetensors.numpy import load, save

from common.errors import JobError, UpdateError
from common.strategies import PARAMETERS
from common.update import COUNTED
from server.strategies.registry import STRATEGIES, build_strategy

MODEL, *OTHERS = random_models(9)
COUNTS, STEPS, LOSSES = (7, 100, 31, 9, 55, 8, 1000, 1), (3, 5, 2, 9, 1, 4, 7, 6), (0.7, 2, 0.1, 0, 1, 3, 0.5, 40)
UPDATES = [
    update_of(place, OTHERS[place], COUNTS[place], STEPS[place], LOSSES[place], place % 3, OTHERS[place - 1])
    for place in range(8)
]
STREAMING = [name for name, strategy in STRATEGIES.items() if strategy.streaming]
NEEDED = {name: ENOUGH_FOR.get(name, 1) for name in STRATEGIES}


@pytest.fixture(params=STRATEGIES)
def name(request):
    return request.param


def result(name, updates, state=None):
    made = advance(job_with(name), MODEL, updates, state)
    return bits(made.model), bits(made.state)


def two_rounds(name, orders, through=lambda state: state):
    """The second round starts from what the first remembered."""
    job = job_with(name)
    first = advance(job, MODEL, [UPDATES[place] for place in orders[0]])
    second = advance(job, first.model, [UPDATES[place] for place in orders[1]], through(first.state))
    return bits(second.model), bits(second.state)


def test_the_order_of_sites_changes_nothing(name):
    orders = [range(8), range(7, -1, -1), (3, 1, 4, 0, 5, 2, 6, 7), (7, 0, 6, 1, 5, 2, 4, 3)]
    assert all(two_rounds(name, (order, order)) == two_rounds(name, (range(8), range(8))) for order in orders)


def test_the_grouping_of_sites_changes_nothing(name):
    whole = result(name, UPDATES)
    for cuts in ((2, 5), (1, 2), (0, 7), (4, 4)):
        strategy = build_strategy(job_with(name))
        groups = [UPDATES[: cuts[0]], UPDATES[cuts[0] : cuts[1]], UPDATES[cuts[1] :]]
        for order in itertools.permutations(groups):
            total = strategy.begin(MODEL, {})
            for group in order:
                part = strategy.begin(MODEL, {})
                for update in group:
                    part.add(update)
                total.merge(part)
            made = total.finish()
            assert (bits(made.model), bits(made.state)) == whole


@pytest.mark.parametrize("streams", STREAMING)
def test_a_partial_sum_may_come_from_another_process(streams):
    strategy = build_strategy(job_with(streams))
    parts = [strategy.begin(MODEL, {}) for _ in range(2)]
    for place, update in enumerate(UPDATES):
        parts[place % 2].add(update)
    total = strategy.begin(MODEL, {})
    for part in parts:
        total.merge(pickle.loads(pickle.dumps(part)))
    made = total.finish()
    assert (bits(made.model), bits(made.state)) == result(streams, UPDATES)


@pytest.mark.parametrize("streams", STREAMING)
def test_a_partial_sum_travels_without_the_model_that_all_have(streams):
    big = {"w": np.zeros(300_000, np.float32)}
    part = build_strategy(job_with(streams)).begin(big, {})
    part.add(update_of(0, {"w": np.linspace(0.5, 1, 300_000, dtype=np.float32)}))
    sums = 2 if streams in ("scaffold", "fednova") else 1
    assert len(pickle.dumps(part)) < sums * 16.5 * 300_000


def test_the_next_model_has_names_shapes_and_dtypes_of_the_current_one(name):
    for updates in (UPDATES, UPDATES[: NEEDED[name]]):
        made = advance(job_with(name), MODEL, updates)
        assert list(made.model) == list(MODEL)
        assert all(isinstance(tensor, np.ndarray) for tensor in made.model.values())
        forms = {key: (tensor.shape, tensor.dtype) for key, tensor in MODEL.items()}
        assert {key: (tensor.shape, tensor.dtype) for key, tensor in made.model.items()} == forms


def test_sites_that_did_not_move_leave_the_model_as_it_is(name):
    still = [update_of(place, MODEL, COUNTS[place], STEPS[place]) for place in range(NEEDED[name])]
    assert bits(advance(job_with(name), MODEL, still).model) == bits(MODEL)


def test_what_a_strategy_remembers_is_plain_numbers(name):
    made = advance(job_with(name), MODEL, UPDATES)
    for tensor in made.state.values():
        assert isinstance(tensor, np.ndarray)
        assert tensor.dtype in (np.float32, np.float64)
        assert np.isfinite(tensor).all()


def test_a_run_goes_on_after_a_restart_as_if_there_had_been_none(name):
    orders = (range(8), (6, 7, 0, 1, 2, 3, 5))
    assert two_rounds(name, orders, lambda state: load(save(state))) == two_rounds(name, orders)


def test_a_round_changes_neither_the_model_nor_the_memory_that_it_starts_from(name):
    state = advance(job_with(name), MODEL, UPDATES).state
    before = copy.deepcopy((MODEL, state, [update.tensors for update in UPDATES]))
    advance(job_with(name), MODEL, UPDATES, state)
    after = (MODEL, state, [update.tensors for update in UPDATES])
    for left, right in ((before[0], after[0]), (before[1], after[1]), *zip(before[2], after[2], strict=True)):
        assert bits(left) == bits(right)


BAD = {
    "not finite": lambda model: {**model, "b": np.full(5, np.nan, np.float32)},
    "infinite": lambda model: {**model, "w": np.full((3, 4), np.inf, np.float32)},
    "another shape": lambda model: {**model, "b": model["b"][:-1]},
    "another dtype": lambda model: {**model, "w": model["w"].astype(np.float64)},
    "one tensor less": lambda model: {key: tensor for key, tensor in model.items() if key != "scale"},
    "one tensor more": lambda model: {**model, "extra": np.zeros(1, np.float32)},
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_update_is_refused_and_leaves_no_trace(name, fault):
    gathering = build_strategy(job_with(name)).begin(MODEL, {})
    for update in UPDATES[:7]:
        gathering.add(update)
    with pytest.raises(UpdateError, match="site-07"):
        gathering.add(update_of(7, BAD[fault](OTHERS[7]), base=OTHERS[6]))
    assert gathering.updates == 7
    made = gathering.finish()
    assert (bits(made.model), bits(made.state)) == result(name, UPDATES[:7])


@pytest.mark.parametrize(
    ("examples", "steps", "loss"), [(10, 2**40, 0.7), (10, 5, 1e308), (1, 10**300, 0), (2**29, 1, 1)]
)
def test_absurd_numbers_beside_an_update_are_refused_whole_or_bear_no_infinity(name, examples, steps, loss):
    gathering = build_strategy(job_with(name)).begin(MODEL, {})
    for update in UPDATES[:7]:
        gathering.add(update)
    try:
        gathering.add(update_of(7, OTHERS[7], examples, steps, loss))
    except UpdateError:
        made = gathering.finish()
        assert (bits(made.model), bits(made.state)) == result(name, UPDATES[:7])
    else:
        made = gathering.finish()
    assert all(np.isfinite(tensor).all() for tensor in (*made.model.values(), *made.state.values()))


@pytest.mark.parametrize("model", [{"w": np.zeros((0, 3), np.float32)}, {"n": np.array(3)}, {}])
def test_a_model_of_which_nothing_is_shared_or_trained_is_no_trouble(name, model):
    still = [update_of(place, model, COUNTS[place], STEPS[place]) for place in range(8)]
    assert bits(advance(job_with(name), model, still).model) == bits(model)


def test_a_round_without_updates_makes_nothing(name):
    with pytest.raises(UpdateError):
        build_strategy(job_with(name)).begin(MODEL, {}).finish()


def test_what_is_sent_beside_the_model_fits_it(name):
    strategy = build_strategy(job_with(name))
    for state in ({}, advance(job_with(name), MODEL, UPDATES).state):
        for key, tensor in strategy.control(MODEL, state).items():
            shape, dtype = ((8,), np.int64) if key == COUNTED else (MODEL[key].shape, np.float32)
            assert (tensor.shape, tensor.dtype) == (shape, dtype)


def test_a_strategy_bears_the_name_it_is_listed_under(name):
    assert build_strategy(job_with(name)).name == name


def test_every_strategy_has_its_parameters_described():
    assert set(STRATEGIES) == set(PARAMETERS)


def test_a_wrong_name_is_answered_with_the_nearest_right_one():
    with pytest.raises(JobError, match='unknown strategy "fedavgg": did you mean "fedavg"'):
        build_strategy(job_with("fedavgg"))


def test_a_strategy_from_another_package_comes_by_its_entry_point(monkeypatch):
    class Theirs:
        name = "theirs"

        def __init__(self, job):
            self.job = job

    point = types.SimpleNamespace(name="theirs", load=lambda: Theirs)
    monkeypatch.setattr("common.extensions.metadata.entry_points", lambda group: [point])
    assert build_strategy(job_with("theirs", parameters="anything = 3")).name == "theirs"


def test_a_model_that_has_run_away_is_not_handed_on():
    far = [{"w": np.array([sign * 3e38], np.float32)} for sign in (1, -1)]
    job = job_with("fedavgm", parameters="eta = 100")
    with pytest.raises(UpdateError, match='"w" infinite'):
        advance(job, far[0], [update_of(0, far[1])])
