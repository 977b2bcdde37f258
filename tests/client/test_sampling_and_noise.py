"""Sampling and noise are what the accountant was told they are."""

import numpy as np
import pytest
import torch
from scipy import stats

from client.privacy.noise import FastNoise, SecureNoise
from client.privacy.sampling import PoissonSampler, sampling_rate, units_of

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
    for make in (lambda: FastNoise(torch.device("cpu")), SecureNoise):
        assert not torch.equal(make().like(torch.zeros(8), 1.0), make().like(torch.zeros(8), 1.0))


@pytest.mark.parametrize("make", [lambda: FastNoise(torch.device("cpu")), SecureNoise], ids=["fast", "secure"])
def test_noise_is_gaussian_with_the_asked_deviation(make):
    noise = make().like(torch.zeros(20_001, dtype=torch.float64), 2.5).numpy()
    assert noise.shape == (20_001,)
    assert stats.kstest(noise, "norm", args=(0, 2.5)).pvalue > 1e-6
