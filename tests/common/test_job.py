"""A job is read, refused in words a person can use, and has one digest."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import JobError
from common.job import Job, describe_keys, job_from_json, parse_job, read_job

SMALLEST = """
name = "chest"
sites = ["north", "south"]
[task]
labels = ["normal", "pneumonia"]
[data]
collection = "chest-xray"
"""


def test_a_default_spelled_out_or_a_key_moved_does_not_change_the_digest():
    spelled_out = """
sites = ["north", "south"]
name = "chest"
seed = 0
[data]
size = [64, 64]
collection = "chest-xray"
[privacy]
mechanism = "none"
[task]
labels = ["normal", "pneumonia"]
"""
    assert parse_job(spelled_out).digest == parse_job(SMALLEST).digest


def test_any_changed_value_changes_the_digest():
    digests = {
        parse_job(SMALLEST.replace(old, new)).digest
        for old, new in [
            ("", ""),
            ("north", "nord"),
            ("chest-xray", "ct"),
            ("pneumonia", "nodule"),
            ('name = "chest"', 'name = "c"\nseed = 1'),
        ]
    }
    assert len(digests) == 5


def test_the_digest_is_the_same_today_as_when_it_was_first_written_down():
    # Runs, models and sites' logs carry the digest: a change of the schema that alters it must be a decision.
    assert parse_job(SMALLEST).digest == "1d5ebe2b2de811d7c9cd25aa60a08e743c394475552f562de5b0983a4985afb3"


def test_a_changed_copy_of_a_job_has_a_digest_of_its_own():
    job = parse_job(SMALLEST)
    before = job.digest
    assert job.model_copy(update={"seed": 1}).digest == parse_job(SMALLEST.replace("sites", "seed = 1\nsites")).digest
    assert job.digest == before == job.model_copy().digest


def test_a_job_survives_the_wire():
    job = parse_job(SMALLEST)
    assert job_from_json(job.canonical_json()) == job
    assert json.loads(job.canonical_json())["training"]["batch_size"] == 32


@given(
    rounds=st.integers(1, 1000),
    rate=st.floats(1e-6, 10, allow_nan=False),
    epsilon=st.floats(0.01, 100),
    seed=st.integers(0, 2**62),
)
def test_every_valid_job_survives_the_wire_with_its_digest(rounds, rate, epsilon, seed):
    table = json.loads(parse_job(SMALLEST).canonical_json())
    table["aggregation"]["rounds"], table["training"]["learning_rate"] = rounds, rate
    table["privacy"]["epsilon"], table["seed"] = epsilon, seed
    job = Job.model_validate(table)
    assert job_from_json(job.canonical_json()).digest == job.digest


@pytest.mark.parametrize(
    ("wrong", "line", "expected"),
    [
        ("[trainin]\nbatch_size = 3", 9, '"training"'),
        ("[training]\nbatchsize = 3", 10, '"training.batch_size"'),
        ("[training]\nbatch_size = 0", 10, "images a step"),
        ('[training]\nbatch_size = "many"', 10, "'many'"),
        ('[training]\noptimizer = "adam"', 10, "'sgd' or 'adamw'"),
        ("[privacy]\nepsilon = -1", 10, "whole run's epsilon"),
        ("[aggregation]\nmin_sites = 3", None, "names only 2 sites"),
        ("[privacy]\naugmentations = 4", None, "all views are the same"),
    ],
)
def test_a_wrong_key_type_or_range_is_named_with_its_line_and_meaning(tmp_path, wrong, line, expected):
    path = tmp_path / "job.toml"
    path.write_text(SMALLEST + "\n" + wrong)
    with pytest.raises(JobError) as refusal:
        read_job(path)
    assert expected in str(refusal.value)
    if line:
        assert f"job.toml:{line}:" in str(refusal.value)


def test_text_that_is_no_toml_and_a_file_that_is_not_there_are_refused_in_one_line(tmp_path):
    for make in (lambda p: p.write_text("name = "), lambda p: p.write_bytes(b"\xff\xfe"), lambda p: None):
        path = tmp_path / "job.toml"
        make(path)
        with pytest.raises(JobError) as refusal:
            read_job(path)
        assert str(path) in str(refusal.value)
        assert "\n" not in str(refusal.value)


def test_a_long_wrong_value_is_not_said_back_whole():
    with pytest.raises(JobError, match=r"training\.batch_size.*got 'xxx") as told:
        parse_job(f'{SMALLEST}\n[training]\nbatch_size = "{"x" * 5000}"\n')
    assert len(str(told.value)) < 500


def test_every_key_has_a_line_of_meaning():
    assert all(meaning for meaning in describe_keys().values())
