"""Clipping: one unit moves the sum by no more than the clip norm, whatever its gradient, and the engines agree."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from client.privacy.bookkeeping import bookkeeping
from client.privacy.choice import Workload, choose_engine, disagreement, is_right
from client.privacy.clipping import Sample, clip_factors, length, plain
from client.privacy.engines import ENGINES, ONE_IMAGE, named_engine
from client.privacy.layers import Grouping, _Product
from client.privacy.remembered import remembered_engine
from common.architectures import NETWORKS
from common.errors import JobError
from common.job import Job, parse_job
from common.networks import build_network
from common.tasks.registry import build_task

LOSS = torch.nn.functional.cross_entropy
LABELS = ("n", "p")
OF_IMAGES, OF_TABLES = (
    [name for name, one in NETWORKS.items() if one.table == table and one.gives == "values" and not one.bag]
    for table in (False, True)
)


def task_of(**task):
    job = {"name": "j", "sites": ["a"], "task": task, "data": {"collection": "c"}}
    return build_task(Job.model_validate(job))


TASK = task_of(labels=LABELS)


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
    return build_network(parse_job(text))


def work(images_a_unit=1, at_once=8):
    return Workload((1, 32, 32), images_a_unit, at_once)


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
        whole = norm(gradients)
        for into, gradient in zip(total, gradients, strict=True):
            into += gradient * min(1.0, clip / whole)
    model.zero_grad()
    return total


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("small-cnn", (1, 1, 1)),
        ("small-cnn", (3, 1, 2)),
        *((name, (2, 1)) for name in OF_IMAGES if name != "small-cnn"),
    ],
)
def test_plain_is_the_true_clipped_sum_on_every_network_and_a_wrong_engine_is_never_chosen(name, sizes):
    model, units = network(name).double().train(), sample(sizes)
    exact = Sample(units.images.double(), units.targets, units.sizes)
    if disagreement(plain(model, loss, exact, 0.5)[0], plain(model, loss, exact, 0.5)[0]) > 0:
        model.eval()  # in training mode this network draws random numbers, and no two passes are alike
    truth = true_sum(model, units, 0.5)
    assert disagreement(plain(model, loss, exact, 0.5)[0], truth) < 1e-9
    wrong = set()
    for other in ("hooks", "vmap", "bookkeeping", *(["ghost"] if max(sizes) == 1 else [])):
        try:
            apart = disagreement(ENGINES[other](model, loss, exact, 0.5)[0], truth)
        except Exception:
            apart = math.inf
        wrong |= {other} if apart > 1e-6 else set()
    assert not wrong & {"vmap", "bookkeeping"}
    assert choose_engine(network(name), TASK, work(max(sizes))) not in wrong


@pytest.mark.parametrize("sizes", [(2, 1, 4), (1, 1, 1), (3, 3)])
def test_all_engines_give_the_true_sum_on_the_small_network(sizes):
    model, units = network().double(), sample(sizes)
    exact = Sample(units.images.double(), units.targets, units.sizes)
    truth = true_sum(model, units, 0.3)
    for name, engine in ENGINES.items():
        if name not in ONE_IMAGE or max(sizes) == 1:
            gradients, _ = engine(model, loss, exact, 0.3)
            assert disagreement(gradients, truth) < 1e-9


def on_a_table(name, **parameters):
    data = {"collection": "c", "features": [f"f{number}" for number in range(13)]}
    tables = {"task": {"labels": LABELS}, "data": data, "network": {"name": name, "parameters": parameters}}
    return build_network(Job.model_validate({"name": "j", "sites": ["a"]} | tables))


@pytest.mark.parametrize("name", OF_TABLES)
@pytest.mark.parametrize("sizes", [(2, 1, 4), (1, 1, 1)], ids=["patients", "rows"])
@pytest.mark.parametrize("clip", [0.01, 100.0])
def test_all_engines_give_the_true_sum_on_tables(name, sizes, clip):
    model, count = on_a_table(name).double(), sum(sizes)
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(count, 13, generator=random, dtype=torch.float64) * 3
    units = Sample(rows, torch.randint(0, 2, (count,), generator=random), sizes)
    truth = true_sum(model, units, clip)
    for engine_name, engine in ENGINES.items():
        if engine_name not in ONE_IMAGE or max(sizes) == 1:
            assert disagreement(engine(model, loss, units, clip)[0], truth) < 1e-9


@pytest.mark.parametrize("model", [on_a_table("linear"), on_a_table("mlp"), on_a_table("mlp", dropout=0.5)])
def test_fast_engines_are_offered_for_tables(model):
    assert all(is_right(name, model, TASK, Workload((13,), 1, 8)) for name in ("bookkeeping", "vmap"))
    assert choose_engine(model, TASK, Workload((13,), 1, 8)) in ENGINES


LAYERS = {
    "strides, dilation, groups": nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(6, 64, 3, groups=2, dilation=2, padding=2)
    ),
    "few positions, many weights": nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=4), nn.Conv2d(8, 96, 3, padding=1), nn.MaxPool2d(3),
        nn.Conv2d(96, 96, 3, stride=2, padding=1), nn.Conv2d(96, 96, 1),
    ),
    "padding by name and by reflection": nn.Sequential(
        nn.Conv2d(1, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", bias=False)
    ),
    "other layers": nn.Sequential(
        nn.ConvTranspose2d(1, 4, 2, stride=2), nn.PReLU(4), nn.InstanceNorm2d(4, affine=True), nn.AvgPool2d(8),
        nn.Flatten(2), nn.LayerNorm(64), nn.Linear(64, 32, bias=False),
    ),
    "a residual added in place": nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(inplace=True)),
}  # fmt: skip


@pytest.mark.parametrize("name", list(LAYERS))
@pytest.mark.parametrize("sizes", [(1, 1), (2, 1, 4)], ids=["images", "patients"])
def test_bookkeeping_is_right_on_every_kind_of_layer_or_says_that_it_can_not(name, sizes):
    torch.manual_seed(0)
    model = nn.Sequential(copy.deepcopy(LAYERS[name]), nn.Flatten(), nn.LazyLinear(2)).double()
    units = sample(sizes)
    model(units.images.double())
    exact = Sample(units.images.double(), units.targets, units.sizes)
    for clip in (0.05, 1e9):
        assert disagreement(bookkeeping(model, loss, exact, clip)[0], plain(model, loss, exact, clip)[0]) < 1e-9
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_bookkeeping_in_3d_with_strides_is_right():
    model = build_network(
        parse_job('name = "j"\nsites = ["a"]\n[task]\nlabels = ["n", "p"]\n[data]\ncollection = "c"\n'
                  'size = [16, 16, 16]\n[network]\nname = "resnet18"\n')
    ).double()  # fmt: skip
    images = torch.rand(3, 1, 16, 16, 16, dtype=torch.float64)
    units = Sample(images, torch.tensor([0, 1, 0]), (2, 1))
    assert disagreement(bookkeeping(model, loss, units, 0.1)[0], plain(model, loss, units, 0.1)[0]) < 1e-9


def test_bookkeeping_refuses_a_layer_that_is_used_twice():
    layer = nn.Linear(32, 32)
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.Flatten(), nn.Linear(32 * 32, 2))
    with pytest.raises(TypeError, match="used twice"):
        bookkeeping(model, loss, sample((1, 1)), 1.0)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert not is_right("bookkeeping", model, TASK, work())


def test_a_norm_from_inner_products_is_never_below_the_true_one_where_terms_cancel():
    # Slopes that sum to about nothing over positions that see about the same: what is left is smaller than its terms.
    random = torch.Generator().manual_seed(0)
    for apart in (1.0, 1e-2, 1e-4):
        slopes = torch.randn(4, 64, 3, 3, generator=random)
        slopes -= slopes.mean(dim=(2, 3), keepdim=True)
        images = 5 + apart * torch.randn(4, 64, 3, 3, generator=random)
        product = _Product.of_convolution(nn.Conv2d(64, 64, 1))
        grouping = Grouping((1,) * 4, torch.arange(4))
        found = product.norms(images, slopes, grouping)
        truth = product.gradients(images.double(), slopes.double(), grouping).flatten(1).square().sum(dim=1)
        assert bool((found >= truth * (1 - 1e-6)).all())


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
                assert factor == pytest.approx(1, rel=1e-6)


@given(st.lists(st.integers(1, 9000), min_size=1, max_size=5), st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_a_length_is_that_of_all_numbers_together_however_they_are_cut(sizes, seed):
    random = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(size, generator=random) for size in sizes]
    assert float(length(tensors)) == pytest.approx(float(torch.cat(tensors).double().norm()), rel=1e-6)


def test_a_unit_larger_than_memory_goes_through_in_pieces_and_counts_once():
    model, units = network().double(), sample((5, 2, 7))
    pieces = Sample(units.images.double(), units.targets, units.sizes, at_once=2)
    seen = []
    model.register_forward_pre_hook(lambda _, images: seen.append(len(images[0])))
    gradients, _ = plain(model, loss, pieces, 0.3)
    assert max(seen) == 2
    assert disagreement(gradients, true_sum(model, Sample(pieces.images, units.targets, units.sizes), 0.3)) < 1e-9


@pytest.mark.parametrize("name", list(ENGINES))
def test_a_broken_image_in_a_real_network_costs_only_its_own_unit(name):
    model, size = network(), 1 if name in ONE_IMAGE else 2
    units = sample((size, 1, size))
    broken = Sample(units.images.clone(), units.targets, units.sizes)
    broken.images[size, 0, 5, 5] = math.nan
    rest = [row for row in range(2 * size + 1) if row != size]
    expected, _ = plain(model, loss, Sample(units.images[rest], units.targets[rest], (size, size)), 0.5)
    assert disagreement(ENGINES[name](model, loss, broken, 0.5)[0], expected) < 1e-4


class Doubled:
    """An engine that is wrong by a factor, or only where gradients are clipped, or only where they are not."""

    def __init__(self, clipped, free):
        self.clipped, self.free = clipped, free

    def __call__(self, model, of, units, clip):
        gradients, losses = plain(model, of, units, clip)
        return [gradient * (self.free if math.isinf(clip) else self.clipped) for gradient in gradients], losses


@pytest.mark.parametrize("wrong", [Doubled(2, 2), Doubled(2, 1), Doubled(1, 2), Doubled(math.nan, 1), Doubled(0, 0)])
def test_a_wrong_engine_is_never_chosen(monkeypatch, wrong):
    for name in ENGINES.keys() - {"plain"}:
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
    task = task_of(labels=labels, multilabel=len(labels) == 1)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, task.outputs))
    assert all(is_right(name, net, task, Workload((1, 8, 8), 1, 8)) for name in ENGINES)


@pytest.mark.parametrize("name", ["hooks", "vmap"])
def test_where_memory_has_no_room_for_a_gradient_an_image_the_plain_engine_is_taken(monkeypatch, name):
    monkeypatch.setattr("client.privacy.choice._seconds", lambda engine, *_: 0.0 if engine == name else 1.0)
    assert choose_engine(network(), TASK, work(1, at_once=8)) == name
    assert choose_engine(network(), TASK, work(1, at_once=2)) == "plain"
    assert choose_engine(network(), TASK, work(6, at_once=8)) == "plain"
    assert choose_engine(network(), TASK, work(1, at_once=1_000_000)) != name


def test_ghost_clipping_is_offered_for_units_of_one_image_only(monkeypatch):
    monkeypatch.setattr("client.privacy.choice._seconds", lambda engine, *_: 0.0 if engine == "ghost" else 1.0)
    assert choose_engine(network(), TASK, work(1)) == "ghost"
    assert choose_engine(network(), TASK, work(2)) != "ghost"
    with pytest.raises(JobError, match="one image and one view"):
        named_engine("ghost", 2)


def test_the_choice_of_an_engine_is_made_once_and_kept_for_the_next_start(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr("client.privacy.remembered.choose_engine", lambda *_: made.append(1) or "vmap")
    a_job = parse_job('name = "j"\nsites = ["a"]\n[task]\nlabels = ["n", "p"]\n[data]\ncollection = "c"\n')
    for usual, calls in ((1, 1), (1, 1), (2, 2)):
        monkeypatch.setattr("client.privacy.remembered._CHOSEN", {})  # as a new process starts
        assert remembered_engine(network(), TASK, work(usual), a_job, tmp_path / "cache") == "vmap"
        assert len(made) == calls
    monkeypatch.setattr("client.privacy.remembered._CHOSEN", {})
    for file in (tmp_path / "cache").iterdir():
        file.write_text('{"engine": "unheard of"')
    assert remembered_engine(network(), TASK, work(1), a_job, tmp_path / "cache") == "vmap"
    assert len(made) == 3


def test_an_unknown_engine_is_refused():
    with pytest.raises(JobError, match="there are auto, plain, bookkeeping, vmap, hooks, ghost"):
        named_engine("gost")


def test_choosing_an_engine_changes_no_parameter_and_leaves_no_gradient():
    model = network()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    choose_engine(model, TASK, work())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    assert np.isfinite(float(before[0].sum()))
