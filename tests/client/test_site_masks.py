"""A site with masks: it learns to outline what was drawn on its own images, with and without privacy."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from client.intake.importer import ImportOptions, import_folder
from client.site import Site
from common.job import Job
from common.networks import initial_model
from common.update import Request

PRIVATE = {"mechanism": "dp-sgd", "epsilon": 8.0, "delta": 1e-2, "clip_norm": 1.0}


def job(privacy=None, **training):
    return Job.model_validate({
        "name": "j", "sites": ["north"], "task": {"kind": "segmentation", "labels": ["disc"]},
        "data": {"collection": "discs", "size": [32, 32]},
        "network": {"name": "unet", "parameters": {"width": 4, "levels": 3}},
        "training": {"optimizer": "adamw", "learning_rate": 0.02, "batch_size": 8, "local_steps": 12, **training},
        "aggregation": {"rounds": 4}, "privacy": privacy or {},
    })  # fmt: skip


def draw_discs(folder, count=40):
    """Bright discs on noise, each in a picture of its own, with their masks."""
    random, rows, columns = np.random.default_rng(0), *np.mgrid[:32, :32]
    for number in range(count):
        row, column = random.integers(8, 24, 2)
        inside = (rows - row) ** 2 + (columns - column) ** 2 < 36
        shade = np.clip(random.normal(60, 15, (32, 32)) + 120 * inside, 0, 255).astype(np.uint8)
        for name, values in (("images", shade), ("masks", inside.astype(np.uint8))):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(folder / name / f"{number:02}.png")


@pytest.fixture
def site(kit_folder, write_kit, tmp_path):
    write_kit(kit_folder)
    policy = 'collections = ["discs"]\ntasks = ["segmentation"]\nnetworks = ["*"]\nrequire_privacy = false\n'
    (kit_folder / "policy.toml").write_text(policy + "max_delta = 1e-2\nmin_evaluation_patients = 1\n")
    draw_discs(tmp_path)
    options = ImportOptions(masks=tmp_path / "masks", structures=(("1", "disc"),))
    import_folder(kit_folder, "discs", tmp_path / "images", options=options)
    return Site.open(kit_folder, "cpu")


def train(site, wanted, rounds=4):
    model, answers = initial_model(wanted), []
    for number in range(1, rounds + 1):
        answers.append(site.answer(Request("train", "run", number, wanted, model)))
        assert (answers[-1].status, answers[-1].reason) == ("ok", "")
        model = answers[-1].tensors
    return model, answers


def test_a_site_learns_to_outline_what_was_drawn(site):
    model, answers = train(site, job())
    tested = site.answer(Request("evaluate", "run", 4, job(), model, split="test")).metrics
    assert tested["eval.dice"] > 0.8
    assert tested["eval.dice.0"] == pytest.approx(tested["eval.dice"])
    assert answers[-1].metrics["train.loss"] < answers[0].metrics["train.loss"]


def test_with_privacy_only_noised_numbers_leave_and_they_are_paid_for(site):
    wanted = job(PRIVATE)
    _, answers = train(site, wanted, 2)
    last = answers[-1]
    assert set(last.numbers.bases().values()) <= {"noised"}
    assert not [name for name in last.metrics if name.startswith("eval.loss")]
    assert 0 < last.metrics["privacy.epsilon"] <= 8.0
    assert {entry.purpose for entry in site.ledger.entries()} >= {"count", "training"}
