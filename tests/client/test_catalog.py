from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from client.catalog import CATALOG_FILE, Catalog
from client.intake.importer import import_folder
from common.errors import DataError


@pytest.fixture
def catalog(kit_folder, hospital) -> Catalog:
    import_folder(kit_folder, "chest", *hospital)
    return Catalog(kit_folder / CATALOG_FILE)


def test_a_catalog_that_is_not_there_is_empty_and_is_not_made_by_looking(tmp_path):
    catalog = Catalog(tmp_path / "catalog.sqlite")
    assert catalog.collections() == []
    with pytest.raises(DataError, match='no collection "chest" in the catalog'):
        catalog.digest("chest")
    assert list(tmp_path.iterdir()) == []


def test_a_case_says_where_whose_and_what_it_is(catalog, hospital):
    folder, _ = hospital
    cases = [case for split in ("train", "validation", "test") for case in catalog.cases("chest", split)]
    assert len(cases) == 24
    assert {case.image.parent.parent for case in cases} == {folder}
    assert all(case.frame is None and case.modality == "DX" and len(case.sha256) == 64 for case in cases)
    assert len({case.patient for case in cases}) == 12


def test_each_frame_is_a_case(kit_folder, tmp_path, write_dicom):
    import numpy as np

    write_dicom(tmp_path / "images" / "a.dcm", pixels=np.zeros((5, 8, 8), dtype=np.uint8))
    import_folder(kit_folder, "cine", tmp_path / "images")
    catalog = Catalog(kit_folder / CATALOG_FILE)
    cases = [case for split in ("train", "validation", "test") for case in catalog.cases("cine", split)]
    assert [case.frame for case in cases] == [0, 1, 2, 3, 4]
    assert catalog.summary("cine").images == 5
    assert catalog.summary("cine").files == 1


def test_the_digest_stays_when_files_are_renamed_and_changes_with_a_label(kit_folder, catalog, hospital):
    folder, labels = hospital
    before = catalog.digest("chest")
    order = [case.sha256 for case in catalog.cases("chest", "train")]
    (folder / "p3").rename(folder / "a-new-name")
    import_folder(kit_folder, "chest", folder, labels)
    assert catalog.digest("chest") == before
    assert [case.sha256 for case in catalog.cases("chest", "train")] == order
    labels.write_text(labels.read_text().replace("STUDY-001,well", "STUDY-001,sick"))
    import_folder(kit_folder, "chest", folder, labels)
    assert catalog.digest("chest") != before


def test_collections_do_not_touch_each_other(kit_folder, catalog, hospital):
    before = catalog.digest("chest")
    import_folder(kit_folder, "again", *hospital)
    assert catalog.collections() == ["again", "chest"]
    assert catalog.digest("chest") == before


@pytest.mark.parametrize("damage", ["overwritten", "cut short", "another database", "newer"])
def test_a_damaged_catalog_is_one_clear_line(kit_folder, catalog, hospital, damage):
    with sqlite3.connect(catalog.path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        if damage == "newer":
            connection.execute("PRAGMA user_version = 99")
    connection.close()
    for extra in (Path(f"{catalog.path}-wal"), Path(f"{catalog.path}-shm")):
        extra.unlink(missing_ok=True)
    if damage == "overwritten":
        catalog.path.write_bytes(b"not a database" * 1000)
    elif damage == "cut short":
        catalog.path.write_bytes(catalog.path.read_bytes()[:5000])
    elif damage == "another database":
        catalog.path.unlink()
        with sqlite3.connect(catalog.path) as connection:
            connection.execute("CREATE TABLE patients (name TEXT)")
        connection.close()
    before = catalog.path.read_bytes()
    for use in (lambda: catalog.cases("chest", "train"), lambda: import_folder(kit_folder, "chest", *hospital)):
        with pytest.raises(DataError, match=r"catalog\.sqlite") as caught:
            use()
        assert "\n" not in str(caught.value)
    assert catalog.path.read_bytes() == before


def test_a_block_that_fails_writes_nothing(catalog):
    settings = catalog.settings("chest")
    assert settings is not None
    before = catalog.records("chest"), catalog.collections()
    with pytest.raises(RuntimeError, match="stop"), catalog.replacing("other", "/x", settings, [], {"p": "train"}):
        raise RuntimeError("stop")
    root = before[0][0].root
    with pytest.raises(RuntimeError, match="stop"), catalog.replacing("chest", root, settings, [], {}):
        raise RuntimeError("stop")
    assert (catalog.records("chest"), catalog.collections()) == before


def test_a_site_reads_while_an_import_writes(catalog):
    settings = catalog.settings("chest")
    assert settings is not None
    with catalog.replacing("chest", catalog.records("chest")[0].root, settings, [], {}):
        assert catalog.summary("chest").images == 24


def _as_of_version_1(path: Path) -> None:
    """Make the catalog what the first version's was."""
    with sqlite3.connect(path) as connection:
        for column in ("annotation", "acquired", "seen", "copy"):
            connection.execute(f"ALTER TABLE files DROP COLUMN {column}")
        connection.execute("UPDATE files SET probe = 1")
        connection.execute("PRAGMA user_version = 1")
    connection.close()


def test_a_catalog_of_the_first_version_goes_on_where_it_is_and_learns_the_rest_at_the_next_import(
    kit_folder, catalog, hospital
):
    now, splits = catalog.records("chest"), catalog.splits("chest")
    _as_of_version_1(catalog.path)
    assert [(one.path, one.label, one.seen.pixels) for one in catalog.records("chest")] == [
        (one.path, one.label, "") for one in now
    ]
    import_folder(kit_folder, "chest", *hospital)
    assert (catalog.records("chest"), catalog.splits("chest")) == (now, splits)


def test_of_a_header_the_catalog_keeps_how_an_image_was_made_and_no_word_that_could_be_a_name(
    kit_folder, tmp_path, write_dicom
):
    write_dicom(
        tmp_path / "images" / "a.dcm", Manufacturer="Maker", MagneticFieldStrength=15000, PatientAge="045Y",
        PatientSex="F", SeriesDescription="Ax T2 FLAIR for Ada Lovelace", PixelSpacing=[0.5, 0.7],
        ImageOrientationPatient=[1, 0, 0, 0, 1, 0], ImagePositionPatient=[3, 4, 12.5],
    )  # fmt: skip
    import_folder(kit_folder, "mri", tmp_path / "images")
    (record,) = Catalog(kit_folder / CATALOG_FILE).records("mri")
    found = record.acquired
    assert (found.manufacturer, found.field, found.sex, found.age) == ("Maker", 1.5, "F", 40)
    assert (found.protocol, found.spacing, found.places) == ("ax t2 flair", (0.5, 0.7), (12.5,))
    assert sum(record.seen.histogram) == pytest.approx(10_000, abs=8)
