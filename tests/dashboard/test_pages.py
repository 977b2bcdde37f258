"""The coordinator's pages: the form writes the file and the file the form; whatever a registry holds can be shown."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from playground import job_of, model_of

from common.job import Job, parse_job
from common.once import Once
from common.web.charts import Chart
from server.dashboard.pages import compare, federation, model, results, run, runs
from server.dashboard.pages.job_form import GROUPS, KEYS, changed, first_text, values_of
from server.readmodel import ReadModel
from server.records import RoundRecord, SiteRound
from server.views import Interval

BY_HAND = """# the study that the board approved in May
name = "chest"
sites = ["north", "south"]

[task]
labels = ["no", "yes"]  # as in the reports

[data]
collection = "c"

[aggregation]
rounds = 7

[aggregation.parameters]
"""
FORM = {key.name: key for key in KEYS}


@pytest.fixture
def read(ward) -> ReadModel:
    return ReadModel(ward.registry, ward.kit)


def filled(text: str, **values: str) -> str:
    for name, value in values.items():
        text = changed(text, FORM[name.replace("__", ".")], value)
    return text


def test_the_form_writes_the_same_job_as_one_writes_by_hand():
    typed = filled(first_text(["north", "south"], "c"), name="chest", task__labels="no, yes", aggregation__rounds="7")
    typed = filled(typed, privacy__mechanism="none")
    assert parse_job(typed).digest == parse_job(BY_HAND).digest


def test_what_one_writes_by_hand_stays_when_a_field_changes():
    text = filled(BY_HAND, aggregation__rounds="9", training__learning_rate="0.1", description="X-rays")
    assert "# the study that the board approved in May" in text
    assert 'labels = ["no", "yes"]  # as in the reports' in text
    job = parse_job(text)
    assert (job.aggregation.rounds, job.training.learning_rate, job.description) == (9, 0.1, "X-rays")


def test_the_form_shows_the_jobs_own_defaults_and_what_the_file_says():
    shown = {".".join(path): value for path, value in values_of(BY_HAND).items()}
    job = parse_job(BY_HAND)
    assert shown["privacy.mechanism"] == job.privacy.mechanism == "none"
    assert shown["aggregation.min_sites"] == str(job.aggregation.min_sites)
    assert (shown["aggregation.rounds"], shown["task.labels"], shown["data.size"]) == ("7", "no, yes", "64, 64")


def test_a_field_that_is_emptied_leaves_the_file_and_the_default_holds():
    text = filled(filled(BY_HAND, aggregation__deadline_seconds="60"), aggregation__deadline_seconds="")
    assert "deadline_seconds" not in text
    assert parse_job(text).aggregation.deadline_seconds is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("name = ", "at end of document"),
        ("training = 3\n", '"training" is no table'),
        ("[[training]]\nbatch_size = 1\n", "no table"),
    ],
)
def test_a_file_that_a_field_can_not_be_written_into_is_told_and_not_overwritten(text, fault):
    with pytest.raises(ValueError, match=fault):
        changed(text, FORM["training.batch_size"], "8")


def test_every_field_of_the_form_is_a_key_of_a_job_with_its_meaning():
    sections = {name for group in GROUPS.values() for name in (key.path[0] for key in group)}
    assert sections <= set(Job.model_fields)
    assert all(key.meaning for key in KEYS)


def every_piece(read: ReadModel, name: str, **how):
    yield from run.pieces_of(read, name, Once(9), **({"whole": True, "offset": 0, "diff": ""} | how)).values()
    yield from compare.pieces_of(read, [name, name]).values()
    yield from runs.pieces_of(read.runs(), "", "").values()
    yield from federation.pieces_of(read.federation(), read.participation()).values()


def checked(pieces) -> str:
    """The pieces' text, when all of them can be sent to a browser."""
    text = ""
    for piece in pieces:
        if isinstance(piece, Chart):
            json.dumps(piece.options, allow_nan=False)
        text += str(piece.data if isinstance(piece, Chart) else piece)
    return text


def test_a_run_that_nobody_has_begun_says_so(ward, read):
    name = ward.registry.submit(job_of(), model_of())
    text = checked(every_piece(read, name))
    for said in ("No round yet.", "No update yet.", "Nothing has been asked of the sites yet."):
        assert said in text
    ward.registry.stop(name)


def test_a_run_with_everything_that_can_go_wrong_is_shown(ward, read):
    name = ward.registry.submit(job_of(), model_of())
    odd = '<b onmouseover="x">'
    rows = (
        SiteRound("north", "rejected", f"a tensor holds NaN {odd}", norm=math.inf, metrics={"eval.auc": math.nan}),
        SiteRound("south", "late", "no answer", metrics={"train.loss": math.inf, "privacy.epsilon": math.nan}),
        SiteRound("gone", "unreached", odd, norm=0.0),
    )
    record = RoundRecord("train", 1, 1, "no quorum", rows, odd, started=1.0, score=math.nan, warnings=(odd,))
    recorder = ward.registry.recorder(name)
    recorder.commit(record, None, None)
    recorder.commit(replace(record, attempt=2, sites=()), None, None)
    ward.registry.finish(name, "failed", odd)
    text = checked(every_piece(read, name, diff="no-such-run"))
    assert "<b onmouseover" not in text
    assert "a tensor holds NaN" in text
    assert "no-such-run" in text


def test_metrics_of_a_label_are_shown_by_the_labels_own_name(ward, read):
    job = job_of()
    name = ward.registry.submit(job, model_of())
    metrics = {"eval.dice": 0.8, "eval.dice_low": 0.7, "eval.dice_high": 0.9, "eval.dice.1": 0.61, "eval.images": 9}
    rows = (SiteRound("north", "aggregated", metrics=metrics),)
    ward.registry.recorder(name).commit(RoundRecord("train", 1, 1, "aggregated", rows, started=1.0), None, None)
    text = str(run.pieces_of(read, name, Once(9), whole=True, offset=0, diff="")["metrics"])
    for said in ("all sites", "north", "0.800", "dice of " + job.task.labels[1], "0.610"):
        assert said in text
    assert "images" not in text
    ward.registry.stop(name)


def test_a_models_results_by_group_are_shown_with_how_many_patients_they_are_of(ward, read):
    women = {"patients": Interval(40.0), "auc": Interval(0.85, 0.8, 0.9)}
    groups = {("sex", 0): {"": women, "north": women}}
    text = str(results.by_group("This model", groups, "auc"))
    for said in ("sex: F", ">40<", "0.850", "auc at each site", "north"):
        assert said in text
    assert results.by_group("This model", {}, "auc") == ""


def test_a_model_is_shown_with_where_it_comes_from_and_beside_another(ward, read):
    by_kind = {line.kind: line.id for line in read.run(ward.run).models}
    one, other = by_kind["last"], by_kind["best"]
    text = checked(model.pieces_of(read, one, other).values())
    line = read.model(one).line
    for said in (
        line.sha256,
        line.digest,
        line.run,
        f"On the {read.model(one).judged_on} split",
        "Their jobs are the same.",
        "# Model card",
    ):
        assert said in text
    assert "there is no model" in checked(model.pieces_of(read, one, 10**6).values()).lower()
