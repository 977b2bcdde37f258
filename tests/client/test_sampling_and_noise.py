"""Sampling and noise are what the accountant was told they are."""

import numpy as np
import pytest
import torch
from scipy import stats

from client.privacy.noise import DeviceNoise, FastNoise, SecureNoise, make_noise
from client.privacy.randomness import SecureStream
from client.privacy.sampling import PoissonSampler, units_of
from common.privacy import sampling_rate

NOISES = (FastNoise, lambda: DeviceNoise(torch.device("cpu")), SecureNoise)
PATIENTS = np.array([3, 1, 3, 0, 1, 3, 2])


def test_a_patients_images_are_one_unit():
    units = units_of(PATIENTS, "patient")
    assert [sorted(rows.tolist()) for rows in units.images] == [[3], [1, 4], [6], [0, 2, 5]]


def test_with_the_image_as_unit_every_image_is_its_own():
    assert len(units_of(PATIENTS, "image")) == 7


def test_each_unit_is_in_a_step_with_the_accounted_rate_and_independently_of_the_others():
    rate = sampling_rate(60, 200)
    sampler = PoissonSampler(units_of(np.arange(200), "patient"), rate, 16)
    draws = np.zeros((3000, 200), dtype=bool)
    for step in draws:
        step[[int(rows[0]) for rows in sampler.draw()]] = True
    assert rate == pytest.approx(0.3)
    # Six standard errors: fails by chance once in a hundred million runs.
    assert abs(draws.mean() - rate) < 6 * (rate * (1 - rate) / draws.size) ** 0.5
    sizes = draws.sum(axis=1)
    assert sizes.var() == pytest.approx(200 * rate * (1 - rate), rel=0.2)  # a fixed batch size would have none
    assert abs(np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]) < 0.12


def test_a_whole_patient_is_drawn_up_to_the_stated_bound():
    sampler = PoissonSampler(units_of(np.zeros(40, dtype=int), "patient"), 1.0, 16)
    (rows,) = sampler.draw()
    assert len(set(rows.tolist())) == 16


def test_a_batch_larger_than_the_collection_takes_everyone():
    assert sampling_rate(64, 10) == 1.0


def test_two_samplers_and_two_noises_never_repeat_each_other():
    # A seed that can be known makes the noise worthless.
    units = units_of(np.arange(100), "patient")
    draws = [[int(rows[0]) for rows in PoissonSampler(units, 0.5, 1).draw()] for _ in range(2)]
    assert draws[0] != draws[1]
    for make in NOISES:
        assert not torch.equal(make().like(torch.zeros(8), 1.0), make().like(torch.zeros(8), 1.0))


@pytest.mark.parametrize("make", NOISES, ids=["fast", "device", "secure"])
def test_noise_is_gaussian_with_the_asked_deviation(make):
    noise = make().like(torch.zeros(20_001, dtype=torch.float64), 2.5).numpy()
    assert noise.shape == (20_001,)
    assert stats.kstest(noise, "norm", args=(0, 2.5)).pvalue > 1e-6


@pytest.mark.parametrize("make", NOISES, ids=["fast", "device", "secure"])
def test_one_stream_of_noise_never_repeats_itself(make):
    noise = make()
    values = torch.cat([noise.like(torch.zeros(1000), 1.0) for _ in range(10)])
    assert abs(np.corrcoef(values[:5000], values[5000:])[0, 1]) < 0.09  # six standard errors


def test_on_a_cpu_noise_does_not_come_from_torchs_generator_which_keeps_32_bits_of_its_seed():
    one, other = (torch.randn(4, generator=torch.Generator().manual_seed(seed)) for seed in (7, 7 + 2**32))
    assert torch.equal(one, other)  # should this fail one day, torch has mended it
    assert isinstance(make_noise(torch.device("cpu"), secure=False), FastNoise)
    assert isinstance(make_noise(torch.device("cpu"), secure=True), SecureNoise)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_noise_has_its_tensors_shape_and_type(dtype):
    for make in NOISES:
        noise = make().like(torch.zeros(3, 5, dtype=dtype), 0.5)
        assert (noise.shape, noise.dtype) == ((3, 5), dtype)
        assert make().like(torch.zeros(0), 1.0).shape == (0,)


def test_uniform_numbers_are_uniform_and_never_an_end():
    values = SecureStream().uniform(100_000)
    assert 0 < values.min() < values.max() < 1
    assert stats.kstest(values, "uniform").pvalue > 1e-6
