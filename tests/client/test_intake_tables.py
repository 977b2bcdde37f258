"""Tables: the rows of a CSV file become cases, under pseudonyms, without what names a person."""

import json

import numpy as np
import pytest

from client.catalog import CATALOG_FILE, Catalog
from client.dataset import open_cases
from client.intake.columns import names_a_person
from client.intake.importer import ImportOptions, import_folder
from client.scaling import scaled
from common.errors import DataError, UsageError
from common.job import DataSection

HEADING = "patient,name,age,sex,pulse,label"


def lines(count=40, patients=20):
    """Rows of which two at a time are of one patient, healthy while the pulse is under 80."""
    random = np.random.default_rng(0)
    for row in range(count):
        pulse = random.integers(50, 110)
        label = "sick" if pulse >= 80 else "well"
        yield f"P{row % patients},Zaphod Beeblebrox,{30 + row},{'mf'[row % 2]},{pulse},{label}"


@pytest.fixture
def kit_folder(kit_folder):
    """A kit with a key of which it is known that every split has patients."""
    key = kit_folder / "pseudonym.key"
    key.write_bytes(bytes([1]) * 32)
    key.chmod(0o600)
    return kit_folder


@pytest.fixture
def write(tmp_path):
    def write(*rows, heading=HEADING, name="heart.csv"):
        path = tmp_path / name
        path.write_text("\n".join([heading, *(rows or lines())]) + "\n")
        return path

    return write


def data(*features, **more):
    return DataSection(collection="heart", features=features or ("age", "sex=m", "pulse"), **more)


def cases(kit, split="train", **more):
    return open_cases(Catalog(kit / CATALOG_FILE), data(**more), split, kit / "cache")


def contents(kit):
    return b"".join(path.read_bytes() for path in sorted(kit.rglob("*")) if path.is_file())


def test_each_row_is_a_case_and_a_patients_rows_stay_together(kit_folder, write):
    report = import_folder(kit_folder, "heart", write())
    assert (report.indexed, report.refused, report.summary.patients) == (40, (), 20)
    found = {split: cases(kit_folder, split) for split in ("train", "validation", "test")}
    assert sum(len(one.labels) for one in found.values()) == 40
    train = found["train"]
    assert train.images.dtype == np.float32
    assert train.images.shape == (len(train.labels), 3)
    assert np.bincount(train.patients).tolist() == [2] * train.patient_count
    assert set(train.images[:, 1]) == {0.0, 1.0}
    assert [label == "sick" for label in train.labels] == (train.images[:, 2] >= 80).tolist()


def test_nothing_that_names_a_person_is_kept_or_shown(kit_folder, write):
    report = import_folder(kit_folder, "heart", write())
    assert not {b"Zaphod", b"P17"} & {word for word in (b"Zaphod", b"P17") if word in contents(kit_folder)}
    assert any("name" in line and "tells people apart" in line for line in report.warnings)
    with pytest.raises(UsageError, match='the column "name" tells people apart: it is never imported'):
        import_folder(kit_folder, "other", write(), options=ImportOptions(columns=("age", "name")))


@pytest.mark.parametrize("name", [
    "Name", "PATIENT NAME", "patient_name", "PatientName", "Birth-Date", "date of birth", "E-Mail", "MRN", "record_id",
    "PatientBirthDate", "ReferringPhysicianName", "Nachname", "Patienten-Adresse",
])  # fmt: skip
def test_a_column_that_names_people_is_known_in_any_spelling(name):
    assert names_a_person(name)


@pytest.mark.parametrize("name", ["age", "birth_weight", "tumour id 3 size", "fluid", "hostname", "cp", "surgery"])
def test_a_medical_column_is_not_taken_for_a_name(name):
    assert not names_a_person(name)


@pytest.mark.parametrize(("values", "why"), [
    ([f"word {row}" for row in range(30)], "holds text"),
    (["came in with a cough that had lasted for more than a fortnight", ""] * 15, "holds text"),
    (["2019-03-02", "14.5.2020"] * 15, "holds dates"),
])  # fmt: skip
def test_free_text_and_dates_are_left_out_and_refused_when_asked_for(kit_folder, write, values, why):
    table = write(*(f"{row},{value},well" for row, value in enumerate(values)), heading="age,story,label")
    report = import_folder(kit_folder, "heart", table)
    assert any("story" in line and why in line for line in report.warnings)
    with pytest.raises(UsageError, match=f'the column "story" {why}'):
        import_folder(kit_folder, "other", table, options=ImportOptions(columns=("age", "story")))


@pytest.mark.parametrize("missing", ["?", "", "NA", " n/a ", "NaN"])
def test_a_row_without_a_value_is_refused_with_file_line_and_column(kit_folder, write, missing):
    rows = list(lines())
    rows[3] = f"P3,x,{missing},m,70,well"
    report = import_folder(kit_folder, "heart", write(*rows))
    assert report.refused == (("heart.csv:5", "the row has no value: age"),)
    assert report.indexed == 39
    assert any(line.startswith("rows without a value, by column: age 1") for line in report.warnings)
    text = "\n".join(report.lines())
    assert "rows 40: indexed 39" in text
    assert "image" not in text


def test_rows_without_a_label_or_a_patient_are_refused_too(kit_folder, write):
    rows = list(lines())
    rows[0], rows[1] = "P0,x,30,m,70,", ",x,31,m,70,well"
    report = import_folder(kit_folder, "heart", write(*rows))
    assert dict(report.refused) == {
        "heart.csv:2": "no label: its cell in line 2 of the label file is empty",
        "heart.csv:3": "the row has no value: patient",
    }


def test_an_empty_column_can_be_left_out_by_naming_the_others(kit_folder, write):
    table = write(*(f"{row},{row % 3},?,{'ab'[row % 2]}" for row in range(30)), heading="age,cp,ca,label")
    assert import_folder(kit_folder, "heart", table).indexed == 0
    assert import_folder(kit_folder, "heart", table, options=ImportOptions(columns=("age", "cp"))).indexed == 30


def test_the_same_table_again_changes_nothing_and_a_changed_row_is_the_only_new_one(kit_folder, write):
    rows = list(lines())
    table = write(*rows)
    import_folder(kit_folder, "heart", table)
    again = import_folder(kit_folder, "heart", table)
    assert (again.indexed, again.unchanged, again.removed) == (0, 40, 0)
    before = Catalog(kit_folder / CATALOG_FILE).splits("heart")
    rows[7] = rows[7].replace(",37,", ",38,")
    changed = import_folder(kit_folder, "heart", write(*reversed(rows)))
    assert (changed.indexed, changed.unchanged, changed.removed) == (1, 39, 1)
    assert Catalog(kit_folder / CATALOG_FILE).splits("heart") == before
    assert len(list((kit_folder / "tables").rglob("*.json"))) == 40


def test_rows_that_are_the_same_are_cases_of_their_own(kit_folder, write):
    table = write(*["40,well"] * 5, "41,sick", heading="age,label")
    report = import_folder(kit_folder, "heart", table)
    assert (report.indexed, report.summary.patients) == (6, 6)


def test_a_collection_may_have_several_tables(kit_folder, write):
    import_folder(kit_folder, "heart", write(name="a.csv"))
    second = write(*(f"Q{row},x,{row},m,60,well" for row in range(5)), name="b.csv")
    report = import_folder(kit_folder, "heart", second)
    assert (report.indexed, report.summary.images) == (5, 45)


def test_semicolons_tabs_decimal_commas_and_byte_order_marks_are_read(kit_folder, tmp_path):
    table = tmp_path / "europe.csv"
    table.write_text("age;lvef;label\n" + "".join(f"{age};0,{age};well\n" for age in range(30, 60)), "utf-8-sig")
    import_folder(kit_folder, "heart", table)
    found = open_cases(Catalog(kit_folder / CATALOG_FILE), data("age", "lvef"), "train", kit_folder / "cache")
    assert np.allclose(found.images[:, 1], found.images[:, 0] / 100)


def test_a_comma_that_parts_thousands_is_not_taken_for_a_decimal_one(kit_folder, tmp_path):
    table = tmp_path / "us.csv"
    table.write_text("age,cells,label\n" + '40,"1,234",well\n' * 9)
    import_folder(kit_folder, "heart", table)
    with pytest.raises(DataError, match='the column "cells" holds "1,234", no number'):
        open_cases(Catalog(kit_folder / CATALOG_FILE), data("cells"), "train", kit_folder / "cache")


@pytest.mark.parametrize(("text", "said"), [
    ("age,label\n", "needs a heading and at least one row"),
    ("age,Age,label\n1,2,x\n", 'two columns are called "age"'),
    ("age,label\n1\n", ":2: the row has 1 cells, the heading has 2"),
    ("age,disease\n1,yes\n", 'no column "label" with labels: name it with --label-column'),
    ("name,label\nx,y\n", "no column is a feature"),
    ("age,split,label\n1,fold1,x\n", ':2: the column "split" says "fold1", which is neither'),
    ('age,label\n1,"x\n', "not valid CSV"),
])  # fmt: skip
def test_a_table_that_cannot_be_used_is_refused_in_one_line_and_leaves_nothing(kit_folder, tmp_path, text, said):
    table = tmp_path / "t.csv"
    table.write_text(text)
    with pytest.raises(DataError) as refusal:
        import_folder(kit_folder, "heart", table)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not list(kit_folder.rglob("*.json"))


@pytest.mark.parametrize("columns", [("height",), ("label",), ("age", "patient")])
def test_a_column_that_cannot_be_a_feature_is_refused_when_asked_for(kit_folder, write, columns):
    with pytest.raises(UsageError, match=f'column "{columns[-1]}"'):
        import_folder(kit_folder, "heart", write(), options=ImportOptions(columns=columns))
    assert not list(kit_folder.rglob("*.json"))


def test_a_table_that_is_not_there_is_said_to_be_a_table(kit_folder, tmp_path):
    with pytest.raises(DataError, match="the table can't be read: No such file"):
        import_folder(kit_folder, "heart", tmp_path / "heart.csv")


def test_labels_may_name_the_table_itself_but_no_other_file(kit_folder, write, tmp_path):
    table = write()
    assert import_folder(kit_folder, "heart", table, table).indexed == 40
    with pytest.raises(UsageError, match="a column of its own"):
        import_folder(kit_folder, "heart", table, write(name="labels.csv"))


def test_a_table_in_a_folder_of_images_is_refused_with_what_to_do(kit_folder, write, hospital):
    folder, labels = hospital
    write().rename(folder / "heart.csv")
    report = import_folder(kit_folder, "chest", folder, labels)
    assert dict(report.refused)["heart.csv"].startswith("a table: give labels of images by --labels")


def test_an_import_that_fails_leaves_the_collection_and_its_records_as_they_were(kit_folder, write):
    import_folder(kit_folder, "heart", write())
    before = sorted(path.name for path in (kit_folder / "tables").rglob("*"))
    rows = [*lines(), "P0,x,99,m,70,well"]
    both = [f"{row},{'train' if number % 2 else 'test'}" for number, row in enumerate(rows)]
    with pytest.raises(DataError, match=r"splits never change|a patient is in one"):
        import_folder(kit_folder, "heart", write(*both, heading=f"{HEADING},split"))
    assert sorted(path.name for path in (kit_folder / "tables").rglob("*")) == before
    assert len(cases(kit_folder).labels) > 0


def test_a_published_split_is_kept(kit_folder, write):
    parts = ["train", "val", "Test", ""]
    rows = [f"{row},{parts[number % 20 % 4]}" for number, row in enumerate(lines())]
    import_folder(kit_folder, "heart", write(*rows, heading=f"{HEADING},split"))
    found = Catalog(kit_folder / CATALOG_FILE).cases
    ages = {
        split: {int(json.loads(case.image.read_bytes())["values"]["age"]) for case in found("heart", split)}
        for split in ("train", "validation", "test")
    }
    for place, split in enumerate(("train", "validation", "test")):
        assert ages[split] >= {30 + row for row in range(40) if row % 20 % 4 == place}
    assert set.union(*ages.values()) == set(range(30, 70))  # the others go by the key


def test_a_patient_cannot_be_in_two_splits(kit_folder, write):
    rows = [f"{row},{'train' if number < 20 else 'test'}" for number, row in enumerate(lines())]
    with pytest.raises(DataError, match="of the same patient, is in the train split: a patient is in one"):
        import_folder(kit_folder, "heart", write(*rows, heading=f"{HEADING},split"))


def test_a_published_split_of_images_is_kept_too_and_never_changes(kit_folder, hospital):
    folder, labels = hospital
    first, *rows = labels.read_text().splitlines()
    labels.write_text("\n".join([f"{first},split", *(f"{row},{'test' if at < 5 else 'train'}" for at, row in enumerate(rows))]))  # fmt: skip  # noqa: E501
    report = import_folder(kit_folder, "chest", folder, labels)
    assert {name: split.patients for name, split in report.summary.splits.items()} == {
        "train": 7, "validation": 0, "test": 5,
    }  # fmt: skip
    labels.write_text(labels.read_text().replace(",test", ",train"))
    with pytest.raises(DataError, match="splits never change: import into a new collection"):
        import_folder(kit_folder, "chest", folder, labels)


def test_a_job_that_asks_for_what_is_not_there_is_refused_in_one_line(kit_folder, write):
    import_folder(kit_folder, "heart", write())
    catalog = Catalog(kit_folder / CATALOG_FILE)
    for features, said in ((("height",), 'no column "height": it has age, sex, pulse'), (("sex",), 'ask for "sex=')):
        with pytest.raises(DataError) as refusal:
            open_cases(catalog, data(*features), "train", kit_folder / "cache")
        assert said in str(refusal.value)
        assert "\n" not in str(refusal.value)
    with pytest.raises(DataError, match=r"give the job data\.features"):
        open_cases(catalog, DataSection(collection="heart"), "train", kit_folder / "cache")


def test_an_image_job_and_a_table_job_do_not_mix_up_their_collections(kit_folder, hospital):
    import_folder(kit_folder, "heart", *hospital)
    with pytest.raises(DataError, match=r"an image is no row of a table: leave data\.features out"):
        cases(kit_folder)


def test_a_record_that_was_damaged_is_noticed_and_mended_by_importing_again(kit_folder, write):
    table = write()
    import_folder(kit_folder, "heart", table)
    whole = cases(kit_folder).images.copy()
    for path in (kit_folder / "tables").rglob("*.json"):
        path.write_text("{}")
    for path in (kit_folder / "cache").glob("*.npy"):
        path.unlink()
    with pytest.raises(DataError, match="import its folder again"):
        cases(kit_folder)
    import_folder(kit_folder, "heart", table)
    assert np.array_equal(cases(kit_folder).images, whole)


def test_each_site_scales_by_its_own_training_split(kit_folder, write):
    import_folder(kit_folder, "heart", write())
    splits = {split: cases(kit_folder, split) for split in ("train", "test")}
    found = scaled(splits, data(scale="site"))
    mean, deviation = splits["train"].images.mean(axis=0), splits["train"].images.std(axis=0, ddof=1)
    for split, one in splits.items():
        assert np.allclose(found[split].images, (one.images - mean) / deviation, atol=1e-5)
        assert found[split].images.dtype == np.float32
    assert np.allclose(found["train"].images.mean(axis=0), 0, atol=1e-5)


def test_a_feature_that_is_the_same_for_all_becomes_nothing(kit_folder, write):
    import_folder(kit_folder, "heart", write(*(f"P{row},x,{row},m,0.1,well" for row in range(40))))
    splits = {split: cases(kit_folder, split) for split in ("train", "test")}
    for one in scaled(splits, data(scale="site")).values():
        assert np.array_equal(one.images[:, 1:], np.zeros_like(one.images[:, 1:]))


def test_without_a_training_split_there_is_nothing_to_scale_by(kit_folder, write):
    import_folder(kit_folder, "heart", write())
    with pytest.raises(DataError, match="needs a training split"):
        scaled({"test": cases(kit_folder, "test")}, data(scale="site"))


def test_public_constants_scale_as_they_say(kit_folder, write):
    import_folder(kit_folder, "heart", write())
    splits = {"train": cases(kit_folder)}
    wanted = data(scale="standard", means=(50.0, 0.5, 80.0), deviations=(10.0, 0.5, 20.0))
    expected = (splits["train"].images - [50, 0.5, 80]) / [10, 0.5, 20]
    assert np.allclose(scaled(splits, wanted)["train"].images, expected)
    assert scaled(splits, data())["train"].images is splits["train"].images
