"""A step of DP-SGD is what its parts make it, and with the usual parts it is what the accountant was told."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from client.privacy.clipping import Sample, plain
from client.privacy.dpsgd import Mechanism, noisy_sum, packed, private_gradient, usual_parts
from client.privacy.engines import ENGINES, ONE_IMAGE
from client.privacy.sampling import units_of
from common.job import PrivacySection

CPU = torch.device("cpu")
PATIENTS = np.repeat(np.arange(6), [1, 4, 2, 7, 3, 1])
IMAGES = torch.rand(len(PATIENTS), 1, 3, 3, generator=torch.Generator().manual_seed(0))
TARGETS = torch.from_numpy(PATIENTS) % 2


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 2))


def loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def load(rows):
    return IMAGES[torch.from_numpy(rows)], TARGETS[torch.from_numpy(rows)]


def parts(sigma=0.0, rate=1.0, engine=plain, units=PATIENTS, **privacy):
    section = PrivacySection(mechanism="dp-sgd", **privacy)
    grouped = units_of(units, section.unit)
    return usual_parts(section, grouped, Mechanism(sigma, rate), len(grouped), engine, CPU)


class Ones:
    """Noise that can be counted."""

    def like(self, tensor, deviation):
        return torch.full_like(tensor, deviation)


def norm(gradients):
    return math.sqrt(sum(float(gradient.pow(2).sum()) for gradient in gradients))


@pytest.mark.parametrize("physical", [1, 4, 64])
def test_noise_enters_once_a_step_however_many_physical_batches_it_has(physical):
    usual = dataclasses.replace(parts(2.0, clip_norm=0.5, physical_batch=physical), noise=Ones())
    without, _ = private_gradient(network(), loss, load, parts(0.0, clip_norm=0.5, physical_batch=physical))
    found, _ = private_gradient(network(), loss, load, usual)
    for noisy, clean in zip(found, without, strict=True):
        assert torch.allclose(noisy - clean, torch.full_like(noisy, 2.0 * 0.5 / 6), atol=1e-6)


def test_an_empty_sample_gives_noise_alone():
    found, mean = private_gradient(network(), loss, load, dataclasses.replace(parts(1.0, rate=1e-12), noise=Ones()))
    assert mean == 0.0
    assert all(bool((gradient > 0).all()) for gradient in found)


def test_an_audit_can_put_a_broken_part_in_place_of_a_right_one():
    def image_by_image(model, of, sample, clip):
        return plain(model, of, dataclasses.replace(sample, sizes=(1,) * len(sample.images)), clip)

    usual = parts(clip_norm=0.01)
    broken = dataclasses.replace(usual, engine=image_by_image)
    right, wrong = (private_gradient(network(), loss, load, which)[0] for which in (usual, broken))
    assert norm(wrong) > 1.5 * norm(right)


def test_an_audit_can_watch_what_is_released():
    seen = []

    def watched(start, sums, noise, deviation):
        seen.append(noisy_sum(start, sums, noise, deviation))
        return seen[-1]

    usual = dataclasses.replace(parts(1.0), release=watched)
    found, _ = private_gradient(network(), loss, load, usual)
    assert all(torch.equal(a / 6, b) for a, b in zip(seen[0], found, strict=True))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.integers(1, 12),
    st.integers(1, 3),
    st.floats(1e-3, 10),
    st.sampled_from([name for name in ENGINES if name not in ONE_IMAGE]),
)
def test_one_patient_more_moves_the_sum_by_at_most_the_clip_norm(sizes, physical, power, clip, engine):
    # Whatever the sizes of patients, the memory, the engine and how large the images' values are.
    patients = np.repeat(np.arange(len(sizes)), sizes)
    random = np.random.default_rng(len(patients))
    images = torch.from_numpy(random.random((len(patients), 1, 3, 3)).astype(np.float32)) * 10**power
    sums = []
    for count in (len(sizes), len(sizes) - 1):
        kept = patients[patients < count]
        if not len(kept):
            sums.append([torch.zeros_like(parameter) for parameter in network().parameters()])
            continue
        made = parts(clip_norm=clip, physical_batch=physical, engine=ENGINES[engine], units=kept)
        made = dataclasses.replace(made, expected_units=1.0)
        sums.append(
            private_gradient(
                network(), loss, lambda rows: (images[torch.from_numpy(rows)], torch.from_numpy(rows) % 2), made
            )[0]
        )
    assert norm([a - b for a, b in zip(*sums, strict=True)]) <= clip * (1 + 1e-4)


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 12))
def test_no_unit_is_split_over_physical_batches_and_none_holds_more_images_than_fit(sizes, limit):
    units = [np.arange(size) + 100 * number for number, size in enumerate(sizes)]
    groups = list(packed(units, limit))
    assert [rows.tolist() for group in groups for rows in group] == [rows.tolist() for rows in units]
    assert all(len(group) == 1 or sum(map(len, group)) <= limit for group in groups)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 8), st.integers(1, 4), st.sampled_from([name for name in ENGINES if name not in ONE_IMAGE]))
def test_the_images_that_pass_at_once_are_counted_and_never_more_than_the_physical_batch(physical, views, engine):
    model, seen = network(), []
    model.register_forward_pre_hook(lambda _, images: seen.append(len(images[0])))
    usual = parts(physical_batch=physical, engine=ENGINES[engine])
    private_gradient(model, loss, load, dataclasses.replace(usual, views=views))
    assert max(seen) <= physical


@pytest.mark.parametrize("physical", [1, 3, 64])
def test_the_gradient_of_a_unit_in_several_views_is_the_mean_over_them_clipped_once(physical):
    random = torch.Generator().manual_seed(1)
    passed = []

    def augmented(rows):
        images, targets = load(rows)
        passed.append((images + 0.1 * torch.randn(images.shape, generator=random), targets))
        return passed[-1]

    usual = dataclasses.replace(parts(units=PATIENTS, clip_norm=0.05, physical_batch=physical), views=3)
    found, _ = private_gradient(network(), loss, augmented, usual)
    images, targets = (torch.cat(tensors) for tensors in zip(*passed, strict=True))
    assert len(images) == 3 * len(PATIENTS)
    sizes = tuple(3 * int(size) for size in np.bincount(PATIENTS))
    expected, _ = plain(network(), loss, Sample(images, targets, sizes), 0.05)
    assert all(torch.allclose(a, b / 6, atol=1e-6) for a, b in zip(found, expected, strict=True))


def test_the_jobs_number_of_views_is_the_steps():
    assert parts(augmentations=5).views == 5
    assert parts().views == 1
