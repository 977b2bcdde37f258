"""A site with a table: its rows train logistic regression and small networks, alone and with privacy, as images do."""

import csv

import numpy as np
import pytest

from client.baseline import train_alone
from client.catalog import CATALOG_FILE, Catalog
from client.dataset import open_cases
from client.intake.importer import ImportOptions, import_folder
from client.site import Site
from client.summary import in_plain_words
from common.job import DataSection, Job
from common.networks import initial_model
from common.update import Request
from simulations.heart import COLUMNS, FEATURES, hospitals

SICK_FROM = 80
TAKEN = ("age", "sex=m", "pulse")
EPSILON_8 = {"mechanism": "dp-sgd", "epsilon": 8.0, "delta": 1e-3}


def job(network="linear", scale="site", features=TAKEN, **sections):
    data = {"collection": "heart", "features": features, "scale": scale}
    if scale == "standard":
        data |= {"means": (50, 0.5, 80), "deviations": (10, 0.5, 20)}
    tables = {
        "task": {"labels": ["well", "sick"]},
        "data": data,
        "network": {"name": network},
        "training": {"batch_size": 8, "learning_rate": 0.5, "momentum": 0.0},
        "aggregation": {"rounds": 5},
    }
    return Job.model_validate({"name": "j", "sites": ["north"]} | tables | sections)


@pytest.fixture
def site(kit_folder, write_kit, tmp_path):
    """A site of 90 patients with two rows each, of which every one with a fast pulse is sick."""
    write_kit(kit_folder)
    policy = 'collections = ["heart"]\nrequire_privacy = false\nmax_delta = 1e-3\nimage_unit = true\n'
    (kit_folder / "policy.toml").write_text(policy)
    key = kit_folder / "pseudonym.key"
    key.write_bytes(bytes([1]) * 32)  # splits hang on the key: with this one every split has patients of both labels
    key.chmod(0o600)
    random, rows = np.random.default_rng(0), ["patient,name,age,sex,pulse,label"]
    for row in range(180):
        pulse = random.integers(50, 110)
        label = "sick" if pulse >= SICK_FROM else "well"
        rows.append(f"P{row % 90},Zaphod,{30 + row % 40},{'mf'[row % 2]},{pulse},{label}")
    (tmp_path / "heart.csv").write_text("\n".join(rows))
    import_folder(kit_folder, "heart", tmp_path / "heart.csv")
    return Site.open(kit_folder, "cpu")


def train(site, wanted, rounds=5):
    model, answers = initial_model(wanted), []
    for number in range(1, rounds + 1):
        answers.append(site.answer(Request("train", "run", number, wanted, model)))
        assert (answers[-1].status, answers[-1].reason) == ("ok", "")
        model = answers[-1].tensors
    return model, answers


@pytest.mark.parametrize("network", ["linear", "mlp"])
def test_a_site_learns_from_its_table(site, network):
    wanted = job(network)
    model, answers = train(site, wanted)
    assert answers[0].metrics["train.images"] > answers[0].metrics["train.patients"] > 40
    assert answers[-1].metrics["train.loss"] < answers[0].metrics["train.loss"]
    assert right(site, wanted, model) > 0.85 or network == "mlp"
    assert site.answer(Request("evaluate", "run", 5, wanted, model, split="test")).status == "ok"


def right(site, wanted, model):
    """The share of the test split that logistic regression gets right."""
    test = site.bench(wanted).splits["test"]
    if "weight" not in model:
        return 0.0
    outputs = test.cases.images @ model["weight"].T + model["bias"]
    return ((outputs[:, 1] > outputs[:, 0]) == (test.targets.numpy() == 1)).mean()


@pytest.mark.parametrize("engine", ["auto", "plain", "vmap", "bookkeeping", "hooks"])
def test_a_site_learns_with_privacy_for_each_patient(site, engine):
    wanted = job(scale="standard", privacy=EPSILON_8 | {"engine": engine})
    model, answers = train(site, wanted)
    assert 0 < answers[-1].metrics["privacy.epsilon"] <= 8
    assert "train.loss" not in answers[-1].metrics
    assert right(site, wanted, model) > 0.7


def test_ghost_clipping_takes_tables_where_a_row_is_a_unit(site):
    train(site, job("mlp", "standard", privacy=EPSILON_8 | {"engine": "ghost", "unit": "image"}), rounds=1)


def test_the_unit_is_the_patient_and_not_the_row(site):
    wanted = job(scale="unit", privacy=EPSILON_8)
    answer = site.answer(Request("consent", "run", 1, wanted, {}))
    training = site.bench(wanted).training.cases
    assert len(training.labels) == 2 * training.patient_count
    assert answer.examples == pytest.approx(training.patient_count, abs=30)  # with noise


def test_a_site_alone_is_compared_as_with_images(site):
    assert train_alone(site, job()).metrics["eval.accuracy"] > 0.85


def test_a_job_for_a_column_that_the_site_lacks_fails_without_saying_what_there_is(site):
    wanted = job(features=("age", "height"))
    answer = site.answer(Request("train", "run", 1, wanted, initial_model(wanted)))
    assert answer.status == "failed"
    assert "pulse" not in answer.reason
    assert str(site.kit_folder) not in answer.reason


def test_who_decides_on_a_job_reads_which_columns_it_takes():
    text = " ".join(in_plain_words(job()))
    assert "of each row age, sex=m, pulse" in text
    assert "no row does" in text
    assert "pixels" not in text


def test_a_hospital_that_imports_its_own_file_has_the_cases_of_the_published_study(kit_folder, tmp_path, shared_data):
    # The original file as a steward would have it: with a heading, all columns, and the published split.
    original = shared_data / "heart_disease" / "processed.hungarian.data"
    expected = hospitals(original.parent)["hungarian"].splits
    split_of = {tuple(row): split for split, cases in expected.items() for row in cases.images.tolist()}
    table = tmp_path / "hungarian.csv"
    with original.open() as given, table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "slope", "ca", "thal", "label", "split"])
        for row in csv.reader(given):
            ill = "ill" if float(row[13]) > 0 else "healthy"
            writer.writerow([*row[:13], ill, split_of.get(study_values(row), "")])
    report = import_folder(kit_folder, "heart", table, options=ImportOptions(columns=COLUMNS))
    assert (report.indexed, len(report.refused)) == (261, 33)
    data = DataSection(collection="heart", features=FEATURES)
    for split, cases in expected.items():
        found = open_cases(Catalog(kit_folder / CATALOG_FILE), data, split, kit_folder / "cache")
        assert sorted(zip(found.images.tolist(), (label == "ill" for label in found.labels), strict=True)) == sorted(
            zip(cases.images.tolist(), (label != "" for label in cases.labels), strict=True)
        )


def study_values(row):
    """A row of the original file as the study's features; () where one is missing."""
    known = dict(zip(COLUMNS, row, strict=False))
    if "?" in known.values():
        return ()
    found = []
    for feature in FEATURES:
        column, equals, wanted = feature.partition("=")
        found.append(float(float(known[column]) == float(wanted)) if equals else float(known[column]))
    return tuple(np.array(found, np.float32).tolist())
