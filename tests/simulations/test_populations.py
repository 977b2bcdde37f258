"""Hospitals made of a source: nobody in two of them, everybody where asked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.dataset import CaseSet
from common.errors import UsageError
from common.job import DataSection
from simulations.populations import pool, populate, populate_each, split_patients
from simulations.scenario import PartitionSection, ScannersSection, SourceSection
from simulations.sources import Source

NO_SHIFT = ScannersSection()
DATA = DataSection(collection="c", size=(16, 16))


def source(images_of, labels_of, columns=None):
    """Cases whose only pixels say which case they are."""
    patients = np.repeat(np.arange(len(images_of)), images_of)
    images = np.arange(len(patients), dtype=np.float32).reshape(-1, 1, 1, 1)
    labels = tuple(labels_of[patient % len(labels_of)] for patient in patients)
    return Source(CaseSet(images, labels, patients), columns or {})


def where(population):
    """Each case's hospital and split."""
    found = {}
    for name in population:
        for split, cases in population[name].splits.items():
            for number in cases.images.reshape(-1).astype(int).tolist():
                assert number not in found, "a case in two places"
                found[number] = name, split
    return found


def quantity(sites, law, skew):
    return PartitionSection(kind="quantity", sites=sites, law=law, skew=skew)


counts = st.integers(1, 6)
partitions = st.one_of(
    st.builds(lambda sites: PartitionSection(kind="iid", sites=sites), counts),
    st.builds(
        lambda sites, alpha: PartitionSection(kind="dirichlet", sites=sites, alpha=alpha),
        counts,
        st.sampled_from([0.05, 1.0, 50.0]),
    ),
    st.builds(quantity, counts, st.sampled_from(["log-normal", "power"]), st.floats(0, 3)),
    st.builds(
        lambda one, other: PartitionSection(kind="iid", sizes=(one, other)), st.integers(1, 4), st.integers(1, 4)
    ),
)


def test_a_hospital_too_small_to_hold_anybody_out_trains_on_everybody_and_is_judged_on_nobody():
    section = SourceSection(kind="phantoms", test=0.8, validation=0.1)  # of what is left, half is for validation
    rows = split_patients(source([3], ["a"]).cases, section, np.random.default_rng(0))
    assert {name: found.tolist() for name, found in rows.items()} == {"train": [0, 1, 2]}


@settings(max_examples=80, deadline=None)
@given(
    images_of=st.lists(st.integers(1, 4), min_size=8, max_size=40),
    labels_of=st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=7),
    split=partitions,
    test=st.floats(0, 0.8),
    validation=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 1000),
)
def test_a_case_has_one_place_and_a_patient_one_hospital_and_split(images_of, labels_of, split, test, validation, seed):
    whole = source(images_of, labels_of)
    section = SourceSection(kind="phantoms", test=test, validation=validation)
    population = populate(whole, section, split, NO_SHIFT, seed)
    places = where(population)
    of_patient = {}
    for case, place in places.items():
        of_patient.setdefault(int(whole.cases.patients[case]), set()).add(place)
    assert all(len(found) == 1 for found in of_patient.values())
    assert len(population) == split.count
    if split.sizes:
        counts = [sum(place[0] == name for found in of_patient.values() for place in found) for name in population]
        assert counts == list(split.sizes)
    else:
        assert len(places) == len(whole.cases.labels)
    assert all("train" in population[name].splits for name in population)
    assert where(populate(whole, section, split, NO_SHIFT, seed)) == places


@pytest.mark.parametrize("kind", ["iid", "dirichlet"])
def test_without_skew_every_hospital_has_the_same_mix(kind):
    whole = source([1] * 1200, ["a", "a", "b"])
    split = PartitionSection(kind=kind, sites=4, alpha=1e6)
    for name in (population := populate(whole, SourceSection(kind="phantoms"), split, NO_SHIFT, 0)):
        for cases in population[name].splits.values():
            assert np.mean([label == "a" for label in cases.labels]) == pytest.approx(2 / 3, abs=0.02)


def test_a_small_alpha_makes_hospitals_differ():
    whole = source([1] * 1200, ["a", "b"])
    split = PartitionSection(kind="dirichlet", sites=6, alpha=0.1)
    population = populate(whole, SourceSection(kind="phantoms"), split, NO_SHIFT, 0)
    shares = [np.mean([label == "a" for label in population[name].splits["train"].labels]) for name in population]
    assert max(shares) - min(shares) > 0.6


def test_a_power_law_makes_sizes_fall():
    split = PartitionSection(kind="quantity", sites=5, law="power", skew=1.5, least=10)
    population = populate(source([1] * 500, ["a", "b"]), SourceSection(kind="phantoms", test=0), split, NO_SHIFT, 0)
    sizes = [population[name].splits["train"].patient_count for name in population]
    assert sum(sizes) == 500
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 3 * sizes[-1] >= 30


def test_a_share_is_held_out_of_each_label():
    population = populate(
        source([1] * 400, ["a", "a", "a", "b"]), SourceSection(kind="phantoms", test=0.25, validation=0.1),
        PartitionSection(sites=2), NO_SHIFT, 0,
    )  # fmt: skip
    for name in population:
        splits = population[name].splits
        assert {split: cases.patient_count for split, cases in splits.items()} == {
            "train": 130, "validation": 20, "test": 50,
        }  # fmt: skip
        assert splits["test"].labels.count("b") in (12, 13)


def test_a_column_makes_the_hospitals_and_small_ones_are_left_out():
    wards = ("North Wing",) * 10 + ("south",) * 3
    whole = source([1] * 13, ["a", "b"], {"ward": wards})
    split = PartitionSection(kind="column", column="ward", least=5)
    assert list(populate(whole, SourceSection(kind="phantoms"), split, NO_SHIFT, 0)) == ["North-Wing"]


def test_a_patient_in_two_hospitals_is_refused():
    whole = source([2] * 4, ["a", "b"], {"ward": ("n", "s") * 4})
    with pytest.raises(UsageError, match="in two hospitals"):
        populate(whole, SourceSection(kind="phantoms"), PartitionSection(kind="column", column="ward"), NO_SHIFT, 0)


def test_splits_that_come_with_the_data_are_kept():
    whole = source([1] * 20, ["a", "b"], {"ward": ("n",) * 20})
    whole = Source(whole.cases, whole.columns, splits=("train",) * 15 + ("test",) * 5)
    section = SourceSection(kind="phantoms", test=0.5, validation=0.2)
    places = where(populate(whole, section, PartitionSection(kind="column", column="ward"), NO_SHIFT, 0))
    assert {case for case, (_, split) in places.items() if split == "test"} == set(range(15, 20))
    assert sum(split == "validation" for _, split in places.values()) == 3


def test_all_in_one_place_is_everyone():
    population = populate(source([2] * 30, ["a", "b"]), SourceSection(kind="phantoms"), PartitionSection(sites=3), NO_SHIFT, 0)  # fmt: skip  # noqa: E501
    pooled = pool(population)
    assert {case: split for case, (_, split) in where(pooled).items()} == {
        case: split for case, (_, split) in where(population).items()
    }
    assert pooled["pooled"].splits["train"].patient_count == sum(
        population[name].splits["train"].patient_count for name in population
    )


@settings(max_examples=30, deadline=None)
@given(
    shift=st.builds(
        ScannersSection, gain=st.floats(0, 0.9), offset=st.floats(0, 1), gamma=st.floats(0, 2), blur=st.floats(0, 3),
        noise=st.floats(0, 1), inverted=st.floats(0, 1),
    ),
    seed=st.integers(0, 100),
)  # fmt: skip
def test_a_scanner_keeps_images_in_range_and_is_the_same_again(shift, seed):
    random = np.random.default_rng(0)
    whole = Source(CaseSet(random.random((20, 1, 6, 6), dtype=np.float32), ("a", "b") * 10, np.arange(20)))
    made = [
        populate(whole, SourceSection(kind="phantoms"), PartitionSection(sites=2), shift, seed)["site-1"]
        for _ in range(2)
    ]
    for split, cases in made[0].splits.items():
        assert cases.images.dtype == np.float32
        assert cases.images.min() >= 0
        assert cases.images.max() <= 1
        assert cases.images.tobytes() == made[1].splits[split].images.tobytes()


def test_inverted_scanners_are_as_many_as_asked():
    whole = source([1] * 40, ["a", "b"])
    whole = Source(CaseSet(whole.cases.images / 100, whole.cases.labels, whole.cases.patients))
    plain = populate(whole, SourceSection(kind="phantoms"), PartitionSection(sites=4), NO_SHIFT, 0)
    shown = populate(whole, SourceSection(kind="phantoms"), PartitionSection(sites=4), ScannersSection(inverted=0.5), 0)
    turned = [
        not np.array_equal(plain[name].splits["train"].images, shown[name].splits["train"].images) for name in plain
    ]
    assert sum(turned) == 2


def test_ten_thousand_hospitals_are_made_when_they_are_asked():
    section = SourceSection(kind="phantoms", patients=6)
    population = populate_each(section, PartitionSection(kind="each", sites=10_000, skew=0.5), NO_SHIFT, DATA, 3)
    assert len(population) == 10_000
    one, again = population["site-07777"], population["site-07777"]
    assert one.splits["train"].images.tobytes() == again.splits["train"].images.tobytes()
    assert one.splits["train"].images.tobytes() != population["site-07778"].splits["train"].images.tobytes()
    assert len(set(population.sizes)) > 5


def test_to_ask_whether_a_hospital_is_there_does_not_make_it(monkeypatch):
    section = SourceSection(kind="phantoms", patients=6)
    population = populate_each(section, PartitionSection(kind="each", sites=20), NO_SHIFT, DATA, 3)
    monkeypatch.setattr("simulations.populations.draw_phantoms", None)
    assert "site-07" in population
    assert "site-21" not in population


def test_only_phantoms_can_be_drawn_anew_for_each_hospital():
    with pytest.raises(UsageError, match="is for phantoms"):
        populate_each(SourceSection(kind="npz"), PartitionSection(kind="each", sites=3), NO_SHIFT, DATA, 0)
