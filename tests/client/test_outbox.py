"""A request that comes again gets the same answer again, and only then."""

import dataclasses

import numpy as np
import pytest

from client.outbox import recall, remember, request_key
from common.job import parse_job
from common.release import numbers_of
from common.update import Answer, Request

JOB = parse_job('name = "j"\nsites = ["a"]\n[task]\nlabels = ["n", "p"]\n[data]\ncollection = "c"')
REQUEST = Request("train", "run", 2, JOB, {"w": np.ones((2, 2), np.float32), "s": np.array(1.0, np.float32)})
NUMBERS = numbers_of({"train.steps": 3.0, "train.images": 7.0, "eval.auc": 0.5}, {"train": "exact", "eval": "noised"})
ANSWER = Answer("a", JOB.digest, 2, "ok", "", 7, NUMBERS, {"w": np.zeros((2, 2), np.float32), "a": np.ones(1)})


def test_the_same_request_gets_the_same_answer_to_the_bit(tmp_path):
    remember(tmp_path, request_key(REQUEST), REQUEST, ANSWER)
    again = recall(tmp_path, request_key(REQUEST), REQUEST)
    assert dataclasses.replace(again, tensors=None) == dataclasses.replace(ANSWER, tensors=None)
    assert list(again.tensors) == list(ANSWER.tensors)
    assert all(again.tensors[name].tobytes() == tensor.tobytes() for name, tensor in ANSWER.tensors.items())


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(REQUEST, number=3),
        dataclasses.replace(REQUEST, run="other"),
        dataclasses.replace(REQUEST, model={"w": np.full((2, 2), 2, np.float32), "s": np.array(1.0, np.float32)}),
    ],
)
def test_another_request_gets_no_kept_answer(tmp_path, other):
    remember(tmp_path, request_key(REQUEST), REQUEST, ANSWER)
    assert recall(tmp_path, request_key(other), other) is None


def test_a_damaged_outbox_means_training_again(tmp_path):
    remember(tmp_path, request_key(REQUEST), REQUEST, ANSWER)
    (kept,) = (tmp_path / "outbox").iterdir()
    kept.write_bytes(kept.read_bytes()[:40])
    assert recall(tmp_path, request_key(REQUEST), REQUEST) is None


def test_a_run_named_like_a_path_stays_in_the_outbox(tmp_path):
    sly = dataclasses.replace(REQUEST, run="../../escape")
    remember(tmp_path, request_key(sly), sly, ANSWER)
    assert [path.parent.name for path in tmp_path.rglob("*.safetensors")] == ["outbox"]
