"""What a steward gets who says --deidentify: copies in the kit, which are catalogued and read, and a report."""

from __future__ import annotations

import json
from pathlib import Path

import pydicom
import pytest
from typer.testing import CliRunner

from client.catalog import CATALOG_FILE, Catalog
from client.cli import app
from client.dataset import open_cases
from client.intake.importer import ImportOptions, import_folder
from client.intake.quality import pictures
from common.errors import UsageError
from common.job import DataSection

COPIES = ImportOptions(deidentify=True, fractions=(1.0, 0.0, 0.0))


def copies(kit_folder: Path) -> list[Path]:
    return sorted((kit_folder / "deidentified").rglob("*.dcm"))


@pytest.fixture
def identified(tmp_path, write_dicom):
    """A folder of three patients' files, with their names, and the label file by patient ID."""
    folder, labels = tmp_path / "images", tmp_path / "labels.csv"
    for number in range(3):
        write_dicom(
            folder / f"{number}.dcm", PatientName=f"Quillonby^{number}", PatientID=f"MRN-{number}",
            PatientIdentityRemoved="NO",
        )  # fmt: skip
    labels.write_text("patient,label\nMRN-0,sick\nMRN-1,well\nMRN-2,well\n")
    return folder, labels


def test_identified_files_are_refused_unless_copies_without_identities_are_asked_for(kit_folder, identified):
    assert import_folder(kit_folder, "chest", *identified).reasons == {"identifies a person": 3}
    assert not copies(kit_folder)
    report = import_folder(kit_folder, "chest", *identified, options=COPIES)
    assert (report.indexed, report.refused, report.flags) == (3, (), ())
    assert len(copies(kit_folder)) == report.deidentified.files == 3


def test_copies_are_what_is_trained_on_and_only_the_site_may_read_them(kit_folder, identified, tmp_path):
    import_folder(kit_folder, "chest", *identified, options=COPIES)
    cases = Catalog(kit_folder / CATALOG_FILE).cases("chest", "train")
    assert sorted(case.image for case in cases) == copies(kit_folder)
    assert {path.stat().st_mode & 0o777 for path in copies(kit_folder)} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (kit_folder / "deidentified").rglob("*") if path.is_dir()} == {
        0o700
    }
    for path in identified[0].iterdir():
        path.unlink()  # the sources are not needed any more
    data = DataSection(collection="chest", size=(16, 16))
    assert len(open_cases(Catalog(kit_folder / CATALOG_FILE), data, "train", tmp_path / "cache").labels) == 3


def test_a_patient_counts_as_the_same_one_with_and_without_copies(kit_folder, identified):
    plain = ImportOptions(allow_identified=True, fractions=(1.0, 0.0, 0.0))
    import_folder(kit_folder, "plain", *identified, options=plain)
    import_folder(kit_folder, "copied", *identified, options=COPIES)
    catalog = Catalog(kit_folder / CATALOG_FILE)
    assert catalog.splits("plain") == catalog.splits("copied")
    assert catalog.sharing("copied") == ("plain",)
    assert {pydicom.dcmread(path).PatientID for path in copies(kit_folder)} == set(catalog.splits("plain"))


def test_importing_again_changes_no_copy_and_reports_the_same(kit_folder, identified):
    first = import_folder(kit_folder, "chest", *identified, options=COPIES)
    before = {path: path.stat().st_mtime_ns for path in copies(kit_folder)}
    again = import_folder(kit_folder, "chest", *identified, options=COPIES)
    assert (again.indexed, again.unchanged, again.deidentified) == (0, 3, first.deidentified)
    assert {path: path.stat().st_mtime_ns for path in copies(kit_folder)} == before


def test_a_copy_goes_when_its_source_goes_and_all_go_with_a_plain_import(kit_folder, identified):
    import_folder(kit_folder, "chest", *identified, options=COPIES)
    (identified[0] / "0.dcm").unlink()
    assert import_folder(kit_folder, "chest", *identified, options=COPIES).removed == 1
    assert len(copies(kit_folder)) == 2
    import_folder(kit_folder, "chest", *identified)
    assert not (kit_folder / "deidentified").exists()


def test_a_lost_copy_is_made_again(kit_folder, identified):
    import_folder(kit_folder, "chest", *identified, options=COPIES)
    copies(kit_folder)[0].unlink()
    import_folder(kit_folder, "chest", *identified, options=COPIES)
    assert len(copies(kit_folder)) == 3


def test_a_failed_import_leaves_catalog_and_copies_as_they_were(kit_folder, identified, write_dicom, monkeypatch):
    import_folder(kit_folder, "chest", *identified, options=COPIES)
    before = copies(kit_folder)
    write_dicom(identified[0] / "9.dcm", PatientID="MRN-0")
    monkeypatch.setattr("client.intake.importer.write_report", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        import_folder(kit_folder, "chest", *identified, options=COPIES)
    assert copies(kit_folder) == before
    assert len(Catalog(kit_folder / CATALOG_FILE).cases("chest", "train")) == 3


def test_the_kit_holds_no_identity_afterwards(kit_folder, identified):
    report = import_folder(kit_folder, "chest", *identified, options=COPIES)
    everything = b"".join(path.read_bytes() for path in kit_folder.rglob("*") if path.is_file())
    assert b"Quillonby" not in everything
    assert b"MRN-" not in everything
    assert "PatientName" in report.to_json()


def test_the_audit_log_and_the_report_say_how_many_and_by_which_rules(kit_folder, identified, write_kit):
    write_kit(kit_folder)
    given = ["import", str(identified[0]), "--collection", "chest", "--kit", str(kit_folder), "--deidentify", "--json"]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    done = json.loads(result.stdout)["deidentified"]
    assert (done["files"], done["attributes"]["emptied"]["PatientName"]) == (3, 3)
    noted = json.loads((kit_folder / "audit.jsonl").read_text().splitlines()[-1])
    assert "113" not in str(done["profile"])
    assert '"files": 3' in json.dumps(noted)
    assert "PS3.15" in json.dumps(noted)


def test_annotations_have_copies_too_although_they_are_no_images(kit_folder, shared_data):
    report = import_folder(kit_folder, "rt", shared_data / "radiotherapy_dicom", options=COPIES)
    assert report.indexed == 1
    assert {pydicom.dcmread(path).Modality for path in copies(kit_folder)} == {"CT", "RTSTRUCT", "RTPLAN", "RTDOSE"}


def test_cleaning_pixels_without_copies_makes_no_sense():
    with pytest.raises(UsageError, match="needs --deidentify"):
        ImportOptions(clean_pixels=True)
    with pytest.raises(UsageError, match="say one of them"):
        ImportOptions(deidentify=True, clean_pixels=True, allow_burned_in=True)


def test_the_quality_report_shows_the_copies(kit_folder, identified):
    import_folder(kit_folder, "chest", *identified, options=COPIES)
    for path in identified[0].iterdir():
        path.unlink()
    records = Catalog(kit_folder / CATALOG_FILE).records("chest")
    assert all(pictures.format_named(record.format).inspect(record.image).frames == 1 for record in records)
