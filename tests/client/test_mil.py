"""Attention over bags: what is empty counts nothing, order counts nothing, and it trains with and without privacy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from client.dataset import CaseSet
from client.evaluation import Split, evaluate
from client.privacy.choice import Workload, is_right
from client.privacy.clipping import Sample, plain
from client.privacy.engines import ENGINES
from client.summary import in_plain_words
from client.training import Mechanism, train_round
from common.errors import JobError
from common.job import Job, parse_job
from common.networks import build_network
from common.tasks.registry import build_task

CPU = torch.device("cpu")


def job(extra="", *, size="[5, 16, 16]", bag="slide", network="attention-mil", channels=1, scale="unit") -> Job:
    return parse_job(f"""
name = "j"
sites = ["a"]
[task]
labels = ["n", "p"]
[training]
learning_rate = 0.1
batch_size = 8
[data]
collection = "c"
bag = "{bag}"
size = {size}
channels = {channels}
scale = "{scale}"
[network]
name = "{network}"
{extra}""")


SMALL = "parameters = { width = 8, hidden = 16 }\n"


def bags(count, seed=0):
    """Bags of five noisy images, of which those of the class "p" have one with a bright square."""
    random = np.random.default_rng(seed)
    images = random.random((count, 1, 5, 16, 16)).astype(np.float32) * 0.5
    labels = tuple("np"[number % 2] for number in range(count))
    for number in range(1, count, 2):
        images[number, 0, random.integers(5), 4:12, 4:12] += 0.4
    return CaseSet(images, labels, np.arange(count))


@pytest.mark.parametrize("scale", ["unit", "standard"])
def test_empty_places_of_a_bag_and_the_order_of_its_images_change_nothing(scale):
    network = build_network(job(SMALL, scale=scale))
    images = torch.rand(2, 1, 5, 16, 16)
    images[:, :, 3:] = 0
    alone, turned = network(images[:, :, :3]), network(images[:, :, [3, 2, 0, 4, 1]])
    assert torch.allclose(network(images), alone, atol=1e-5)
    assert torch.allclose(network(images), turned, atol=1e-5)
    assert torch.isfinite(network(torch.zeros(1, 1, 5, 16, 16))).all()


@pytest.mark.parametrize("encoder", ["small-cnn", "resnet18"])
def test_the_images_of_a_bag_may_go_through_either_network(encoder):
    network = build_network(job(f'parameters = {{ encoder = "{encoder}" }}\n', size="[2, 32, 32]", channels=3))
    assert network(torch.rand(2, 3, 2, 32, 32)).shape == (2, 2)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"network": "small-cnn"}, 'small-cnn is for single images, and data.bag is "slide": choose one of att'),
        ({"bag": "none", "size": "[16, 16]"}, 'attention-mil is for bags, and data.bag is "none"'),
        ({"extra": 'parameters = { encoder = "vgg" }\n'}, 'encoder is "small-cnn", with width, or "resnet18"'),
        ({"size": "[16, 16]"}, "a bag needs a size of three numbers"),
        ({"size": "[2, 4, 16]"}, "an image has at least 8 pixels"),
    ],
)  # fmt: skip
def test_a_job_that_makes_no_bags_says_why(wrong, complaint):
    with pytest.raises(JobError, match=complaint):
        build_network(job(**wrong))


@pytest.mark.parametrize("name", ["bookkeeping", "vmap"])
def test_the_fast_engines_are_right_on_bags(name):
    a_job = job(SMALL)
    work = Workload((1, 5, 16, 16), 2, 8)
    assert is_right(name, build_network(a_job), build_task(a_job), work)


@pytest.mark.parametrize("name", ["plain", "bookkeeping", "vmap"])
def test_no_patients_bags_move_the_sum_by_more_than_the_clip_norm(name):
    a_job, data = job(SMALL), bags(6)
    task = build_task(a_job)
    network = build_network(a_job).double()
    images = torch.from_numpy(data.images).double() * torch.tensor([1, 50, 1e-3, 1e3, 1, 1]).view(-1, 1, 1, 1, 1)
    sample = Sample(images, task.targets(data), (2, 1, 3))
    whole, _ = ENGINES[name](network, task.loss, sample, 0.01)
    fewer, _ = ENGINES[name](network, task.loss, Sample(images[:3], sample.targets[:3], (2, 1)), 0.01)
    moved = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(whole, fewer, strict=True)))
    assert 0 < moved <= 0.01 * (1 + 1e-5)
    truth, _ = plain(network, task.loss, sample, 0.01)
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(whole, truth, strict=True))


def test_it_finds_the_one_image_that_counts():
    a_job = job(SMALL)
    task, network, data = build_task(a_job), build_network(a_job), bags(80)
    for number in range(1, 13):
        train_round(network, data, task.targets(data), task, a_job, number, mechanism=None, device=CPU)
    held_out = bags(40, seed=9)
    assert evaluate(network, Split(held_out, task.targets(held_out)), task, CPU)["eval.auc"] > 0.9


def test_a_private_step_of_a_patients_bags_is_taken():
    a_job = job(SMALL + '[privacy]\nmechanism = "dp-sgd"\nengine = "bookkeeping"\n')
    task, network, data = build_task(a_job), build_network(a_job), bags(12)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    mechanism = Mechanism(noise_multiplier=1.0, sample_rate=0.5)
    result = train_round(network, data, task.targets(data), task, a_job, 1, mechanism=mechanism, device=CPU)
    assert result.steps >= 1
    assert math.isfinite(result.loss)
    assert all(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_the_steward_reads_what_a_bag_is():
    assert "of each slide up to 5 tiles of 0.5 micrometres a pixel, 16 x 16 pixels" in " ".join(in_plain_words(job()))
    assert "of each study up to 5 images, 16 x 16 pixels" in " ".join(in_plain_words(job(bag="study")))
