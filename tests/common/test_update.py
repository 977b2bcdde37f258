"""What crosses the wire: all of it is decoded again to the bit, and nothing unlisted gets in or out."""

import dataclasses

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.errors import UpdateError
from common.job import parse_job
from common.release import numbers_of
from common.update import (
    METRICS,
    REPORT,
    UPDATE,
    Answer,
    Request,
    check_tensors,
    decode_answer,
    decode_request,
    decode_tensors,
    encode_answer,
    encode_request,
    encode_tensors,
)

JOB = parse_job('name = "j"\nsites = ["a"]\n[task]\nlabels = ["n", "p"]\n[data]\ncollection = "c"')
MODEL = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(1.5, np.float32), "n": np.array(3, np.int64)}
ANSWER = Answer("a", JOB.digest, 1, "ok", "", 5, numbers_of({"train.loss": 0.5}, {"train": "exact"}), MODEL)

tensors = hnp.arrays(
    dtype=st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.uint8, np.bool_]),
    shape=hnp.array_shapes(min_dims=0, max_dims=4, max_side=4),
)


@given(st.dictionaries(st.text(min_size=1, max_size=20), tensors, max_size=4))
def test_tensors_come_back_to_the_bit(model):
    decoded = decode_tensors(encode_tensors(model), "here")
    assert set(decoded) == set(model)
    for name, tensor in model.items():
        assert (decoded[name].dtype, decoded[name].shape) == (tensor.dtype, tensor.shape)
        assert decoded[name].tobytes() == tensor.tobytes()


def test_a_request_comes_back_as_it_was_sent():
    request = Request("train", "run-1", 3, JOB, MODEL)
    decoded = decode_request(encode_request(request))
    assert (decoded.kind, decoded.run, decoded.number, decoded.job) == ("train", "run-1", 3, JOB)
    check_tensors(decoded.model, MODEL, "here")


def test_a_job_that_was_changed_on_the_way_is_refused():
    content = encode_request(Request("train", "run-1", 1, JOB, MODEL))
    content.config_records["job"]["digest"] = "0" * 64
    with pytest.raises(UpdateError, match="digest"):
        decode_request(content)


def test_an_answer_comes_back_as_it_was_sent():
    decoded = decode_answer(encode_answer(ANSWER))
    assert dataclasses.replace(decoded, tensors=None) == dataclasses.replace(ANSWER, tensors=None)


def test_a_metric_that_is_not_on_the_allow_list_can_neither_leave_nor_be_taken_in():
    with pytest.raises(UpdateError, match="patient_name"):
        numbers_of({"patient_name": 1.0}, {})
    content = encode_answer(ANSWER)
    content.metric_records[METRICS]["smuggled"] = 1.0
    with pytest.raises(UpdateError, match="smuggled"):
        decode_answer(content)


@pytest.mark.parametrize(("field", "value"), [("examples", -1), ("examples", 10**10), ("status", "fine")])
def test_an_answer_with_a_value_out_of_bounds_is_refused(field, value):
    content = encode_answer(ANSWER)
    content.config_records[REPORT][field] = value
    with pytest.raises(UpdateError):
        decode_answer(content)


def test_an_answer_without_its_report_is_refused():
    content = encode_answer(ANSWER)
    del content[REPORT]
    with pytest.raises(UpdateError, match="lacks"):
        decode_answer(content)


@pytest.mark.parametrize(
    ("name", "stype", "data"),
    [
        ("tensors", "pickle", b"cos\nsystem\n"),
        ("tensors", "numpy.ndarray", b"\x93NUMPY"),
        ("other", "safetensors", b""),
        ("tensors", "safetensors", b""),
        ("tensors", "safetensors", b"\xff" * 64),
        ("tensors", "safetensors", encode_tensors(MODEL)["tensors"].data[:-1]),
    ],
)
def test_tensors_that_are_pickled_damaged_or_cut_short_are_refused(name, stype, data):
    content = encode_answer(ANSWER)
    content[UPDATE] = ArrayRecord({name: Array(dtype="uint8", shape=(len(data),), stype=stype, data=data)})
    with pytest.raises(UpdateError, match="site a"):
        decode_answer(content)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"w": np.zeros((3, 2), np.float32)}, "shape"),
        ({"w": np.zeros((2, 3), np.float64)}, "dtype"),
        ({"w": np.full((2, 3), np.nan, np.float32)}, "not finite"),
        ({"extra": np.zeros(1, np.float32)}, "unknown extra"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_by_the_first_tensor_at_fault(change, expected):
    with pytest.raises(UpdateError, match=expected):
        check_tensors(MODEL | change, MODEL, "site a")
