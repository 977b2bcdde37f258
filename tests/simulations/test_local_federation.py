from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from certs.kits import read_roster
from client.intake.importer import import_folder
from client.policy import check_job, read_policy
from common.errors import DataError, RefusedError, UsageError
from common.job import parse_job
from common.kit import read_kit
from simulations.demo import DemoOptions, job_text
from simulations.federation import COLLECTION, LocalFederation, create_federation
from simulations.hospitals import HOSPITALS, write_hospital
from simulations.own_data import OwnData, split_folder

DATA = OwnData(("normal", "pneumonia"), False, {})


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> LocalFederation:
    folder = tmp_path_factory.mktemp("federation") / "demo"
    return create_federation(folder, ["north", "south"], collection=COLLECTION, private=True)


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    write_hospital(replace(HOSPITALS[0], patients=90), folder, seed=1)
    return folder


def test_every_site_is_admitted_with_a_key_of_its_own(federation: LocalFederation):
    roster = read_roster(federation.coordinator_kit / "roster")
    assert set(roster) == {"north", "south"}
    keys = {site: read_kit(federation.site_kit(site), "site").key for site in roster}
    assert keys["north"].read_bytes() != keys["south"].read_bytes()
    assert all(key.stat().st_mode & 0o777 == 0o600 for key in keys.values())


def test_the_sites_allow_the_demos_job_and_no_other_collection(federation: LocalFederation):
    policy = read_policy(federation.site_kit("north"))
    text = job_text(DemoOptions(), federation.sites, DATA)
    check_job(policy, parse_job(text))
    with pytest.raises(RefusedError, match="collection"):
        check_job(policy, parse_job(text.replace(COLLECTION, "other")))
    with pytest.raises(RefusedError, match="requires differential privacy"):
        check_job(policy, parse_job(text.replace("dp-sgd", "none")))


def test_without_privacy_is_allowed_only_when_asked_for(tmp_path: Path):
    federation = create_federation(tmp_path, ["a"], collection=COLLECTION, private=False)
    job = parse_job(job_text(DemoOptions(private=False), federation.sites, DATA))
    check_job(read_policy(federation.site_kit("a")), job)
    assert not job.private


def test_a_folder_in_use_is_not_touched(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="is not empty: name a new folder"):
        create_federation(tmp_path, ["a"], collection=COLLECTION, private=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_ones_own_folder_is_split_by_patient(own_folder: Path, tmp_path: Path):
    federation = create_federation(tmp_path, ["a", "b"], collection=COLLECTION, private=True)
    data = split_folder(own_folder, federation, seed=0, allow_identified=False)
    assert data.labels == ("normal", "pneumonia")
    assert not data.multilabel
    assert sum(data.files.values()) == len(list(own_folder.rglob("*.dcm")))
    tables = [(federation.data(site) / "labels.csv").read_text().splitlines() for site in federation.sites]
    patients = [{row["patient"] for row in csv.DictReader(table)} for table in tables]
    assert [len(part) for part in patients] == [45, 45]
    assert not patients[0] & patients[1]


def test_a_hospital_can_import_its_part(own_folder: Path, tmp_path: Path):
    federation = create_federation(tmp_path, ["a", "b"], collection=COLLECTION, private=True)
    data = split_folder(own_folder, federation, seed=0, allow_identified=False)
    folder = federation.data("a")
    report = import_folder(federation.site_kit("a"), COLLECTION, folder, folder / "labels.csv")
    assert report.summary is not None
    assert (report.summary.images, report.summary.patients) == (data.files["a"], 45)


def test_too_few_patients_for_so_many_hospitals_is_one_clear_line(own_folder: Path, tmp_path: Path):
    federation = create_federation(tmp_path, ["a", "b", "c"], collection=COLLECTION, private=True)
    with pytest.raises(DataError, match="90 labelled patients are too few for 3 hospitals"):
        split_folder(own_folder, federation, seed=0, allow_identified=False)


def test_a_folder_without_labels_is_one_clear_line(tmp_path: Path):
    federation = create_federation(tmp_path / "demo", ["a"], collection=COLLECTION, private=True)
    with pytest.raises(DataError, match=r"labels\.csv is missing"):
        split_folder(tmp_path, federation, seed=0, allow_identified=False)
