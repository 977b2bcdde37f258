"""Every file that the pydicom package ships, and the real data, through the whole of the intake."""

from __future__ import annotations

import warnings
from pathlib import Path

import pydicom.data
import pytest

from client.catalog import CATALOG_FILE, Catalog
from client.dataset import open_cases
from client.intake import dicom
from client.intake.formats import FORMATS, identify
from client.intake.image import FileRefusedError
from client.intake.importer import ImportOptions, import_folder
from common.job import DataSection

SHIPPED = Path(pydicom.data.__file__).parent
EVERYTHING = ImportOptions(allow_identified=True, allow_burned_in=True, fractions=(1.0, 0.0, 0.0))
DAMAGED = {"JPEG-lossy.dcm", "JPEG2000-embedded-sequence-delimiter.dcm", "MR_truncated.dcm"}
"""The shipped files whose pixels pydicom itself can't decode with its pylibjpeg plugins."""


def shipped_files() -> list[Path]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of its list can only be downloaded
        found = pydicom.data.get_testdata_files("**/*") + pydicom.data.get_charset_files("*")
    return [path for path in map(Path, found) if path.is_file()]


def test_all_files_that_pydicom_ships_go_through(kit_folder):
    report = import_folder(kit_folder, "shipped", SHIPPED, options=EVERYTHING)
    on_disk = sum(path.is_file() for path in SHIPPED.rglob("*"))
    assert report.files == on_disk
    assert on_disk >= len(shipped_files()) > 150
    assert report.indexed > 70
    assert all(reason for _, reason in report.refused)
    undecodable = {Path(path).name for path, reason in report.refused if reason.startswith("the pixels can't")}
    assert undecodable == DAMAGED
    again = import_folder(kit_folder, "shipped", SHIPPED, options=EVERYTHING)
    assert (again.indexed, again.unchanged, again.refused) == (0, report.indexed, report.refused)


@pytest.mark.parametrize("path", shipped_files(), ids=lambda path: str(path.relative_to(SHIPPED)))
def test_a_shipped_file_is_decoded_or_refused_as_pydicom_itself_sees_it(path):
    """A refusal is true: pydicom's own pixel_array does not work on the file, or it is no picture."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            kind = identify(path.read_bytes()[:1024])
            facts = kind.inspect(path)
        except FileRefusedError as error:
            reason = str(error)
            if "dose" in reason or "segmentation" in reason:
                return
            with pytest.raises(Exception):  # noqa: B017, PT011 - pydicom raises many kinds
                _ = pydicom.dcmread(path, force=True).pixel_array
        else:
            whole = pydicom.dcmread(path, force=True).pixel_array
            assert facts.frames * facts.rows * facts.columns in (whole.size, whole.size // 3)


def test_the_indexed_shipped_files_become_cases(kit_folder, tmp_path):
    rows = [f"{path.relative_to(SHIPPED)},x" for path in shipped_files()]
    labels = tmp_path / "labels.csv"
    labels.write_text("file,label\n" + "\n".join(rows))
    report = import_folder(kit_folder, "shipped", SHIPPED, labels, options=EVERYTHING)
    assert report.summary is not None
    cases = open_cases(
        Catalog(kit_folder / CATALOG_FILE),
        DataSection(collection="shipped", size=(32, 32)),
        "train",
        tmp_path / "cache",
    )
    assert len(cases.labels) == report.summary.images > 90
    assert cases.images.min() >= 0
    assert cases.images.max() <= 1


@pytest.mark.parametrize(
    ("folder", "indexed"),
    [("brain_mri_dicom", 128), ("derived_dicom", 7), ("radiotherapy_dicom", 1), ("hippocampus_mri/faulty", 3)],
)
def test_the_real_data_goes_through(kit_folder, shared_data, folder, indexed):
    report = import_folder(kit_folder, "real", shared_data / folder, options=EVERYTHING)
    assert report.indexed == indexed
    assert report.files == sum(path.is_file() for path in (shared_data / folder).rglob("*"))


def test_real_de_identified_series_are_taken_and_the_ones_that_do_not_say_so_are_refused(kit_folder, shared_data):
    report = import_folder(kit_folder, "brain", shared_data / "brain_mri_dicom")
    assert report.summary is not None
    assert report.indexed == 88
    assert report.reasons == {"identifies a person": 40}
    assert {path.split("/")[0] for path, _ in report.refused} == {"11_HCropVolume"}


@pytest.mark.parametrize("entry", FORMATS, ids=lambda entry: entry.name)
def test_every_format_answers_for_noise_with_a_reason(entry, tmp_path):
    path = tmp_path / "noise"
    path.write_bytes(bytes(range(256)) * 8)
    assert not entry.matches(b"")
    with pytest.raises(FileRefusedError) as caught:
        entry.inspect(path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_header_and_pixels_are_read_alike_by_inspect_and_frames(shared_data):
    path = shared_data / "derived_dicom" / "sm_image.dcm"
    facts = dicom.inspect(path)
    assert sum(1 for _ in dicom.frames(path)) == facts.frames == 25
