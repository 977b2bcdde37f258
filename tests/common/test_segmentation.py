import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from common.errors import JobError
from common.job import Job
from common.networks import build_network
from common.release import evaluation_of, meaning_of
from common.tasks.means import by_patient
from common.tasks.registry import build_task


def job(size=(16, 16), task=None, network="unet", **data):
    kind = {"kind": "segmentation", "labels": ["liver", "lesion"], **(task or {})}
    net = {"name": network, "parameters": {"levels": 2} if network == "unet" else {}}
    data = {"collection": "c", "size": list(size), **data}
    return Job.model_validate({"name": "j", "sites": ["a"], "task": kind, "data": data, "network": net})


def outputs_for(masks):
    return 10 * torch.nn.functional.one_hot(masks.long(), 3).movedim(-1, 1).float()


def squares(shift=0, size=(16, 16)):
    masks = torch.zeros(3, *size, dtype=torch.uint8)
    masks[:, 2 + shift : 8 + shift, 3:9] = 1
    masks[1, 10:12, 10:12] = 2
    return masks


def test_a_perfect_mask_has_a_dice_of_one_and_no_distance():
    task = build_task(job())
    scores = task.scores(outputs_for(squares()), squares()).numpy()
    found = task.metrics(scores, squares().numpy())
    assert (found["dice"], found["surface_dice"], found["hd95"]) == (1.0, 1.0, 0.0)
    assert found["dice.0"] == found["dice.1"] == 1.0


def test_a_mask_two_rows_off_is_two_pixels_off_and_in_millimetres_with_a_spacing():
    for spacing, off in (([], 2.0), ([3.0, 1.0], 6.0)):
        task = build_task(job(spacing=spacing))
        found = task.metrics(task.scores(outputs_for(squares(2)), squares()).numpy(), squares().numpy())
        assert found["hd95.0"] == pytest.approx(off)
        assert found["dice.0"] == pytest.approx(2 * 24 / 72)


def test_a_structure_that_only_one_mask_has_counts_as_missed_and_one_that_none_has_not_at_all():
    task = build_task(job())
    found, true = squares(), squares()
    found[1, 10:12, 10:12] = 0
    scores = task.scores(outputs_for(found), true)
    assert scores[1, 1].tolist() == pytest.approx([0.0, 0.0, math.hypot(16, 16)])
    assert scores[0, 1].isnan().all()


@pytest.mark.parametrize("loss", ["dice-ce", "dice-focal", "generalized-dice"])
def test_the_loss_is_one_for_each_case_and_least_for_the_right_mask(loss):
    task = build_task(job(task={"parameters": {"loss": loss}}))
    right, wrong = (task.loss(outputs_for(masks), squares()) for masks in (squares(), squares(4)))
    assert right.shape == (3,)
    assert (right < wrong).all()


@pytest.mark.parametrize("size", [(16, 24), (8, 16, 24)])
def test_patches_are_trained_on_and_whole_cases_predicted(size):
    patch = [8] * len(size)
    wanted = job(size, patch=patch)
    task, network = build_task(wanted), build_network(wanted)
    images, masks = torch.rand(2, 1, *size), torch.zeros(2, *size, dtype=torch.uint8)
    seen, targets = task.inputs(images, masks, torch.Generator().manual_seed(0))
    assert (tuple(seen.shape), tuple(targets.shape)) == ((2, 1, *patch), (2, *patch))
    assert tuple(task.infer(network, images).shape) == (2, 3, *size)


def test_half_of_the_patches_lie_on_a_structure_however_small_it_is():
    task = build_task(job((64, 64), patch=[8, 8]))
    images, masks = torch.rand(200, 1, 64, 64), torch.zeros(200, 64, 64, dtype=torch.uint8)
    masks[:, 60, 5] = 1
    _, targets = task.inputs(images, masks, torch.Generator().manual_seed(0))
    assert 70 < int(targets.flatten(1).any(dim=1).sum()) < 140


@given(some.integers(1, 6), some.integers(0, 2**32 - 1))
def test_one_patient_more_moves_a_tally_by_no_more_than_its_sensitivity(patients, seed):
    random, task = np.random.default_rng(seed), build_task(job())
    owner = random.integers(0, patients, 12)
    scores = random.random((12, 2, 3)).astype(np.float32) * (1, 1, 3 * task.diagonal)
    scores[random.random((12, 2)) < 0.3] = np.nan
    left = owner != owner[0]
    whole, less = (task.tally(scores[rows], np.zeros(0), owner[rows]) for rows in (owner >= 0, left))
    assert np.linalg.norm(whole.values - less.values) <= whole.sensitivity + 1e-9


def test_metrics_from_a_tally_without_noise_are_the_metrics():
    task = build_task(job())
    scores = task.scores(outputs_for(squares(1)), squares()).numpy()
    tally = task.tally(scores, np.zeros(0), np.arange(3))
    exact, found = task.metrics(scores, np.zeros(0)), task.metrics_of(tally)
    assert found["patients"] == 3
    assert found["hd95.0"] == pytest.approx(exact["hd95.0"])
    assert found["dice.0"] == pytest.approx(exact["dice.0"])


def test_a_patients_mean_leaves_out_what_is_undefined():
    means, known = by_patient(np.array([0.2, 0.4, np.nan, np.nan]), np.array([7, 7, 7, 9]))
    assert means.tolist() == pytest.approx([0.3, 0.0])
    assert known.tolist() == [True, False]


def test_a_labels_own_metrics_leave_by_their_place_and_no_others_do():
    found = evaluation_of("exact", {"dice": 0.5, "dice.1": 0.25})
    assert (found.dice, found.by_label[1].dice, found.by_label[0].dice) == (0.5, 0.25, None)
    assert meaning_of("eval.dice.1")
    assert not any(map(meaning_of, ("eval.dice.300", "eval.dice.01", "eval.pixels.1", "eval.dice.1.1", "train.dice.1")))


def test_a_network_that_says_one_thing_of_an_image_can_not_segment_it():
    with pytest.raises(JobError, match="small-cnn is not for segmentation: choose one of unet"):
        build_network(job(network="small-cnn"))


def test_the_best_model_is_kept_by_dice_unless_the_job_says_otherwise():
    assert job().aggregation.criterion == "dice"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"patch": [32, 32]}, "patch .* is larger than size"),
        ({"spacing": [1.0]}, "spacing has 1 numbers, but size has 2"),
    ],
)
def test_axes_that_do_not_fit_are_named(data, said):
    with pytest.raises(ValueError, match=said):
        job(**data)


def test_only_the_largest_piece_of_a_structure_is_kept_where_the_job_says_so():
    pieces = squares()
    pieces[0, 14, 14] = 1
    for largest, kept in ((False, 37), (True, 36)):
        task = build_task(job(task={"parameters": {"largest_component": largest}}))
        assert int((task.classes(outputs_for(pieces))[0] == 1).sum()) == kept
