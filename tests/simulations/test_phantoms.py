from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_voi_lut, pixel_array
from pydicom.uid import JPEG2000Lossless, RLELossless

from simulations.hospitals import HOSPITALS, Hospital, make_hospitals, write_hospital
from simulations.phantoms import draw_anatomy, draw_opacities, draw_pose, draw_radiograph
from simulations.radiographs import Exposure, Scanner, radiograph, wrap_arrays_as_dicom

SMALL = tuple(replace(hospital, patients=12) for hospital in HOSPITALS)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_all(folder: Path) -> list[pydicom.FileDataset]:
    return [pydicom.dcmread(path) for path in sorted(folder.rglob("*.dcm"))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hospitals")
    for hospital in SMALL:
        write_hospital(hospital, root / hospital.name, seed=3)
    return {hospital.name: root / hospital.name for hospital in SMALL}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(folders: dict[str, Path], tmp_path: Path):
    write_hospital(SMALL[0], tmp_path / "again", seed=3)
    write_hospital(SMALL[0], tmp_path / "other", seed=4)
    assert files(tmp_path / "again") == files(folders["northfield"])
    assert files(tmp_path / "other") != files(folders["northfield"])


def test_more_patients_change_no_other_patient(folders: dict[str, Path], tmp_path: Path):
    write_hospital(replace(SMALL[0], patients=14), tmp_path, seed=3)
    more, fewer = files(tmp_path), files(folders["northfield"])
    assert all(more[name] == content for name, content in fewer.items() if name.endswith(".dcm"))


def test_hospitals_differ_in_what_their_scanners_write(folders: dict[str, Path]):
    north, east, south = (read_all(folder)[0] for folder in folders.values())
    assert (north.Modality, east.Modality, south.Modality) == ("DX", "CR", "DX")
    assert (north.BitsStored, east.BitsStored, south.BitsStored) == (12, 10, 14)
    assert [image.PhotometricInterpretation for image in (north, east)] == ["MONOCHROME2", "MONOCHROME1"]
    assert east.file_meta.TransferSyntaxUID == RLELossless
    assert south.file_meta.TransferSyntaxUID == JPEG2000Lossless
    assert "WindowCenter" in north
    assert "WindowCenter" not in south
    assert len({image.ManufacturerModelName for image in (north, east, south)}) == 3


def test_every_file_is_a_chest_image_without_a_person(folders: dict[str, Path]):
    for folder in folders.values():
        for image in read_all(folder):
            assert image.PatientIdentityRemoved == "YES"
            assert image.BurnedInAnnotation == "NO"
            assert not image.PatientName
            assert not image.PatientBirthDate
            assert image.BodyPartExamined == "CHEST"
            assert image.SOPInstanceUID.is_valid
            assert pixel_array(image).max() < 2**image.BitsStored


def test_uids_are_unique_and_some_patients_come_again(folders: dict[str, Path]):
    images = [image for folder in folders.values() for image in read_all(folder)]
    assert len({image.SOPInstanceUID for image in images}) == len(images)
    patients = [image.PatientID for image in images]
    assert len(set(patients)) == 36 < len(patients)
    assert len({image.StudyInstanceUID for image in images}) > 36


@pytest.mark.parametrize(("name", "key"), [
    ("northfield", "PatientID"), ("eastbrook", "StudyInstanceUID"), ("southgate", "file"),
])  # fmt: skip
def test_labels_name_each_image_as_the_hospital_does(folders: dict[str, Path], name: str, key: str):
    folder = folders[name]
    rows = list(csv.DictReader((folder / "labels.csv").read_text().splitlines()))
    assert set(rows[0]) == {key, "label"}
    paths = sorted(folder.rglob("*.dcm"))
    present = {
        "file": {path.relative_to(folder).as_posix() for path in paths},
        **{keyword: {str(pydicom.dcmread(path)[keyword].value) for path in paths}
           for keyword in ("PatientID", "StudyInstanceUID")},
    }  # fmt: skip
    assert {row[key] for row in rows} == present[key]


def test_an_inverted_image_shows_the_same_chest():
    pixels = np.arange(64, dtype=np.uint16).reshape(8, 8)
    plain = radiograph(pixels, Scanner("a", bits=8), Exposure("P"), origin="t")
    turned = radiograph(pixels, Scanner("a", bits=8, inverted=True), Exposure("P"), origin="t")
    assert np.array_equal(255 - turned.pixel_array, plain.pixel_array)


def test_opacities_change_the_lungs_and_nothing_else():
    generator = np.random.default_rng(0)
    anatomy, pose = draw_anatomy(generator), draw_pose(generator)
    opacities = draw_opacities(generator, anatomy, pneumonia=True)
    difference = draw_radiograph(anatomy, opacities, pose, 64) - draw_radiograph(anatomy, (), pose, 64)
    assert np.abs(difference).max() > 0.05
    assert np.abs(difference[56:]).max() < 0.01


def test_further_hospitals_have_names_and_scanners_of_their_own():
    hospitals = make_hospitals(7)
    assert len({hospital.name for hospital in hospitals}) == 7
    assert len({hospital.scanner.model for hospital in hospitals}) == 7
    assert all(isinstance(hospital, Hospital) for hospital in hospitals)


def test_wrapped_arrays_come_back_with_the_grey_values_they_had(tmp_path: Path):
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    labels = wrap_arrays_as_dicom(images, ["no", "yes", "no", "no", "yes"], tmp_path, site="a")
    assert [row["label"] for row in csv.DictReader(labels.read_text().splitlines())] == ["no", "yes", "no", "no", "yes"]
    for image, path in zip(images, sorted(tmp_path.rglob("*.dcm")), strict=True):
        dataset = pydicom.dcmread(path)
        assert np.allclose(apply_voi_lut(dataset.pixel_array, dataset), image)
        assert dataset.PatientIdentityRemoved == "YES"


def test_arrays_that_are_no_images_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="uint8"):
        wrap_arrays_as_dicom(np.zeros((2, 4, 4)), ["a", "b"], tmp_path, site="a")
