from __future__ import annotations

import pytest

from client.intake.identity import Pseudonyms
from client.intake.labels import read_labels
from common.errors import DataError

SECRET = Pseudonyms(bytes(32))


def labels(tmp_path, text: str, **options):
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding=options.pop("encoding", "utf-8"))
    return read_labels(path, SECRET, **options)


@pytest.mark.parametrize(
    ("heading", "kind"),
    [
        ("patient", "patient"), ("PatientID", "patient"), ("study", "study"), ("StudyInstanceUID", "study"),
        ("file", "file"), ("path", "file"), ("SOPInstanceUID", "instance"), ("SeriesInstanceUID", "series"),
    ],
)  # fmt: skip
def test_the_column_of_keys_is_known_by_its_name(tmp_path, heading, kind):
    assert labels(tmp_path, f"{heading},label\na,sick\n").kind == kind


def test_the_most_specific_column_counts(tmp_path):
    assert labels(tmp_path, "patient,file,label\np1,a.png,sick\n").kind == "file"
    assert labels(tmp_path, "patient,file,label\np1,a.png,sick\n", key_column="patient").kind == "patient"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_as_spreadsheets_save_them_are_read(tmp_path, separator):
    text = f"patient{separator}label\r\np1{separator}sick\r\n\r\n"
    assert [row.label for row in labels(tmp_path, text, encoding="utf-8-sig").rows.values()] == ["sick"]


def test_no_key_is_kept_as_it_was_written(tmp_path):
    table = labels(tmp_path, "patient,label\nSMITH-1,sick\n")
    assert "SMITH" not in repr(table.rows)


def test_several_labels_are_joined_and_an_empty_cell_then_means_none(tmp_path):
    table = labels(tmp_path, "patient,label\np1,effusion | cardiomegaly\np2,\n")
    assert [row.label for row in table.rows.values()] == ["cardiomegaly|effusion", ""]


def test_an_empty_cell_is_no_label_where_nobody_has_several(tmp_path):
    assert [row.label for row in labels(tmp_path, "patient,label\np1,sick\np2,\n").rows.values()] == ["sick", None]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("patient,label\np1,sick\np1,well\n", ":3: the row contradicts line 2"),
        ("patient,diagnosis\np1,sick\n", 'no column "label"'),
        ("name,label\np1,sick\n", "no column of keys"),
        ("patient,label\np1\n", ":2: the row has 1 cells"),
        ("patient,label\n,sick\n", ":2: the cell"),
        ("patient,label\n", "no rows"),
        ("", 'no column "label"'),
        ("patient,label,label\np1,a,b\n", "more than one column"),
        ('patient,label\n"p1,sick\n', "not valid CSV"),
    ],
)
def test_a_wrong_label_file_is_one_clear_line(tmp_path, text, complaint):
    with pytest.raises(DataError, match=r"labels\.csv") as caught:
        labels(tmp_path, text)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "p1" not in str(caught.value)


def test_a_spreadsheet_is_not_taken_for_text(tmp_path):
    path = tmp_path / "labels.xlsx"
    path.write_bytes(b"PK\x03\x04" + bytes(range(256)))
    with pytest.raises(DataError, match="save it as CSV"):
        read_labels(path, SECRET)


def test_a_label_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv: the label file can't be read"):
        read_labels(tmp_path / "none.csv", SECRET)
