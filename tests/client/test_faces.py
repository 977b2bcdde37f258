"""Faces in head scans: kept, refused or removed, as the policy says."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest

from client.intake.deidentification.faces import Plane, Survey, is_head
from client.intake.importer import ImportOptions, import_folder
from client.policy import DEFAULT_POLICY, change_policy

COPIES = ImportOptions(deidentify=True, fractions=(1.0, 0.0, 0.0))
ROWS, STEP = 96, 2.5
BETWEEN = 10.0
TOP = 230.0


def head(z: float) -> np.ndarray:
    """An axial slice, in HU + 1024, of a head that is an ellipsoid with a nose, and of the brain in it."""
    y, x = np.mgrid[:ROWS, :ROWS] * STEP - ROWS * STEP / 2
    skull = (x / 75) ** 2 + (y / 95) ** 2 + ((z - 110) / 120) ** 2 < 1
    nose = (abs(x) < 12) & (y < -70) & (y > -112) & (abs(z - 95) < 22)
    return np.where(brain(x, y, z), 1064, np.where(skull | nose, 1100, 24)).astype(np.uint16)


def brain(x, y, z):
    return (x / 65) ** 2 + ((y - 8) / 72) ** 2 + ((z - 160) / 58) ** 2 < 1


@pytest.fixture
def scan(tmp_path, write_dicom):
    """A head CT of 23 axial slices from the neck to above the head."""
    folder = tmp_path / "head"
    for number in range(24):
        z = number * BETWEEN
        write_dicom(
            folder / f"{number:02}.dcm", pixels=head(z), Modality="CT", BodyPartExamined="HEAD", PatientID="P1",
            SeriesInstanceUID="1.2.3.4", StudyInstanceUID="1.2.3.5", RescaleSlope=1, RescaleIntercept=-1024,
            PixelSpacing=[STEP, STEP], SliceThickness=BETWEEN, ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            ImagePositionPatient=[-ROWS * STEP / 2, -ROWS * STEP / 2, z],
        )  # fmt: skip
    return folder


def policy(kit_folder: Path, faces: str) -> None:
    (kit_folder / "policy.toml").write_text(change_policy(DEFAULT_POLICY, {"faces": faces}, "policy.toml"))


def volume(kit_folder: Path) -> dict[float, pydicom.Dataset]:
    files = [pydicom.dcmread(BytesIO(path.read_bytes())) for path in (kit_folder / "deidentified").rglob("*.dcm")]
    return {float(file.ImagePositionPatient[2]): file for file in files}


def test_faces_stay_as_installed_and_the_copies_say_so(kit_folder, scan):
    assert import_folder(kit_folder, "head", scan, options=COPIES).indexed == 24
    assert all(np.array_equal(file.pixel_array, head(z)) for z, file in volume(kit_folder).items())
    assert {file.RecognizableVisualFeatures for file in volume(kit_folder).values()} == {"YES"}


def test_head_scans_are_refused_where_the_policy_says_so(kit_folder, scan, write_dicom):
    policy(kit_folder, "refuse")
    write_dicom(scan / "chest.dcm", Modality="CT", BodyPartExamined="CHEST")
    report = import_folder(kit_folder, "head", scan, options=COPIES)
    assert (report.indexed, report.reasons) == (1, {"a head scan": 24})


def test_the_face_is_blanked_and_the_brain_is_not_touched(kit_folder, scan):
    policy(kit_folder, "remove")
    report = import_folder(kit_folder, "head", scan, options=COPIES)
    assert (report.indexed, report.deidentified.faces) == (24, len([z for z in volume(kit_folder) if z <= 150]))
    y, x = np.mgrid[:ROWS, :ROWS] * STEP - ROWS * STEP / 2
    for z, file in volume(kit_folder).items():
        inside = brain(x, y, z)
        assert np.array_equal(file.pixel_array[inside], head(z)[inside])
        if abs(z - 95) < 22:
            assert not (file.pixel_array[(y < -85)] > 500).any()
            assert "113102" in [item.CodeValue for item in file.DeidentificationMethodCodeSequence]


def test_importing_again_with_another_policy_makes_other_copies(kit_folder, scan):
    import_folder(kit_folder, "head", scan, options=COPIES)
    policy(kit_folder, "remove")
    report = import_folder(kit_folder, "head", scan, options=COPIES)
    assert (report.indexed, report.deidentified.faces > 10) == (24, True)
    assert import_folder(kit_folder, "head", scan, options=COPIES).unchanged == 24
    assert len(volume(kit_folder)) == 24


def test_a_head_that_is_cut_off_above_the_face_is_refused(kit_folder, scan):
    policy(kit_folder, "remove")
    for number in range(14, 24):
        (scan / f"{number:02}.dcm").unlink()
    report = import_folder(kit_folder, "head", scan, options=COPIES)
    assert set(report.refused) == {
        (f"{number:02}.dcm", "a head scan whose face can't be removed: the head's highest point is not in it")
        for number in range(14)
    }


def test_slices_without_a_position_have_no_plane():
    survey = Survey()
    survey.add(pydicom.Dataset(), np.ones((1, 8, 8)))
    assert survey.plane() == "the slices' positions in the patient are not known"


def test_the_plane_is_where_its_description_says():
    plane = Plane(top=0.0, front=0.0, scale=1.0)
    y, z = np.array([7.0, 9.0, -50.0, 37.0, 39.0, -1.0]), np.array([-80.0, -80.0, -80.0, -120.0, -120.0, -79.0])
    assert plane.is_face(y, z).tolist() == [True, False, True, True, False, False]


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [({"BodyPartExamined": "HEAD"}, True), ({"ProtocolName": "t1 Brain ax"}, True), ({}, False),
     ({"BodyPartExamined": "LEG"}, False), ({"SeriesDescription": "Schaedel nativ"}, True)],
)  # fmt: skip
def test_a_head_scan_is_known_by_what_its_header_says(attributes, expected):
    header = pydicom.Dataset()
    header.Modality = "MR"
    for keyword, value in attributes.items():
        setattr(header, keyword, value)
    assert is_head(header) is expected
    header.Modality = "DX"
    assert not is_head(header)
