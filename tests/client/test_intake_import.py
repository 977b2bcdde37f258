from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from client.catalog import CATALOG_FILE, Catalog
from client.intake.importer import ImportOptions, import_folder
from common.errors import DataError, UsageError

PROJECT = Path(__file__).resolve().parents[2]


def reason_of(report, path: str) -> str:
    return dict(report.refused)[path]


def contents(kit_folder: Path) -> list[tuple]:
    """Every row of the catalog."""
    with sqlite3.connect(kit_folder / CATALOG_FILE) as connection:
        return [row for table in ("collections", "patients", "files") for row in connection.execute(
            f"SELECT * FROM {table} ORDER BY 1, 2, 3")]  # fmt: skip


def test_every_file_is_indexed_with_its_label_and_patient(kit_folder, hospital):
    report = import_folder(kit_folder, "chest", *hospital)
    assert (report.indexed, report.unchanged, report.refused, report.flags) == (24, 0, (), ())
    assert report.summary is not None
    assert (report.summary.images, report.summary.patients) == (24, 12)
    assert report.summary.labels == {"sick": 8, "well": 16}
    assert report.summary.modalities == {"DX": 24}


def test_a_second_import_changes_nothing_and_opens_no_file(kit_folder, hospital):
    import_folder(kit_folder, "chest", *hospital)
    before = contents(kit_folder)
    folder, labels = hospital
    opened = []
    sys.addaudithook(lambda event, given: opened.append(str(given[0])) if event == "open" else None)
    report = import_folder(kit_folder, "chest", folder, labels)
    assert (report.indexed, report.unchanged, report.removed, report.refused) == (0, 24, 0, ())
    assert contents(kit_folder) == before
    assert not [path for path in opened if path.endswith(".dcm")]


def test_touched_files_are_unchanged_and_altered_ones_are_not(kit_folder, hospital, write_dicom):
    folder, labels = hospital
    import_folder(kit_folder, "chest", folder, labels)
    os.utime(folder / "p0" / "0.dcm")
    write_dicom(folder / "p0" / "1.dcm", PatientID="STUDY-000", seed=99)
    report = import_folder(kit_folder, "chest", folder, labels)
    assert (report.indexed, report.unchanged) == (1, 23)


def test_splits_are_by_patient_and_stay_when_data_is_added(kit_folder, hospital, write_dicom):
    folder, labels = hospital
    import_folder(kit_folder, "chest", folder, labels)
    catalog = Catalog(kit_folder / CATALOG_FILE)
    before = catalog.splits("chest")
    for patient in range(50, 90):
        write_dicom(folder / f"new{patient}.dcm", PatientID=f"STUDY-{patient:03}")
    labels.write_text(labels.read_text() + "".join(f"STUDY-{patient:03},well\n" for patient in range(50, 90)))
    import_folder(kit_folder, "chest", folder, labels)
    after = catalog.splits("chest")
    assert {patient: after[patient] for patient in before} == before
    assert len(after) == 52
    assert set(after.values()) == {"train", "validation", "test"}
    for split in ("train", "validation", "test"):
        assert {after[case.patient] for case in catalog.cases("chest", split)} == {split}


def test_a_file_of_splits_alone_serves_tasks_that_need_no_label(kit_folder, hospital, tmp_path):
    folder, _ = hospital
    splits = tmp_path / "splits.csv"
    rows = [f"STUDY-{number:03},{('train', 'validation', 'test')[number % 3]}" for number in range(12)]
    splits.write_text("patient,split\n" + "\n".join(rows))
    for _ in range(2):  # and again, when the collection is there already
        report = import_folder(kit_folder, "chest", folder, splits)
        assert (report.summary.images, report.refused) == (24, ())
    catalog = Catalog(kit_folder / CATALOG_FILE)
    assert {case.label for name in ("train", "validation", "test") for case in catalog.cases("chest", name)} == {None}
    assert [catalog.summary("chest").splits[name].patients for name in ("train", "validation", "test")] == [4, 4, 4]


def test_a_file_of_splits_alone_takes_no_label_away(kit_folder, hospital, tmp_path):
    import_folder(kit_folder, "chest", *hospital)
    splits = tmp_path / "splits.csv"
    splits.write_text("patient,split\n" + "".join(f"STUDY-{number:03},\n" for number in range(12)))
    report = import_folder(kit_folder, "chest", hospital[0], splits)
    assert (report.summary.labels, report.refused) == ({"sick": 8, "well": 16}, ())


def test_the_same_secret_and_seed_give_the_same_splits_in_a_new_catalog(kit_folder, hospital):
    import_folder(kit_folder, "chest", *hospital)
    catalog = Catalog(kit_folder / CATALOG_FILE)
    before = catalog.splits("chest")
    for file in kit_folder.glob("catalog.sqlite*"):
        file.unlink()
    import_folder(kit_folder, "chest", *hospital)
    assert catalog.splits("chest") == before
    import_folder(kit_folder, "other-seed", *hospital, options=ImportOptions(seed=7))
    assert catalog.splits("other-seed") != before


def test_the_splits_have_the_sizes_that_were_asked_for(kit_folder):
    from client.intake.identity import open_pseudonyms

    pseudonyms = open_pseudonyms(kit_folder)
    drawn = [pseudonyms.split(str(patient), 0, (0.7, 0.2, 0.1)) for patient in range(5000)]
    assert [round(drawn.count(name) / 5000, 1) for name in ("train", "validation", "test")] == [0.7, 0.2, 0.1]


def test_seed_and_fractions_of_a_collection_cannot_change(kit_folder, hospital):
    import_folder(kit_folder, "chest", *hospital)
    with pytest.raises(UsageError, match="splits never change"):
        import_folder(kit_folder, "chest", *hospital, options=ImportOptions(seed=1))
    with pytest.raises(UsageError, match="splits never change"):
        import_folder(kit_folder, "chest", *hospital, options=ImportOptions(fractions=(0.5, 0.25, 0.25)))


def test_no_identity_is_in_the_catalog_or_in_a_report(kit_folder, tmp_path, write_dicom):
    folder = tmp_path / "images"
    write_dicom(
        folder / "a.dcm", PatientID="MRN-778899", PatientName="Zaphod^Beeblebrox", StudyInstanceUID="1.2.3.4.5.6.7",
        PatientIdentityRemoved="NO", SOPInstanceUID="1.2.3.4.5.6.8",
    )  # fmt: skip
    import_folder(kit_folder, "chest", folder, options=ImportOptions(allow_identified=True))
    import_folder(kit_folder, "strict", folder)
    everything = b"".join(path.read_bytes() for path in kit_folder.rglob("*") if path.is_file())
    for secret in (b"778899", b"Zaphod", b"Beeblebrox", b"1.2.3.4.5.6.7", b"1.2.3.4.5.6.8"):
        assert secret not in everything


def test_pseudonyms_are_keyed_with_the_sites_own_secret(kit_folder, tmp_path, hospital):
    other = tmp_path / "other-kit"
    other.mkdir()
    import_folder(kit_folder, "chest", *hospital)
    import_folder(other, "chest", *hospital)
    assert (kit_folder / "pseudonym.key").stat().st_mode & 0o777 == 0o600
    assert len((kit_folder / "pseudonym.key").read_bytes()) == 32
    first, second = (set(Catalog(kit / CATALOG_FILE).splits("chest")) for kit in (kit_folder, other))
    assert not first & second


def test_a_lost_secret_is_noticed(kit_folder, hospital):
    import_folder(kit_folder, "chest", *hospital)
    (kit_folder / "pseudonym.key").unlink()
    with pytest.raises(DataError, match=r"another pseudonym\.key"):
        import_folder(kit_folder, "chest", *hospital)


def test_a_file_that_identifies_a_person_is_refused_and_flagged_unless_allowed(kit_folder, tmp_path, write_dicom):
    folder = tmp_path / "images"
    write_dicom(folder / "a.dcm", PatientName="Smith^John", PatientIdentityRemoved=None)
    report = import_folder(kit_folder, "chest", folder)
    assert reason_of(report, "a.dcm") == "identifies a person: PatientName"
    assert report.flags == (("a.dcm", ("PatientName",)),)
    report = import_folder(kit_folder, "chest", folder, options=ImportOptions(allow_identified=True))
    assert (report.indexed, report.refused) == (1, ())
    assert report.flags == (("a.dcm", ("PatientName",)),)


def test_declared_text_in_the_pixels_is_refused_unless_allowed(kit_folder, tmp_path, write_dicom):
    folder = tmp_path / "images"
    write_dicom(folder / "a.dcm", BurnedInAnnotation="YES")
    assert reason_of(import_folder(kit_folder, "us", folder), "a.dcm").startswith("burned-in annotation")
    report = import_folder(kit_folder, "us", folder, options=ImportOptions(allow_burned_in=True))
    assert report.indexed == 1


def test_an_ultrasound_that_does_not_say_if_it_has_text_is_pointed_out(kit_folder, tmp_path, write_dicom):
    folder = tmp_path / "images"
    write_dicom(folder / "a.dcm", BurnedInAnnotation=None, Modality="US")
    report = import_folder(kit_folder, "us", folder)
    assert any("silent on text in the pixels: 1 file" in warning for warning in report.warnings)


def test_files_without_a_label_are_refused_when_there_are_labels(kit_folder, hospital, write_dicom):
    folder, labels = hospital
    write_dicom(folder / "x.dcm", PatientID="NOBODY")
    labels.write_text(labels.read_text() + "STUDY-777,sick\n")
    report = import_folder(kit_folder, "chest", folder, labels)
    assert reason_of(report, "x.dcm") == "no label: the label file has no row for it by patient"
    assert "rows of the label file that match no readable image: 1" in report.warnings


def test_labels_that_match_nothing_are_one_clear_error_and_nothing_is_written(kit_folder, hospital):
    folder, labels = hospital
    labels.write_text("patient,label\nsomeone else,sick\n")
    with pytest.raises(DataError, match="none of its 1 rows matches any of the 24 readable images"):
        import_folder(kit_folder, "chest", folder, labels)
    assert Catalog(kit_folder / CATALOG_FILE).collections() == []


def test_new_labels_take_effect_and_an_import_without_labels_keeps_them(kit_folder, hospital):
    folder, labels = hospital
    import_folder(kit_folder, "chest", folder, labels)
    digest = Catalog(kit_folder / CATALOG_FILE).digest("chest")
    report = import_folder(kit_folder, "chest", folder)
    assert (report.unchanged, report.refused) == (24, ())
    assert Catalog(kit_folder / CATALOG_FILE).digest("chest") == digest
    labels.write_text(labels.read_text().replace("well", "healthy"))
    report = import_folder(kit_folder, "chest", folder, labels)
    assert report.summary is not None
    assert report.summary.labels == {"healthy": 16, "sick": 8}


def test_one_class_only_is_imported_with_a_warning(kit_folder, hospital):
    folder, labels = hospital
    labels.write_text(labels.read_text().replace("sick", "well"))
    report = import_folder(kit_folder, "chest", folder, labels)
    assert report.indexed == 24
    assert 'one class only ("well"): a training on it is refused' in report.warnings


@pytest.mark.parametrize("key", ["file", "study", "SOPInstanceUID"])
def test_labels_go_by_file_study_or_instance_too(kit_folder, tmp_path, write_dicom, key):
    folder = tmp_path / "images"
    rows = []
    for number in range(4):
        uid = f"1.2.3.{number}"
        write_dicom(folder / "sub" / f"{number}.dcm", StudyInstanceUID=uid, SOPInstanceUID=uid)
        rows.append(f"{f'sub/{number}.dcm' if key == 'file' else uid},label{number}")
    (tmp_path / "labels.csv").write_text(f"{key},label\n" + "\n".join(rows))
    report = import_folder(kit_folder, "chest", folder, tmp_path / "labels.csv")
    assert report.summary is not None
    assert report.summary.labels == {f"label{number}": 1 for number in range(4)}


def test_a_file_name_that_stands_in_two_folders_needs_its_path_in_the_label_file(kit_folder, tmp_path, write_dicom):
    folder = tmp_path / "images"
    for place in ("a", "b"):
        write_dicom(folder / place / "1.dcm")
    write_dicom(folder / "2.dcm")
    (tmp_path / "labels.csv").write_text("file,label\n1.dcm,sick\n2.dcm,well\n")
    report = import_folder(kit_folder, "chest", folder, tmp_path / "labels.csv")
    assert report.indexed == 1
    assert reason_of(report, "a/1.dcm").startswith("no sure label")


def test_copies_are_refused_and_the_first_one_stays(kit_folder, hospital, write_dicom):
    folder, labels = hospital
    import_folder(kit_folder, "chest", folder, labels)
    shutil.copy(folder / "p3" / "0.dcm", folder / "a-copy.dcm")
    write_dicom(folder / "b1.dcm", SOPInstanceUID="1.2.3", PatientID="STUDY-001")
    write_dicom(folder / "b2.dcm", SOPInstanceUID="1.2.3", PatientID="STUDY-001", seed=5)
    report = import_folder(kit_folder, "chest", folder, labels)
    assert (report.indexed, report.unchanged) == (1, 24)
    assert reason_of(report, "a-copy.dcm") == "a duplicate: the same content as p3/0.dcm"
    assert reason_of(report, "b2.dcm") == "a duplicate: the same SOP Instance UID as b1.dcm"


def test_a_copy_of_the_folder_elsewhere_adds_nothing(kit_folder, hospital, tmp_path):
    folder, labels = hospital
    import_folder(kit_folder, "chest", folder, labels)
    digest = Catalog(kit_folder / CATALOG_FILE).digest("chest")
    shutil.copytree(folder, tmp_path / "copy")
    report = import_folder(kit_folder, "chest", tmp_path / "copy", labels)
    assert report.indexed == 0
    assert report.reasons == {"a duplicate": 24}
    assert Catalog(kit_folder / CATALOG_FILE).digest("chest") == digest


def test_files_that_are_gone_leave_the_collection(kit_folder, hospital):
    folder, labels = hospital
    import_folder(kit_folder, "chest", folder, labels)
    shutil.rmtree(folder / "p0")
    report = import_folder(kit_folder, "chest", folder, labels)
    assert (report.unchanged, report.removed) == (22, 2)
    assert report.summary is not None
    assert report.summary.images == 22


def test_other_modalities_are_left_out_when_some_are_named(kit_folder, tmp_path, write_dicom):
    folder = tmp_path / "images"
    write_dicom(folder / "a.dcm", Modality="CT")
    write_dicom(folder / "b.dcm", Modality="DX")
    report = import_folder(kit_folder, "chest", folder, options=ImportOptions(modalities=("DX",)))
    assert reason_of(report, "a.dcm") == "another modality: CT"
    assert report.indexed == 1


def test_very_wrong_files_are_refused_with_true_reasons(kit_folder, tmp_path, write_dicom):
    folder = tmp_path / "images"
    good = write_dicom(folder / "good.dcm")
    (folder / "empty.dcm").touch()
    (folder / "cut.dcm").write_bytes(good.read_bytes()[:-100])
    (folder / "header-only.dcm").write_bytes(good.read_bytes()[:200])
    (folder / "text.dcm").write_text("I am no image")
    (folder / "archive.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    (folder / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    (folder / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(40))
    (folder / "cut.nii").write_bytes((348).to_bytes(4, "little") + bytes(340) + b"n+1\0")
    (folder / "noise").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "link").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    report = import_folder(kit_folder, "chest", folder)
    assert report.indexed == 1
    assert report.files == 12
    expected = {
        "empty.dcm": "an empty file",
        "cut.dcm": "the pixels can't be decoded: .*less than expected",
        "header-only.dcm": "no image: the file has no pixel data",
        "text.dcm": "not an image that is read here: neither",
        "archive.zip": "not an image that is read here: an archive",
        "cut.png": "the image can't be decoded",
        "cut.jpg": "the image can't be decoded",
        "cut.nii": "the volume can't be decoded",
        "noise": "not an image that is read here",
        "link": "a link to nothing",
        "pipe": "not a regular file",
    }
    assert {path for path, _ in report.refused} == set(expected)
    for path, pattern in expected.items():
        assert re.match(pattern, reason_of(report, path)), (path, reason_of(report, path))


def test_dicom_without_its_prefix_is_known_by_its_content(kit_folder, tmp_path, write_dicom):
    folder = tmp_path / "images"
    whole = write_dicom(folder / "a.dcm").read_bytes()
    (folder / "a.dcm").unlink()
    (folder / "IM0001").write_bytes(whole[132:])
    assert import_folder(kit_folder, "chest", folder).indexed == 1


def test_loops_of_links_end(kit_folder, tmp_path, write_dicom):
    folder = tmp_path / "images"
    write_dicom(folder / "a" / "1.dcm")
    (folder / "a" / "again").symlink_to(folder)
    (folder / "b").symlink_to(folder / "a")
    report = import_folder(kit_folder, "chest", folder)
    assert report.indexed == 1


def test_file_names_that_are_no_text_do_no_harm(kit_folder, tmp_path, write_dicom):
    folder = tmp_path / "images"
    path = write_dicom(folder / "a.dcm")
    path.rename(folder / "b\udcff\n.dcm")
    (folder / "c\udcff.txt").touch()
    report = import_folder(kit_folder, "chest", folder)
    assert report.indexed == 1
    assert json.loads(report.to_json())["refused"] == [{"path": "c?.txt", "reason": "an empty file"}]
    catalog = Catalog(kit_folder / CATALOG_FILE)
    (case,) = (case for split in ("train", "validation", "test") for case in catalog.cases("chest", split))
    assert case.image.is_file()
    assert import_folder(kit_folder, "chest", folder).unchanged == 1


@pytest.mark.parametrize("what", ["missing", "a file", "empty"])
def test_a_folder_that_cannot_be_used_is_one_clear_line(kit_folder, tmp_path, what):
    folder = tmp_path / "images"
    if what == "a file":
        folder.touch()
    elif what == "empty":
        folder.mkdir()
    with pytest.raises(DataError, match=r"images: the folder (can't be read|has no file)"):
        import_folder(kit_folder, "chest", folder)
    assert not (kit_folder / CATALOG_FILE).exists()


def without_roots_override() -> None:
    """Give up reading closed files by right of being root (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH)."""
    drop_from_bounding_set = 24
    libc = ctypes.CDLL(None)
    for capability in (1, 2):
        libc.prctl(drop_from_bounding_set, capability)


@pytest.mark.skipif(sys.platform != "linux", reason="drops Linux capabilities")
def test_closed_files_and_folders_are_refused_and_what_was_known_of_them_stays(kit_folder, hospital):
    folder, labels = hospital
    script = f"""
import os
from pathlib import Path
from client.intake.importer import import_folder
kit, folder, labels = Path({str(kit_folder)!r}), Path({str(folder)!r}), Path({str(labels)!r})
first = import_folder(kit, "chest", folder, labels)
os.chmod(folder / "p0", 0); os.chmod(folder / "p1" / "0.dcm", 0); os.utime(folder / "p1" / "0.dcm")
second = import_folder(kit, "chest", folder, labels)
os.chmod(folder / "p0", 0o755); os.chmod(folder / "p1" / "0.dcm", 0o644)
third = import_folder(kit, "chest", folder, labels)
print(first.indexed, second.unchanged, [tuple(refusal) for refusal in second.refused], second.summary.images)
print(third.indexed, third.unchanged)
"""
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=False,
        preexec_fn=without_roots_override,
    )  # fmt: skip
    assert result.stdout.splitlines() == [
        "24 21 [('p0', \"the folder can't be read: Permission denied\"),"
        " ('p1/0.dcm', \"can't be read: Permission denied\")] 23",
        "1 23",
    ], result.stderr


def test_an_import_that_is_killed_leaves_the_catalog_as_it_was(kit_folder, hospital, write_dicom):
    folder, labels = hospital
    import_folder(kit_folder, "chest", folder, labels)
    before = contents(kit_folder)
    reports = sorted((kit_folder / "reports").iterdir())
    for patient in range(12):
        write_dicom(folder / f"p{patient}" / "new.dcm", PatientID=f"STUDY-{patient:03}")
    script = f"""
import time
from pathlib import Path
from client.intake.importer import import_folder
def progress(done, total):
    print(done, flush=True); time.sleep(0.05)
import_folder(Path({str(kit_folder)!r}), "chest", Path({str(folder)!r}), Path({str(labels)!r}), progress=progress)
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=PROJECT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    for _ in range(20):
        process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert contents(kit_folder) == before
    assert sorted((kit_folder / "reports").iterdir()) == reports
    assert import_folder(kit_folder, "chest", folder, labels).indexed == 12


def test_a_report_that_cannot_be_written_stops_the_import_before_it_counts(kit_folder, hospital):
    (kit_folder / "reports").write_text("in the way")
    with pytest.raises(DataError, match="nothing was imported"):
        import_folder(kit_folder, "chest", *hospital)
    assert Catalog(kit_folder / CATALOG_FILE).collections() == []


def test_a_full_disk_is_one_clear_line_and_the_catalog_is_as_it_was(kit_folder, hospital, write_dicom):
    """A limit on the size of files stands in for a full disk: writes fail the same way."""
    folder, labels = hospital
    import_folder(kit_folder, "chest", folder, labels)
    before = contents(kit_folder)
    for number in range(300):
        write_dicom(folder / "more" / f"{number}.dcm", pixels=np.zeros((4, 4), dtype=np.uint8), PatientID="STUDY-001")
    script = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
from pathlib import Path
from client.intake.importer import import_folder
from common.errors import DataError
try:
    import_folder(Path({str(kit_folder)!r}), "chest", Path({str(folder)!r}), Path({str(labels)!r}))
except DataError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert re.search(r"catalog\.sqlite: .*(disk|full)", result.stdout), result.stderr
    assert result.stdout.count("\n") == 1
    assert contents(kit_folder) == before
    assert len(list((kit_folder / "reports").iterdir())) == 3
    assert import_folder(kit_folder, "chest", folder, labels).indexed == 300


def test_two_imports_at_once_are_not_mixed(kit_folder, hospital):
    folder, labels = hospital
    seen = []

    def progress(done: int, total: int) -> None:
        if done == 1:
            with pytest.raises(DataError, match="another import into this kit is under way") as caught:
                import_folder(kit_folder, "chest", folder, labels)
            seen.append(str(caught.value))

    assert import_folder(kit_folder, "chest", folder, labels, progress=progress).indexed == 24
    assert len(seen) == 1


def test_the_report_fits_one_screen_and_stands_in_the_kit(kit_folder, hospital, write_dicom):
    folder, labels = hospital
    for number in range(60):
        (folder / f"note{number}.txt").write_text("hello")
    report = import_folder(kit_folder, "chest", folder, labels)
    lines = report.lines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 150
    assert any("indexed 24, unchanged 0, refused 60" in line for line in lines)
    text, data = (next((kit_folder / "reports").glob(f"*.{ending}")) for ending in ("txt", "json"))
    assert text.read_text().splitlines() == lines
    assert len(json.loads(data.read_text())["refused"]) == 60


@pytest.mark.parametrize("name", ["", "../etc", "a b", "x" * 65, ".hidden"])
def test_a_wrong_name_of_a_collection_is_refused(kit_folder, hospital, name):
    with pytest.raises(UsageError, match="no name for a collection"):
        import_folder(kit_folder, name, *hospital)


@pytest.mark.parametrize(
    "wrong", [{"fractions": (0.5, 0.2, 0.2)}, {"fractions": (0, 0.5, 0.5)}, {"seed": -1}, {"patient_from": "moon"}]
)
def test_options_that_make_no_sense_are_refused(wrong):
    with pytest.raises(UsageError):
        ImportOptions(**wrong)


def test_images_without_patients_take_them_from_the_label_file_or_the_folder(kit_folder, tmp_path):
    from PIL import Image

    folder = tmp_path / "images"
    for number in range(6):
        (folder / f"p{number // 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (9, 9)).astype(np.uint8)).save(
            folder / f"p{number // 2}" / f"{number}.png"
        )
    assert import_folder(kit_folder, "by-file", folder).summary.patients == 6
    by_folder = ImportOptions(patient_from="folder")
    assert import_folder(kit_folder, "by-folder", folder, options=by_folder).summary.patients == 3
    rows = [f"p{number // 2}/{number}.png,person{number // 3},x" for number in range(6)]
    (tmp_path / "labels.csv").write_text("file,patient,label\n" + "\n".join(rows))
    assert import_folder(kit_folder, "by-label", folder, tmp_path / "labels.csv").summary.patients == 2
    (tmp_path / "labels.csv").write_text("patient,label\np0,x\np1,y\np2,x\n")
    report = import_folder(kit_folder, "by-patient", folder, tmp_path / "labels.csv", options=by_folder)
    assert report.summary.labels == {"x": 4, "y": 2}


def test_without_a_patient_id_a_study_counts_as_a_patient(kit_folder, tmp_path, write_dicom):
    for number in range(4):
        write_dicom(tmp_path / "images" / f"{number}.dcm", PatientID="", StudyInstanceUID=f"1.2.{number // 2}")
    report = import_folder(kit_folder, "chest", tmp_path / "images")
    assert report.summary is not None
    assert report.summary.patients == 2
    assert any(warning.startswith("without a Patient ID: 4 files") for warning in report.warnings)


def test_looking_through_unchanged_files_takes_a_fraction_of_reading_them(kit_folder, tmp_path, write_dicom):
    pixels = np.zeros((8, 8), dtype=np.uint8)
    for number in range(500):
        write_dicom(tmp_path / "images" / f"{number}.dcm", pixels=pixels, PatientID=f"S{number}")
    spent, reports = [time.process_time()], []
    for _ in range(2):
        reports.append(import_folder(kit_folder, "chest", tmp_path / "images"))
        spent.append(time.process_time())
    assert (reports[0].indexed, reports[1].unchanged) == (500, 500)
    assert spent[2] - spent[1] < (spent[1] - spent[0]) / 3


@pytest.mark.slow
def test_however_many_processes_read_the_catalog_is_the_same(tmp_path, hospital):
    found = []
    for workers in (1, 2):
        kit = tmp_path / f"kit-{workers}"
        kit.mkdir()
        (kit / "pseudonym.key").write_bytes(bytes(32))
        (kit / "pseudonym.key").chmod(0o600)
        progress = []
        options = ImportOptions(workers=workers)
        report = import_folder(kit, "chest", *hospital, options=options, progress=lambda *at, p=progress: p.append(at))
        assert (report.indexed, progress[-1]) == (24, (24, 24))
        found.append(contents(kit))
    assert found[0] == found[1]
