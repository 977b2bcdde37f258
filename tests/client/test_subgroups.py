"""A model's metrics by sex, age and scanner: told where enough patients are, noised and paid for with privacy."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.dataset import CaseSet
from client.evaluation import Split, exact_metrics, predict
from client.intake.importer import import_folder
from client.site import Site
from client.subgroups import released, shown
from common import bins
from common.job import Job, parse_job
from common.networks import build_network, initial_model
from common.privacy import epsilon_of
from common.release import Numbers, group_of, meaning_of, numbers_of
from common.tasks.registry import build_task
from common.update import Request

JOB = """
name = "j"
sites = ["north"]
[task]
labels = ["well", "sick"]
subgroups = {subgroups}
[data]
collection = "chest"
size = [16, 16]
[aggregation]
rounds = 1
[privacy]
mechanism = "{mechanism}"
epsilon = 200
delta = 1e-3
"""
FEMALE, MALE, OTHER, UNKNOWN = range(4)
CPU = torch.device("cpu")


def job(mechanism="none", subgroups='["sex", "age"]'):
    return parse_job(JOB.format(mechanism=mechanism, subgroups=subgroups))


@pytest.fixture
def site(kit_folder, write_kit, write_dicom, tmp_path):
    """A site whose test split is of 30 women of 64, 20 men from 50 to 69, and 3 of whom nobody says."""
    write_kit(kit_folder)
    allow = 'collections = ["chest"]\nrequire_privacy = false\nmin_patients = 2\nmin_evaluation_patients = 10\n'
    (kit_folder / "policy.toml").write_text(
        allow + "max_epsilon_per_run = 200\nmax_delta = 1e-2\nmax_epsilon_for_life = 400\n"
    )
    rows = []
    for number in range(73):
        sex = "F" if number < 30 else "M" if number < 50 else ""
        split = "test" if number < 53 else "train" if number < 70 else "validation"
        age = {"F": "064Y", "M": f"{20 + number}Y".zfill(4)}.get(sex, "")
        write_dicom(
            tmp_path / "in" / f"{number}.dcm", PatientID=f"S{number}", PatientSex=sex, PatientAge=age, seed=number
        )
        rows.append((f"S{number}", ("well", "sick")[number % 2], split))
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("patient", "label", "split"), *rows])
    import_folder(kit_folder, "chest", tmp_path / "in", tmp_path / "labels.csv")
    return Site.open(kit_folder, "cpu")


def evaluated(site, wanted, split="test"):
    answer = site.answer(Request("evaluate", "run", 1, wanted, initial_model(wanted), split=split))
    assert (answer.status, answer.reason) == ("ok", "")
    return answer


def told(answer, trait):
    """By bin of a trait: the metrics that were told."""
    found = {}
    for name, value in answer.metrics.items():
        if (group := group_of(name)) is not None and group[0] == trait:
            found.setdefault(group[1], {})[group[2]] = value
    return found


def test_groups_of_enough_patients_are_told_and_one_that_could_be_found_by_subtraction_is_not(site):
    answer = evaluated(site, job())
    # Three patients of unknown sex are too few to be told, and 53 less 30 and 20 would tell: so the men go too.
    assert set(told(answer, "sex")) == {FEMALE}
    women = told(answer, "sex")[FEMALE]
    assert (women["patients"], women["images"]) == (30, 30)
    assert 0 <= women["accuracy_low"] <= women["accuracy"] <= women["accuracy_high"] <= 1
    assert answer.metrics["eval.patients"] == 53


def test_a_groups_metrics_are_those_of_its_patients_alone():
    random = np.random.default_rng(0)
    images, patients = random.random((60, 1, 16, 16), dtype=np.float32), np.repeat(np.arange(30), 2)
    labels = np.array(["well", "sick"])[random.integers(0, 2, 60)]
    bin_of_each = random.integers(0, 2, 30)
    task, network = build_task(job()), build_network(job())

    def metrics(rows, groups):
        cases = CaseSet(images[rows], tuple(labels[rows].tolist()), patients[rows], groups=groups)
        split = Split(cases, task.targets(cases))
        said = exact_metrics(predict(network, split, task, CPU), split, task, "exact", groups_from=5)
        return Numbers(evaluation=said).flat()

    whole = metrics(np.arange(60), {"sex": bin_of_each})
    for place in (FEMALE, MALE):
        alone = metrics(np.flatnonzero(bin_of_each[patients] == place), {})
        for name in ("auc", "auc_low", "accuracy", "loss", "patients", "images"):
            told_of_it = alone["eval.images"] / 2 if name == "patients" else alone[f"eval.{name}"]
            assert whole[f"eval.sex.{place}.{name}"] == pytest.approx(told_of_it), name


def test_two_groups_of_different_traits_that_tell_of_a_few_are_not_both_told():
    # 40 patients; of 12 nobody says the maker, and of 11 of these nobody says the sex either.
    sex, maker = np.array([FEMALE] * 15 + [MALE] * 14 + [UNKNOWN] * 11), np.array([0] * 28 + [14] * 12)
    assert shown(sex, 5) == [FEMALE, MALE, UNKNOWN]
    assert shown(maker, 5) == [0, 14]
    kept = released({"sex": sex, "maker": maker}, 5)
    assert not {("sex", UNKNOWN), ("maker", 14)} <= set(kept)
    assert released({"sex": sex}, 5) == [("sex", FEMALE), ("sex", MALE), ("sex", UNKNOWN)]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=60), st.integers(1, 12))
def test_no_two_groups_that_are_told_differ_by_a_few_patients(people, least):
    groups = {"sex": np.array([sex for sex, _ in people]), "maker": np.array([maker for _, maker in people])}
    sets = [frozenset(np.flatnonzero(groups[trait] == place).tolist()) for trait, place in released(groups, least)]
    assert all(len(one) >= least for one in sets)
    everybody = frozenset(range(len(people)))
    known = [everybody, *sets, *(everybody - one for one in sets)]
    assert not [1 for one in known for other in known if one and one < other and len(other - one) < least]


@pytest.mark.parametrize(("change", "why"), [
    ({"data": {"collection": "c", "features": ["age"]}}, "leave it out with data.features"),
    ({"privacy": {"mechanism": "dp-sgd", "unit": "image"}}, 'privacy.unit = "patient"'),
])  # fmt: skip
def test_groups_are_refused_where_they_have_no_meaning_or_would_cost_more_than_is_said(change, why):
    asked = {"name": "j", "sites": ["a"], "task": {"labels": ["n", "y"], "subgroups": ["sex"]}}
    with pytest.raises(ValueError, match=why):
        Job.model_validate({**asked, "data": {"collection": "c"}, **change})


def test_without_the_jobs_wish_and_on_other_splits_no_group_is_told(site):
    assert not told(evaluated(site, job(subgroups="[]")), "sex")
    assert not told(evaluated(site, job(), "validation"), "sex")


def test_with_privacy_each_trait_is_one_mechanism_more_within_the_runs_epsilon(site):
    answer = evaluated(site, job("dp-sgd"))
    (entry,) = [entry for entry in site.ledger.entries() if entry.purpose == "metrics"]
    assert (entry.split, entry.spending.steps) == ("test", 3)
    assert epsilon_of([entry.spending], 1e-3) <= 200
    assert set(answer.numbers.bases().values()) <= {"noised"}
    groups = told(answer, "sex")
    assert {FEMALE, MALE} <= set(groups)
    assert OTHER not in groups  # of nobody, noise leaves nothing
    assert groups[FEMALE]["patients"] == pytest.approx(30, abs=5)
    assert "images" not in groups[FEMALE]


def test_the_steward_reads_before_that_groups_are_told(site):
    from client.summary import in_plain_words

    assert any("groups" in line and "sex and by age" in line for line in in_plain_words(job()))
    assert not any("groups" in line for line in in_plain_words(job(subgroups="[]")))


@given(st.lists(st.integers(0, 5), max_size=80), st.integers(1, 20))
def test_what_is_withheld_is_nobody_or_as_many_as_the_smallest_count(places, least):
    kept = shown(np.array(places, dtype=np.int64), least)
    withheld = sum(place not in kept for place in places)
    assert withheld == 0 or withheld >= least or not kept
    assert all(places.count(place) >= least for place in kept)


@given(st.sampled_from(bins.TRAITS), st.integers(0, 30), st.sampled_from(["auc", "auc_low", "patients", "seconds_"]))
def test_only_groups_and_metrics_that_have_a_type_can_leave(trait, number, name):
    wire = f"eval.{trait}.{number}.{name}"
    if number < len(bins.HISTOGRAMS[trait].bins) and name != "seconds_":
        numbers = numbers_of({wire: 0.5, "eval.auc": 0.75}, {"eval": "exact"})
        assert numbers.flat() == {wire: 0.5, "eval.auc": 0.75}
        assert bins.HISTOGRAMS[trait].title in meaning_of(wire)
    else:
        assert meaning_of(wire) is None
