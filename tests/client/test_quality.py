"""What a data steward relies on of the quality report: what is amiss is found, what is sound is not blamed."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import generate_uid

from client.intake.importer import ImportOptions, import_folder
from simulations.phantoms import draw_anatomy, draw_opacities, draw_pose, draw_radiograph
from simulations.radiographs import Scanner, detect

ACROSS = "near-copies across the splits"


def kinds(report) -> list[str]:
    return [finding.kind for finding in report.quality]


@pytest.fixture
def chests() -> list[np.ndarray]:
    """Radiographs of forty people, 8 bits."""
    generator = np.random.default_rng(3)
    found = []
    for _ in range(40):
        anatomy = draw_anatomy(generator)
        opacities = draw_opacities(generator, anatomy, pneumonia=True)
        map_ = draw_radiograph(anatomy, opacities, draw_pose(generator), 96)
        found.append(detect(map_, Scanner("A", bits=8), generator).astype(np.uint8))
    return found


@pytest.fixture
def archive(tmp_path, chests, write_dicom):
    """The forty as DICOM, thirty of them for training, ten for the test."""
    rows = ["patient,label,split"]
    for number, pixels in enumerate(chests):
        write_dicom(tmp_path / "images" / f"{number}.dcm", pixels=pixels, PatientID=f"P{number}", Manufacturer="Maker")
        rows.append(f"P{number},{'sick' if number % 2 else 'well'},{'train' if number < 30 else 'test'}")
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(rows) + "\n")
    return tmp_path / "images", labels


def add(archive, write_dicom, patient: str, pixels: np.ndarray, split: str) -> None:
    folder, labels = archive
    write_dicom(folder / f"{patient}.dcm", pixels=pixels, PatientID=patient)
    labels.write_text(labels.read_text() + f"{patient},well,{split}\n")


def recompressed(pixels: np.ndarray) -> np.ndarray:
    """The image as another system would keep it: JPEG, a little brighter."""
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels * 1.1 + 4, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=70)
    return np.asarray(Image.open(file))


def series(folder: Path, write_dicom, places, **attributes) -> None:
    same = {"SeriesInstanceUID": generate_uid(), "StudyInstanceUID": generate_uid(), "Modality": "MR"}
    given = {"PixelSpacing": [1, 1], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], **same, **attributes}
    for number, place in enumerate(places):
        write_dicom(folder / f"{number}.dcm", ImagePositionPatient=[0, 0, place], **given)


def test_people_who_look_alike_are_not_blamed(kit_folder, archive):
    assert kinds(import_folder(kit_folder, "chest", *archive)) == []


def test_a_patient_who_is_in_two_splits_under_two_identities_is_found(kit_folder, archive, chests, write_dicom):
    add(archive, write_dicom, "Q5", recompressed(chests[5]), "test")
    report = import_folder(kit_folder, "chest", *archive)
    assert kinds(report) == [ACROSS]
    assert re.match(r"5\.dcm \(train\) and Q5\.dcm \(test\): 0\.9", report.quality[0].places[0])


def test_a_copy_in_the_same_split_is_no_leak(kit_folder, archive, chests, write_dicom):
    add(archive, write_dicom, "Q5", recompressed(chests[5]), "train")
    assert kinds(import_folder(kit_folder, "chest", *archive)) == []


@pytest.mark.parametrize(("split", "kind"), [("test", "copies across the splits"), ("train", "copies")])
def test_the_same_pixels_under_another_identity_are_found(kit_folder, archive, chests, write_dicom, split, kind):
    add(archive, write_dicom, "Q4", chests[4], split)
    assert kinds(import_folder(kit_folder, "chest", *archive)) == [kind]


def test_a_blank_image_and_one_far_too_dark_are_found(kit_folder, archive, chests, write_dicom):
    folder, _ = archive
    write_dicom(folder / "3.dcm", pixels=np.full((96, 96), 9, dtype=np.uint8), PatientID="P3", Manufacturer="Maker")
    write_dicom(folder / "7.dcm", pixels=chests[7] // 12, PatientID="P7", Manufacturer="Maker")
    found = {one.kind: one.places for one in import_folder(kit_folder, "chest", *archive).quality}
    assert found["blank images"] == ("3.dcm",)
    assert {place.split(":")[0] for place in found["outliers in intensity"]} == {"7.dcm"}


def test_a_whole_series_is_not_blamed(kit_folder, tmp_path, write_dicom):
    series(tmp_path / "mr", write_dicom, [0, 3, 6.01, 9, 12], SpacingBetweenSlices=3)
    assert kinds(import_folder(kit_folder, "mr", tmp_path / "mr")) == []


def test_missing_slices_are_counted_and_located(kit_folder, tmp_path, write_dicom):
    series(tmp_path / "mr", write_dicom, [0, 3, 6, 15, 18])
    (finding,) = import_folder(kit_folder, "mr", tmp_path / "mr").quality
    assert (finding.kind, finding.grave) == ("missing slices", True)
    assert finding.places == ("0.dcm: 2 slices missing of 7, at 9.0 mm",)


@pytest.mark.parametrize(
    ("attributes", "kind"),
    [
        ({"SpacingBetweenSlices": 5}, "wrong spacing"),
        ({"PixelSpacing": [0, 0]}, "wrong spacing"),
        ({"PixelSpacing": None}, "no spacing"),
    ],
)
def test_a_header_that_is_silent_or_contradicts_the_slices_is_told(kit_folder, tmp_path, write_dicom, attributes, kind):
    series(tmp_path / "mr", write_dicom, [0, 3, 6, 9], **attributes)
    assert kinds(import_folder(kit_folder, "mr", tmp_path / "mr")) == [kind]


@pytest.mark.parametrize(
    ("odd", "kind"),
    [
        ({"PixelSpacing": [2, 2]}, "mixed spacing"),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, 1]}, "inconsistent orientation"),
    ],
)
def test_a_slice_unlike_the_others_of_its_series_is_found(kit_folder, tmp_path, write_dicom, odd, kind):
    same = {"SeriesInstanceUID": generate_uid()}
    series(tmp_path / "mr", write_dicom, [0, 3, 6], **same)
    series(tmp_path / "mr" / "more", write_dicom, [9], **same, **odd)
    assert kinds(import_folder(kit_folder, "mr", tmp_path / "mr")) == [kind]


def test_the_page_needs_no_network_and_shows_pictures_labels_problems_and_refusals(
    kit_folder, archive, chests, write_dicom
):
    folder, _ = archive
    add(archive, write_dicom, "Q5", recompressed(chests[5]), "test")
    write_dicom(folder / "9.dcm", pixels=chests[9], PatientID="P9", BurnedInAnnotation="YES")
    (folder / "<script>.txt").write_text("no image")
    report = import_folder(kit_folder, "chest", *archive)
    page = Path(report.page)
    text = page.read_text()
    assert page.stat().st_mode & 0o777 == 0o600
    assert not re.search(r"https?:|<script|<link|@import|src=\"(?!data:)", text)
    assert text.count("data:image/png;base64,") >= 40
    for said in (
        "Near-copies across the splits",
        "Maker",
        "sick",
        "burned-in annotation",
        "prefers-color-scheme: dark",
    ):
        assert said in text


def test_the_text_says_the_gravest_and_where_the_page_is_and_the_json_all(kit_folder, archive, chests, write_dicom):
    add(archive, write_dicom, "Q5", recompressed(chests[5]), "test")
    report = import_folder(kit_folder, "chest", *archive)
    lines = "\n".join(report.lines())
    assert f"! {ACROSS}" in lines
    assert report.page in lines
    assert json.loads(report.to_json())["quality"][0]["kind"] == ACROSS


def test_one_page_is_kept_and_an_import_that_changes_nothing_names_it(kit_folder, archive, write_dicom, chests):
    first = import_folder(kit_folder, "chest", *archive)
    assert import_folder(kit_folder, "chest", *archive).page == first.page
    add(archive, write_dicom, "Q5", recompressed(chests[5]), "test")
    second = import_folder(kit_folder, "chest", *archive)
    assert [str(path) for path in (kit_folder / "reports").glob("quality-*")] == [second.page]


def test_a_page_does_not_grow_with_the_collection(kit_folder, tmp_path, write_dicom):
    for number in range(120):
        write_dicom(tmp_path / "many" / f"{number}.dcm", PatientID=f"P{number}")
    report = import_folder(kit_folder, "many", tmp_path / "many", options=ImportOptions(seed=1))
    assert Path(report.page).read_text().count("data:image/png") == 24
