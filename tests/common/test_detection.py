import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from monai.apps.detection.metrics.coco import COCOMetric
from monai.apps.detection.metrics.matching import matching_batch
from monai.data.box_utils import box_iou

from client.augmentation import augmented
from client.dataset import CaseSet
from common.errors import DataError, JobError
from common.job import Job
from common.networks import build_network
from common.release import evaluation_of
from common.tasks.found import Found, average_precision, froc
from common.tasks.heatmap import heat_of
from common.tasks.patches import moved_boxes
from common.tasks.registry import build_task


def job(size=(32, 32), task=None, stride=2, labels=("cell", "platelet"), **data):
    kind = {"kind": "detection", "labels": list(labels), "parameters": task or {}}
    net = {"name": "heatmap-detector", "parameters": {"width": 8, "levels": 2, "stride": stride}}
    data = {"collection": "c", "size": list(size), **data}
    return Job.model_validate({"name": "j", "sites": ["a"], "task": kind, "data": data, "network": net})


def boxes_of(*cases, axes=2):
    most = max(map(len, cases)) + 1
    made = torch.full((len(cases), most, 1 + 2 * axes), -1.0)
    for case, rows in enumerate(cases):
        for place, row in enumerate(rows):
            made[case, place] = torch.tensor(row, dtype=torch.float32)
    return made


TWO = boxes_of([(0, 2, 3, 12, 15), (1, 18, 20, 30, 26)], [(0, 8, 8, 14, 13)])
DEEP = boxes_of([(0, 2, 3, 4, 10, 15, 12), (1, 8, 18, 20, 14, 30, 26)], axes=3)


def outputs_for(task, boxes, grid):
    """What a network would say that has learnt these boxes."""
    labels, axes = len(task.labels), len(grid)
    said = torch.zeros(len(boxes), task.outputs, *grid)
    said[:, :labels] = torch.logit(heat_of(boxes, labels, task.stride, grid), 1e-4)
    for case, row in ((case, row) for case, rows in enumerate(boxes) for row in rows if row[0] >= 0):
        first, last = row[1 : 1 + axes] / task.stride, row[1 + axes :] / task.stride
        place = tuple(((first + last) / 2).int().tolist())
        beyond = (first + last) / 2 - torch.tensor(place)
        said[(case, slice(labels, None), *place)] = torch.cat([(last - first).log(), beyond])
    return said


@pytest.mark.parametrize(("boxes", "size"), [(TWO, (32, 32)), (DEEP, (16, 32, 32))], ids=["2D", "3D"])
def test_a_map_that_says_where_things_are_gives_their_boxes_and_perfect_metrics(boxes, size):
    task = build_task(job(size))
    said = outputs_for(task, boxes, tuple(n // 2 for n in size))
    found = task.boxes(said)
    assert [len(case) for case in found] == [int((case[:, 0] >= 0).sum()) for case in boxes]
    assert torch.allclose(found[0].sort(dim=0)[0][:, 2:], boxes[0, :2, 1:].sort(dim=0)[0], atol=1e-3)
    metrics = task.metrics(task.scores(said, boxes).numpy(), boxes.numpy())
    assert [metrics[name] for name in ("ap50", "ap", "froc", "sensitivity", "precision", "ap50.1")] == [1.0] * 6
    assert evaluation_of("exact", metrics).by_label[1].ap50 == 1.0


def test_what_is_not_found_and_what_is_not_there_both_count():
    task = build_task(job())
    said = outputs_for(task, TWO, (16, 16))
    other = boxes_of([(0, 2, 3, 12, 15), (1, 2, 20, 12, 26)], [(0, 8, 8, 14, 13), (0, 20, 20, 28, 28)])
    metrics = task.metrics(task.scores(said, other).numpy(), other.numpy())
    assert metrics["ap50.1"] == 0.0
    assert metrics["sensitivity"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert metrics["precision"] == pytest.approx((1 / 2 + 1) / 2)


@pytest.mark.parametrize("size", [(32, 32), (16, 32, 32)])
def test_the_loss_is_one_for_each_case_least_for_the_right_map_and_of_no_other_case(size):
    boxes = TWO if len(size) == 2 else torch.cat([DEEP, DEEP])
    task, grid = build_task(job(size)), tuple(n // 2 for n in size)
    right = task.loss(outputs_for(task, boxes, grid), boxes)
    shifted = boxes.clone()
    shifted[shifted[..., 0] >= 0, 1:] += 2
    wrong = task.loss(outputs_for(task, shifted, grid), boxes)
    assert right.shape == (2,)
    assert (right < 0.2).all()
    assert (wrong > right + 0.5).all()
    alone = task.loss(outputs_for(task, boxes, grid)[1:], boxes[1:])
    assert alone[0] == pytest.approx(float(right[1]), abs=1e-6)


def test_an_image_without_boxes_and_a_network_gone_wrong_have_metrics_or_none_and_no_error():
    task, none = build_task(job()), torch.full((2, 3, 5), -1.0)
    broken = torch.full((2, task.outputs, 16, 16), torch.nan)
    assert task.metrics(task.scores(outputs_for(task, none, (16, 16)), none).numpy(), none.numpy()) == {}
    assert task.metrics(task.scores(broken, TWO).numpy(), TWO.numpy())["froc"] == 0.0
    assert torch.isfinite(task.loss(outputs_for(task, none, (16, 16)), none)).all()


@given(some.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_average_precision_is_monais(seed):
    random, task = np.random.default_rng(seed), build_task(job(labels=["cell"]))
    true, found = ([_drawn(random, count) for _ in range(4)] for count in (3, 6))
    scores = [random.random(len(case)) for case in found]
    names = [[np.zeros(len(case)) for case in cases] for cases in (found, true)]
    coco = COCOMetric(classes=["cell"], iou_list=[0.5], iou_range=(0.5, 0.95, 0.05), max_detection=(64,))
    matched = matching_batch(box_iou, coco.iou_thresholds, found, names[0], scores, true, names[1])
    theirs = coco(matched)[0]
    rows = np.zeros((4, 65, 13), np.float32)
    rows[:, :64, 0], rows[:, 64, 1] = -1, 3
    for case, one in enumerate(matched):
        hits = one[0]["dtMatches"].T
        rows[case, : len(hits)] = np.column_stack([np.zeros(len(hits)), one[0]["dtScores"], hits[:, :1], hits])
    ours = task.metrics(rows, np.zeros(0))
    assert ours["ap50"] == pytest.approx(theirs["AP_IoU_0.50_MaxDet_64"], abs=1e-6)
    assert ours["ap"] == pytest.approx(theirs["mAP_IoU_0.50_0.95_0.05_MaxDet_64"], abs=1e-6)


def _drawn(random, count):
    first = random.random((count, 2)) * 10
    return np.concatenate([first, first + 4 + random.random((count, 2)) * 4], axis=1)


def test_froc_is_the_mean_sensitivity_at_its_seven_rates():
    found = Found(np.array([0, 0, 1, 1]), np.array([True, False, False, True]), np.array([2, 2]))
    every = np.ones(2)
    # Sensitivity 1/4 without a false positive, and 1/2 with one an image.
    assert froc(found, every) == pytest.approx((3 * 0.25 + 4 * 0.5) / 7)
    assert average_precision(found, every) == pytest.approx((26 * 1.0 + 25 * 0.5) / 101)


@given(some.integers(1, 6), some.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_one_patient_more_moves_a_tally_by_no_more_than_its_sensitivity(patients, seed):
    random, task = np.random.default_rng(seed), build_task(job())
    owner = random.integers(0, patients, 9)
    scores = _scores(random, task, 9)
    whole, less = (task.tally(scores[rows], np.zeros(0), owner[rows]) for rows in (owner >= 0, owner != owner[0]))
    assert np.linalg.norm(whole.values - less.values) <= whole.sensitivity + 1e-9


def _scores(random, task, count):
    """Rows as `scores` makes them: no more hits than there are boxes."""
    scores = np.zeros((count, task.parameters.most_found + 2, 13), np.float32)
    scores[:, :-2, 0] = random.integers(-1, 2, scores[:, :-2, 0].shape)
    scores[:, :-2, 1] = random.random(scores[:, :-2, 1].shape)
    scores[:, -2:, 0], scores[:, -2:, 1] = (0, 1), random.integers(0, 4, (count, 2))
    for case in scores:
        for label in range(2):
            mine = np.flatnonzero(case[:-2, 0] == label)
            case[random.permutation(mine)[: random.integers(0, int(case[-2 + label, 1]) + 1)], 2] = 1
    return scores


def test_metrics_from_a_tally_without_noise_are_the_metrics():
    random, task = np.random.default_rng(0), build_task(job(labels=["cell"]))
    scores = _scores(random, task, 30)[:, [*range(64), 64]]
    scores[:, -1, 1] = np.maximum(1, scores[:, :-1, 2].sum(axis=1))
    scores[:, 10:64, 0] = -1
    exact, found = task.metrics(scores, np.zeros(0)), task.metrics_of(task.tally(scores, np.zeros(0), np.arange(30)))
    assert found["patients"] == 30
    assert found["sensitivity"] == pytest.approx(exact["sensitivity"])
    assert found["precision"] == pytest.approx(exact["precision"])
    assert found["froc_low"] < exact["froc"] < found["froc_high"]


@given(some.integers(0, 2**32 - 1), some.booleans())
@settings(max_examples=40, deadline=None)
def test_augmented_boxes_stay_on_what_they_mark_and_go_where_its_middle_goes(seed, deep):
    size, boxes = ((16, 32, 32), DEEP) if deep else ((32, 32), TWO)
    images = torch.zeros(len(boxes), 1, *size)
    for image, rows in zip(images, boxes, strict=True):
        for row in rows[rows[:, 0] >= 0]:
            image[_inside(row)] = row[0] + 1
    shifted, moved = augmented(images, boxes, "boxes", torch.Generator().manual_seed(seed))
    for image, rows in zip(shifted, moved, strict=True):
        marked = torch.zeros_like(image)
        for row in rows[rows[:, 0] >= 0]:
            marked[_inside(row)] = row[0] + 1
        assert torch.equal(image, marked)


def _inside(row):
    first, last = row[1:].int().reshape(2, -1).tolist()
    return (slice(None), *(slice(start, end) for start, end in zip(first, last, strict=True)))


def test_a_box_is_cut_off_at_the_edge_and_gone_with_its_middle():
    boxes = torch.tensor([[0.0, 2, 3, 12, 15], [1, 0, 0, 6, 6], [-1, -1, -1, -1, -1]])
    assert moved_boxes(boxes, (-4, -1), (32, 32)).tolist() == [[0, 0, 2, 8, 14], [-1] * 5, [-1] * 5]


def test_patches_are_trained_on_and_whole_cases_predicted():
    wanted = job((32, 48), patch=[16, 16], labels=["cell"])
    task, network = build_task(wanted), build_network(wanted)
    images, boxes = torch.zeros(40, 1, 32, 48), boxes_of(*[[(0, 20, 30, 26, 38)]] * 40)
    images[:, :, 20:26, 30:38] = 1
    seen, targets = task.inputs(images, boxes, torch.Generator().manual_seed(0))
    assert tuple(seen.shape) == (40, 1, 16, 16)
    there = targets[:, 0, 0] >= 0
    assert 15 < int(there.sum()) < 40
    assert all(image[_inside(rows[0])].min() == 1 for image, rows in zip(seen[there], targets[there], strict=True))
    assert tuple(task.infer(network, images[:2]).shape) == (2, 5, 16, 24)


def test_rows_that_no_case_fills_are_not_carried_along():
    _, targets = build_task(job()).inputs(torch.zeros(2, 1, 32, 32), torch.cat([TWO, -torch.ones(2, 99, 5)], 1), None)
    assert targets.shape == (2, 2, 5)


def test_cases_with_masks_or_nothing_are_refused():
    task = build_task(job())
    for truth in (None, np.zeros((1, 32, 32), np.uint8)):
        with pytest.raises(DataError, match="no boxes: import them with --boxes"):
            task.targets(CaseSet(np.zeros((1, 1, 32, 32), np.float32), ("",), np.zeros(1, np.int64), truth))


def test_a_size_that_the_stride_does_not_divide_is_named():
    with pytest.raises(JobError, match=r"data.size.*\[30, 32\] is no multiple of the network's stride of 4"):
        build_task(job((30, 32), stride=4))


def test_the_best_model_is_kept_by_froc_which_leaves_with_privacy_too():
    assert job().aggregation.criterion == "froc"
