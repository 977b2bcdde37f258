"""The attacks on the real training code: planted faults are caught, honest training is not flagged.

All verdicts are at a confidence of 99.9 %: a right training is flagged here once in a thousand runs, at most.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from client.privacy.clipping import Sample
from client.privacy.engines import ENGINES, ONE_IMAGE
from common.errors import UsageError
from common.job import Job, parse_job
from common.networks import build_network
from common.privacy import Spending
from common.tasks.registry import build_task
from simulations.attack_cli import privacy
from simulations.attacks.canaries import BLANK, Canaries, tapped, with_canaries
from simulations.attacks.claim import Claim
from simulations.attacks.faults import FAULTS, Fault
from simulations.attacks.inversion import invert_updates, psnr, ssim
from simulations.attacks.membership import attack_membership
from simulations.attacks.meters import read_meters
from simulations.attacks.one_run import EVERY_STEP, Audit, AuditSize, audit_in_one_run
from simulations.attacks.subjects import phantom_cases
from simulations.attacks.transcript import Transcript, train_with_canaries

CPU = torch.device("cpu")
CONFIDENCE = 0.999
JOB = """
name = "audited"
sites = ["north"]
task = { labels = ["normal", "pneumonia"] }
data = { collection = "chest", size = [16, 16] }
network = { name = "small-cnn", parameters = { width = 4 } }
training = { batch_size = 8, learning_rate = 0.02 }
aggregation = { rounds = 3 }
"""


def job(*, engine: str = "bookkeeping", physical_batch: int = 128, unit: str = "patient", tables: str = JOB) -> Job:
    privacy = (
        f'mechanism = "dp-sgd", epsilon = 8.0, engine = "{engine}", physical_batch = {physical_batch}, unit = "{unit}"'
    )
    return parse_job(f"{tables}\nprivacy = {{ {privacy} }}\n")


def audit(found: Job, fault: Fault | None, *, canaries: int = 400, image_canaries: int = 0) -> Audit:
    several = 4 if found.privacy.unit == "patient" else 1
    size = AuditSize(canaries, image_canaries, several, found.aggregation.rounds)
    change = fault.plant if fault else None
    return audit_in_one_run(
        phantom_cases(found, 64), found, size, confidence=CONFIDENCE, device=CPU, change_parts=change, seed=1
    )


def fault(name: str) -> Fault:
    return next(each for each in FAULTS if each.name == name)


@pytest.mark.slow
def test_honest_training_is_not_flagged_and_the_bound_is_below_the_claim() -> None:
    found = audit(job(), None, image_canaries=20)
    assert not found.faulty
    assert 0 < found.best.epsilon < found.epsilon <= 8.0
    assert len({bound.view for bound in found.bounds}) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["noise off", "noise by batch part", "seed reused each step", "seed reused each round"]
)
def test_a_planted_fault_is_caught_by_an_attack_and_by_a_meter(name: str) -> None:
    several_parts = name == "noise by batch part"
    found = audit(job(physical_batch=16 if several_parts else 128), fault(name), canaries=600 if several_parts else 400)
    assert found.refuted, f"{name}: {found.best}"
    assert found.best.epsilon > found.epsilon
    assert any(reading.alarm for reading in found.readings)


@pytest.mark.slow
def test_clipping_by_image_instead_of_by_patient_is_caught() -> None:
    found = audit(job(), fault("clipped by image"))
    assert found.refuted, found.best
    [alarm] = [reading for reading in found.readings if reading.alarm]
    assert "share of a step" in alarm.meter
    assert alarm.value == pytest.approx(4 * alarm.expected, rel=0.15)  # four images a patient


@pytest.mark.slow
def test_sampling_more_often_than_was_accounted_is_caught() -> None:
    found = audit(job(), fault("sampled too often"), canaries=300)
    assert found.faulty


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_gives_a_canary_one_clip_norm_along_its_own_direction_and_blanks_nothing(name: str) -> None:
    found, several = job(), 1 if name in ONE_IMAGE else 2
    task = build_task(found)
    canaries = Canaries(np.array([True, False, True]), np.array([True, False]), several)
    network, tapping = tapped(build_network(found), task, found, canaries)
    everyone = with_canaries(phantom_cases(found, 4), canaries, found)
    images = torch.from_numpy(everyone.images[np.arange(4, 4 + 5 * several)])
    targets = tapping.targets(everyone)[4:]
    assert (images[several : 2 * several] == BLANK).all()
    assert (images[4 * several :] == BLANK).all()
    sample = Sample(images[: 3 * several], targets[: 3 * several], (several,) * 3)
    gradients, _ = ENGINES[name](network, tapping.loss, sample, found.privacy.clip_norm)
    torch.testing.assert_close(gradients[-1], torch.tensor([[1.0, 0.0, 1.0]]))
    assert all((gradient == 0).all() for gradient in gradients[:-1])


def test_a_canary_that_is_out_leaves_units_and_images_as_many_as_one_that_is_in() -> None:
    cases, found = phantom_cases(job(), 5, images_each=2), job()
    all_in = with_canaries(cases, Canaries(np.ones(6, bool), np.ones(3, bool), 4), found)
    all_out = with_canaries(cases, Canaries(np.zeros(6, bool), np.zeros(3, bool), 4), found)
    assert all_in.images.shape == all_out.images.shape == (10 + 9 * 4, 1, 16, 16)
    assert all_in.patient_count == all_out.patient_count == 14
    assert all_in.labels == all_out.labels
    np.testing.assert_array_equal(all_in.images[:10], cases.images)
    assert all(wrong != cases.labels[row % 10] for row, wrong in enumerate(all_in.labels[34:]))


def test_an_update_moves_along_a_direction_by_what_the_steps_released_there() -> None:
    found = job(unit="image", tables=JOB.replace("0.02 }", "0.02, momentum = 0.0 }"))
    canaries = Canaries.toss(30, 0, 1, np.random.default_rng(0))
    cases = phantom_cases(found, 64)
    seen = train_with_canaries(cases, found, canaries, 1.0, 2, CPU)
    assert seen.steps.shape == (16, 30)
    expected_units = (64 + 30) / 8
    np.testing.assert_allclose(seen.updates, 0.02 * seen.steps.sum(axis=0) / expected_units, rtol=1e-3, atol=1e-6)


def test_meters_read_a_right_training_right_and_stay_silent() -> None:
    random, claim = np.random.default_rng(0), Claim(Spending(1.5, 0.125, 40), 1e-5)
    alarms = 0
    for _ in range(100):
        coins = random.random(200) < 0.5
        steps = (random.random((40, 200)) < 0.125) * coins + 1.5 * random.standard_normal((40, 200))
        seen = Transcript(Canaries(coins, np.zeros(0, bool), 1), 8, steps, steps.sum(0), np.zeros(0), np.zeros(0))
        readings = read_meters(seen, claim, 0.999)
        alarms += any(reading.alarm for reading in readings)
    assert readings[0].value == pytest.approx(1.5, rel=0.05)
    assert readings[1].value == pytest.approx(0.125, rel=0.5)
    assert alarms <= 2


def test_an_audit_of_a_job_without_privacy_says_that_nothing_is_claimed() -> None:
    with pytest.raises(UsageError, match="claims no privacy"):
        audit(parse_job(JOB), None)


@pytest.mark.slow
def test_membership_is_inferred_from_an_overfitted_model_and_not_from_a_private_one() -> None:
    by_heart = JOB.replace("16, 16", "32, 32").replace("width = 4", "width = 16")
    for old, new in (("learning_rate = 0.02", "learning_rate = 0.003"), ("rounds = 3", "rounds = 1")):
        by_heart = by_heart.replace(old, new + (', optimizer = "adamw", local_epochs = 30' * ("rate" in old)))
    results = []
    for found, rounds in ((parse_job(by_heart), 1), (job(), 3)):
        cases = phantom_cases(found, 80)
        random = np.random.default_rng(0)  # nothing can be learnt from these labels but by heart
        labels = tuple(random.permutation(np.array(cases.labels)))
        cases = type(cases)(cases.images, labels, cases.patients)
        results.append(
            attack_membership(cases, found, models=6, rounds=rounds, confidence=CONFIDENCE, device=CPU, seed=0)
        )
    opened, private = results
    assert opened.auc > 0.62
    assert private.auc < 0.6
    assert not private.refuted
    assert max(bound.epsilon for bound in private.bounds) < private.claim.epsilon


@pytest.mark.slow
def test_an_image_is_rebuilt_from_an_update_without_privacy_and_not_from_a_private_one() -> None:
    found = job()
    rebuilt = invert_updates(phantom_cases(found, 64), found, row=1)
    assert rebuilt.private is not None
    opened, private, flat = (rebuilt.likeness(each) for each in (rebuilt.open, rebuilt.private, rebuilt.flat))
    assert opened.psnr > 30
    assert opened.ssim > 0.9
    assert private.psnr < flat.psnr
    assert private.ssim < 0.3


def test_likeness_is_measured_as_the_literature_measures_it() -> None:
    random = np.random.default_rng(0)
    image = random.random((1, 24, 24)).astype(np.float32)
    assert psnr(image, image) == np.inf
    assert psnr(np.zeros((1, 8, 8)), np.full((1, 8, 8), 0.1)) == pytest.approx(20.0)
    assert ssim(image, image) == pytest.approx(1.0)
    assert ssim(1 - image, image) < 0


@pytest.mark.slow
def test_the_command_prints_claim_bound_and_meters_and_ends_with_one_when_a_fault_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "job.toml"
    privacy_ = 'privacy = { mechanism = "dp-sgd", epsilon = 8.0, engine = "vmap", physical_batch = 256 }'
    path.write_text(JOB + privacy_)
    said = CliRunner().invoke(privacy, [str(path), "--canaries", "100", "--rounds", "1", "--confidence", "0.999"])
    assert said.exit_code == 0, said.output
    assert "Claimed: epsilon at most" in said.output
    assert "Attacked: epsilon is at least" in said.output
    assert "A low bound proves nothing" in said.output
    from simulations.attacks import suite

    honest = suite.one_run
    monkeypatch.setattr(
        suite, "one_run", lambda cases, job, options, tell: honest(cases, job, options, tell, fault("noise off"))
    )
    arguments = [str(path), "--canaries", "100", "--rounds", "1", "--json", "--confidence", "0.999"]
    said = CliRunner().invoke(privacy, arguments)
    assert said.exit_code == 1
    found = json.loads(said.stdout)["one_run"]
    assert found["faulty"]
    assert found["rounds"] == 1
    assert {bound["view"] for bound in found["bounds"]} >= {EVERY_STEP}
