"""Clipping: one unit moves the sum by no more than the clip norm, whatever its gradient, and the engines agree."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from client.privacy.choice import Workload, choose_engine, disagreement, is_right, named_engine
from client.privacy.clipping import ENGINES, Sample, clip_factors, plain
from common.errors import JobError
from common.job import TaskSection, parse_job
from common.networks import NETWORKS, build_network
from common.tasks.registry import build_task

LOSS = torch.nn.functional.cross_entropy
LABELS = ("n", "p")
TASK = build_task(TaskSection(labels=LABELS))


def loss(outputs, targets):
    return LOSS(outputs, targets, reduction="none")


def network(name="small-cnn"):
    text = f"""
name = "j"
sites = ["a"]
[task]
labels = ["n", "p"]
[data]
collection = "c"
size = [32, 32]
[network]
name = "{name}"
"""
    return build_network(parse_job(text), 2)


def work(images_a_unit=1, at_once=8):
    return Workload((1, 32, 32), LABELS, images_a_unit, at_once)


def sample(sizes, seed=0):
    random = torch.Generator().manual_seed(seed)
    count = sum(sizes)
    return Sample(
        torch.rand(count, 1, 32, 32, generator=random), torch.randint(0, 2, (count,), generator=random), tuple(sizes)
    )


def norm(gradients):
    return math.sqrt(sum(float(gradient.pow(2).sum()) for gradient in gradients))


def true_sum(model, units, clip):
    """By hand, in float64: each unit's own gradient of its mean loss, clipped, summed."""
    total, start = [torch.zeros_like(parameter) for parameter in model.parameters()], 0
    for size in units.sizes:
        rows = slice(start, start + size)
        start += size
        model.zero_grad()
        loss(model(units.images[rows].double()), units.targets[rows]).mean().backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        length = norm(gradients)
        for into, gradient in zip(total, gradients, strict=True):
            into += gradient * min(1.0, clip / length)
    model.zero_grad()
    return total


@pytest.mark.slow
@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 1, 2)], ids=["images", "patients"])
def test_plain_is_the_true_clipped_sum_on_every_network_and_a_wrong_engine_is_never_chosen(name, sizes):
    model, units = network(name).double().train(), sample(sizes)
    exact = Sample(units.images.double(), units.targets, units.sizes)
    if disagreement(plain(model, loss, exact, 0.5)[0], plain(model, loss, exact, 0.5)[0]) > 0:
        model.eval()  # in training mode this network draws random numbers, and no two passes are alike
    truth = true_sum(model, units, 0.5)
    assert disagreement(plain(model, loss, exact, 0.5)[0], truth) < 1e-9
    wrong = set()
    for other in ("hooks", "vmap"):
        try:
            apart = disagreement(ENGINES[other](model, loss, exact, 0.5)[0], truth)
        except Exception:
            apart = math.inf
        wrong |= {other} if apart > 1e-6 else set()
    assert "vmap" not in wrong
    assert choose_engine(network(name), TASK, work(max(sizes))) not in wrong


def test_all_engines_give_the_true_sum_on_the_small_network():
    model, units = network().double(), sample((2, 1, 4))
    exact = Sample(units.images.double(), units.targets, units.sizes)
    truth = true_sum(model, units, 0.3)
    for engine in ENGINES.values():
        gradients, _ = engine(model, loss, exact, 0.3)
        assert disagreement(gradients, truth) < 1e-9


class Poisoned(nn.Module):
    """A linear layer whose gradient is whatever the image says: zero, huge, infinite or not a number."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, images):
        return self.layer(images.flatten(1)[:, :4])


@pytest.mark.parametrize("engine", list(ENGINES.values()), ids=list(ENGINES))
@pytest.mark.parametrize("value", [0.0, 1.0, 1e30, math.inf, -math.inf, math.nan])
def test_one_unit_moves_the_sum_by_at_most_the_clip_norm_whatever_its_gradient(engine, value):
    torch.manual_seed(0)
    model, clip = Poisoned(), 0.7
    others = torch.rand(3, 1, 2, 2)
    poisoned = torch.cat([others, torch.full((1, 1, 2, 2), value)])
    targets = torch.tensor([0, 1, 0, 1])
    without, _ = engine(model, loss, Sample(others, targets[:3], (1, 1, 1)), clip)
    found, total_loss = engine(model, loss, Sample(poisoned, targets, (1, 1, 1, 1)), clip)
    assert all(bool(torch.isfinite(gradient).all()) for gradient in found)
    assert norm([a - b for a, b in zip(found, without, strict=True)]) <= clip * (1 + 1e-5)
    assert math.isfinite(total_loss)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(min_value=0, width=32) | st.just(math.nan) | st.just(math.inf), min_size=1, max_size=8),
    st.floats(1e-3, 1e3),
)
def test_a_clipped_norm_is_never_over_the_bound_and_short_gradients_stay(norms, clip):
    values = torch.tensor(norms, dtype=torch.float32)
    factors = clip_factors(values, clip)
    for value, factor in zip(values.tolist(), factors.tolist(), strict=True):
        if not math.isfinite(value):
            assert factor == 0
        else:
            assert value * factor <= clip * (1 + 1e-5)
            if value <= clip:
                assert factor == 1


def test_a_unit_larger_than_memory_goes_through_in_pieces_and_counts_once():
    model, units = network().double(), sample((5, 2, 7))
    pieces = Sample(units.images.double(), units.targets, units.sizes, at_once=2)
    seen = []
    model.register_forward_pre_hook(lambda _, images: seen.append(len(images[0])))
    gradients, _ = plain(model, loss, pieces, 0.3)
    assert max(seen) == 2
    assert disagreement(gradients, true_sum(model, Sample(pieces.images, units.targets, units.sizes), 0.3)) < 1e-9


@pytest.mark.parametrize("engine", list(ENGINES.values()), ids=list(ENGINES))
def test_a_broken_image_in_a_real_network_costs_only_its_own_unit(engine):
    model, units = network(), sample((2, 1, 2))
    broken = Sample(units.images.clone(), units.targets, units.sizes)
    broken.images[2, 0, 5, 5] = math.nan
    rest = [0, 1, 3, 4]
    expected, _ = plain(model, loss, Sample(units.images[rest], units.targets[rest], (2, 2)), 0.5)
    assert disagreement(engine(model, loss, broken, 0.5)[0], expected) < 1e-4


class Doubled:
    """An engine that is wrong by a factor, or only where gradients are clipped, or only where they are not."""

    def __init__(self, clipped, free):
        self.clipped, self.free = clipped, free

    def __call__(self, model, of, units, clip):
        gradients, losses = plain(model, of, units, clip)
        return [gradient * (self.free if math.isinf(clip) else self.clipped) for gradient in gradients], losses


@pytest.mark.parametrize("wrong", [Doubled(2, 2), Doubled(2, 1), Doubled(1, 2), Doubled(math.nan, 1), Doubled(0, 0)])
def test_a_wrong_engine_is_never_chosen(monkeypatch, wrong):
    for name in ("hooks", "vmap"):
        monkeypatch.setitem(ENGINES, name, wrong)
        assert not is_right(name, network(), TASK, work())
    assert choose_engine(network(), TASK, work()) == "plain"


def test_an_engine_that_is_right_only_in_evaluation_mode_is_not_right(monkeypatch):
    def sly(model, of, units, clip):
        gradients, losses = plain(model, of, units, clip)
        return [gradient * (2 if model.training else 1) for gradient in gradients], losses

    monkeypatch.setitem(ENGINES, "vmap", sly)
    assert not is_right("vmap", network(), TASK, work())


@pytest.mark.parametrize("labels", [("a", "b", "c"), ("a",)])
def test_engines_are_proved_with_the_tasks_own_loss(labels):
    task = build_task(TaskSection(labels=labels, multilabel=len(labels) == 1))
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, task.outputs))
    assert all(is_right(name, net, task, Workload((1, 8, 8), labels, 1, 8)) for name in ENGINES)


@pytest.mark.parametrize("name", ["hooks", "vmap"])
def test_where_memory_has_no_room_for_a_gradient_an_image_the_plain_engine_is_taken(monkeypatch, name):
    monkeypatch.setattr("client.privacy.choice._seconds", lambda engine, *_: 0.0 if engine == name else 1.0)
    assert choose_engine(network(), TASK, work(1, at_once=8)) == name
    assert choose_engine(network(), TASK, work(1, at_once=2)) == "plain"
    assert choose_engine(network(), TASK, work(6, at_once=8)) == "plain"
    assert choose_engine(network(), TASK, work(1, at_once=1_000_000)) == "plain"


def test_an_unknown_engine_is_refused():
    with pytest.raises(JobError, match="there are auto, plain, vmap, hooks"):
        named_engine("ghost")


def test_choosing_an_engine_changes_no_parameter_and_leaves_no_gradient():
    model = network()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    choose_engine(model, TASK, work())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    assert np.isfinite(float(before[0].sum()))
