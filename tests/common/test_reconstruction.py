import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from common.errors import JobError
from common.job import Job
from common.networks import build_network
from common.tasks.kspace import column_masks, measured, zero_filled
from common.tasks.parameters import Reconstruction as Parameters
from common.tasks.registry import build_task


def job(size=(32, 32), network="residual-unet", parameters=None, net=None, **data):
    task = {"kind": "reconstruction", "parameters": parameters or {}}
    data = {"collection": "c", "size": list(size), **data}
    made = {"name": network, "parameters": net or {}}
    return Job.model_validate({"name": "j", "sites": ["a"], "task": task, "data": data, "network": made})


def pictures(count=3, size=(32, 32)):
    images = torch.zeros(count, 1, *size)
    images[..., 8:24, 10:20] = 0.6
    images[..., 12:16, 12:26] = 0.9
    return images


@pytest.mark.parametrize("size", [(32, 32), (31, 45), (8, 16, 24)])
def test_an_image_of_which_all_is_measured_comes_back_as_it_was(size):
    images = torch.rand(2, 1, *size)
    assert torch.allclose(zero_filled(measured(images, torch.ones(2, size[-1]))), images, atol=1e-5)


def test_what_is_measured_is_the_centred_fourier_transform_in_the_masks_columns():
    images, masks = torch.rand(1, 1, 32, 48), torch.ones(1, 48)
    masks[:, 5:20] = 0
    whole = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(images[0, 0].numpy()), norm="ortho"))
    assert np.allclose(measured(images, masks)[0].numpy(), whole * masks.numpy(), atol=1e-4)


@pytest.mark.parametrize("mask", ["random", "equispaced"])
def test_the_middle_is_always_measured_and_one_column_of_so_many_as_the_job_says(mask):
    settings = Parameters(mask=mask, acceleration=4, center_fraction=0.08)
    masks = column_masks(100, 100, settings, torch.Generator().manual_seed(0))
    assert masks[:, 46:54].all()
    assert float(masks.mean()) == pytest.approx(0.25, abs=0.02)
    assert len({tuple(mask.tolist()) for mask in masks}) > 1


def test_models_are_compared_under_one_mask_and_trained_under_many():
    task, images = build_task(job()), pictures()
    first, _ = task.inputs(images, images, None)
    again, _ = task.inputs(images[:1], images[:1], None)
    drawn, _ = task.inputs(images, images, torch.Generator().manual_seed(0))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[0], first[2])
    assert not torch.equal(drawn[0], drawn[2])


def test_psnr_ssim_and_nmse_are_what_they_are_defined_as():
    task, true = build_task(job()), pictures()
    found = (true + 0.1).clamp(max=1)
    scores = task.scores(torch.cat([found[:2], true[2:]]), true).numpy()
    assert scores[0, 0] == pytest.approx(20, abs=1e-3)
    assert scores[0, 2] == pytest.approx(0.01 * 32 * 32 / float(true[0].square().sum()), rel=1e-4)
    assert scores[2].tolist() == pytest.approx([60.0, 1.0, 0.0], abs=1e-6)
    assert 0 < scores[0, 1] < 1


def test_an_empty_image_has_no_nmse_and_a_broken_network_is_no_error():
    task = build_task(job())
    scores = task.scores(torch.full((1, 1, 32, 32), torch.nan), torch.zeros(1, 1, 32, 32))
    assert scores[0, 2].isnan()
    assert "nmse" not in task.metrics(scores.numpy(), np.zeros(0))


@given(some.integers(1, 6), some.integers(0, 2**32 - 1))
def test_one_patient_more_moves_a_tally_by_no_more_than_its_sensitivity(patients, seed):
    random, task = np.random.default_rng(seed), build_task(job())
    owner = random.integers(0, patients, 12)
    scores = random.normal(0, (40, 2, 2), (12, 3)).astype(np.float32)
    scores[random.random(12) < 0.3, 2] = np.nan
    whole, less = (task.tally(scores[rows], np.zeros(0), owner[rows]) for rows in (owner >= 0, owner != owner[0]))
    assert np.linalg.norm(whole.values - less.values) <= whole.sensitivity + 1e-9


def test_metrics_from_a_tally_without_noise_are_the_metrics():
    task, true = build_task(job()), pictures()
    scores = task.scores(true * torch.tensor([0.8, 0.9, 0.95]).reshape(3, 1, 1, 1), true).numpy()
    exact, found = task.metrics(scores, true), task.metrics_of(task.tally(scores, true, np.arange(3)))
    for name in ("psnr", "ssim", "nmse"):
        assert found[name] == pytest.approx(exact[name], rel=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (8, 16, 32)])
def test_an_unrolled_network_that_adds_nothing_gives_what_was_measured(size):
    wanted = job(size, "unrolled-cnn", {"sees": "k-space"}, {"cascades": 2})
    task, network = build_task(wanted), build_network(wanted)
    for name, weight in network.named_parameters():
        weight.data.zero_() if "layers" in name else None
    images = torch.rand(2, 1, *size)
    seen, _ = task.inputs(images, images, None)
    plain, _ = build_task(job(size)).inputs(images, images, None)
    assert torch.allclose(task.infer(network, seen), plain, atol=1e-4)


@pytest.mark.parametrize("loss", ["l1", "ssim-l1"])
@pytest.mark.parametrize(("network", "sees"), [("residual-unet", "image"), ("unrolled-cnn", "k-space")])
def test_a_few_steps_bring_an_image_nearer_to_the_whole_one(network, sees, loss):
    wanted = job((32, 32), network, {"sees": sees, "loss": loss}, {"width": 8})
    task, model = build_task(wanted), build_network(wanted)
    images, random = pictures(4), torch.Generator().manual_seed(0)
    optimizer, losses = torch.optim.Adam(model.parameters(), 3e-3), []
    for _ in range(25):
        loss_of = task.loss(model(task.inputs(images, images, random)[0]), images).mean()
        optimizer.zero_grad()
        loss_of.backward()
        optimizer.step()
        losses.append(float(loss_of.detach()))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"channels": 3}, "data.channels.*grey"),
        ({"patch": [16, 16]}, "data.patch.*whole image"),
        ({"scale": "standard"}, "data.scale.*unit"),
        ({"parameters": {"center_fraction": 0.3}}, "lower one of them"),
        ({"network": "unrolled-cnn"}, 'task.parameters.sees = "k-space"'),
        ({"parameters": {"sees": "k-space"}}, "adds to its input, which has 3 channels"),
        ({"network": "small-cnn"}, "small-cnn is not for reconstruction"),
    ],
)
def test_what_k_space_can_not_be_made_of_is_said(given, said):
    with pytest.raises(JobError, match=said):
        build_network(job(**given))


def test_a_reconstruction_needs_no_labels_and_keeps_the_best_model_by_ssim():
    assert job().aggregation.criterion == "ssim"
