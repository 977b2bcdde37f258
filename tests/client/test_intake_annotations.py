"""Masks and boxes come in from what annotators made, on the image's own grid, or are refused with a reason."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

sys.path.insert(0, str(Path(__file__).parent))  # the tests' own models

from saved_models import job_of, saved, unet

from client.annotations import Annotation, boxes_of, keep, mask_of, read
from client.catalog import CATALOG_FILE, Catalog
from client.dataset import open_cases
from client.intake.importer import ImportOptions, import_folder
from client.results.predict import predict
from common.errors import DataError, UsageError
from common.job import DataSection, TaskSection

OPTIONS = ImportOptions(allow_identified=True, allow_burned_in=True, fractions=(1.0, 0.0, 0.0))


def drawn(kit_folder, collection="c"):
    """What the indexed files of a collection are annotated with, by path."""
    records = Catalog(kit_folder / CATALOG_FILE).records(collection)
    return {one.path: read(kit_folder, one.annotation) for one in records if one.annotation}


def write_nifti(path, values, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)


def write_png(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.fixture
def pictures(tmp_path):
    """Two grey pictures of 30 rows and 40 columns, each a patient's."""
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        write_png(tmp_path / "images" / f"{name}.png", random.integers(0, 256, (30, 40), dtype=np.uint8))
    return tmp_path / "images"


def test_real_volumes_and_their_masks_become_cases_of_structures(kit_folder, shared_data, tmp_path):
    source = shared_data / "hippocampus_mri"
    for name in ("hippocampus_001", "hippocampus_003"):
        (tmp_path / "images").mkdir(exist_ok=True)
        shutil.copy(source / "images" / f"{name}.nii.gz", tmp_path / "images")
    names = (("1", "anterior"), ("2", "posterior"))
    import_folder(
        kit_folder, "c", tmp_path / "images", options=replace(OPTIONS, masks=source / "labels", structures=names)
    )
    task = TaskSection(kind="segmentation", labels=("posterior", "anterior"))
    data = DataSection(collection="c", size=(48, 64, 48), spacing=(1.0, 1.0, 1.0))
    cases = open_cases(Catalog(kit_folder / CATALOG_FILE), data, "train", tmp_path / "cache", task=task)
    assert cases.truth.shape == (2, 48, 64, 48)
    # The voxels that the data's own index counts: nothing is stretched, nothing cropped, and labels are in job order.
    counts = {tuple(np.bincount(mask.ravel(), minlength=3)[1:]) for mask in cases.truth}
    assert counts == {(1624, 1324), (1803, 1550)}
    brightness = [image[0][mask > 0].mean() for image, mask in zip(cases.images, cases.truth, strict=True)]
    assert min(brightness) > 0.2


def test_an_image_without_a_mask_is_refused_and_a_mask_without_an_image_is_told(kit_folder, pictures, tmp_path):
    write_png(tmp_path / "masks" / "a.png", np.eye(30, 40, dtype=np.uint8) * 255)
    write_png(tmp_path / "masks" / "z.png", np.eye(30, 40, dtype=np.uint8) * 255)
    report = import_folder(kit_folder, "c", pictures, options=replace(OPTIONS, masks=tmp_path / "masks"))
    assert [(one.path, one.reason[:13]) for one in report.refused] == [("b.png", "no annotation")]
    assert "masks or boxes that match no readable image: 1" in report.warnings
    assert drawn(kit_folder)["a.png"].names == ("255",)


@pytest.mark.parametrize("size", [(30, 41), (60, 80)])
def test_a_mask_of_another_size_is_refused_with_both_sizes(kit_folder, pictures, tmp_path, size):
    write_png(tmp_path / "masks" / "a.png", np.ones((30, 40), dtype=np.uint8))
    write_png(tmp_path / "masks" / "b.png", np.ones(size, dtype=np.uint8))
    report = import_folder(kit_folder, "c", pictures, options=replace(OPTIONS, masks=tmp_path / "masks"))
    assert f"its mask is 1 x {size[0]} x {size[1]}, and the image 1 x 30 x 40" in report.refused[0].reason


def test_a_volumes_mask_that_lies_elsewhere_is_refused(kit_folder, tmp_path):
    values = np.random.default_rng(0).random((8, 9, 10)).astype(np.float32)
    for name, shift in (("a", 0), ("b", 2)):
        write_nifti(tmp_path / "images" / f"{name}.nii.gz", values + shift)
        affine = np.eye(4)
        affine[0, 3] = shift
        write_nifti(tmp_path / "masks" / f"{name}.nii.gz", (values > 0.5).astype(np.uint8), affine)
    report = import_folder(kit_folder, "c", tmp_path / "images", options=replace(OPTIONS, masks=tmp_path / "masks"))
    assert [one.reason for one in report.refused] == ["no annotation: its mask lies elsewhere: the two affines differ"]


def test_an_instance_map_gives_a_mask_and_a_box_for_each_object(kit_folder, pictures, tmp_path):
    objects = np.zeros((30, 40), dtype=np.uint16)
    objects[3:8, 10:20], objects[20:22, 5:6] = 7, 4000
    for name in ("a", "b"):
        write_png(tmp_path / "masks" / f"{name}.png", objects)
    options = replace(OPTIONS, masks=tmp_path / "masks", instances="nucleus")
    import_folder(kit_folder, "c", pictures, options=options)
    found = drawn(kit_folder)["a.png"]
    assert int(mask_of(found, ["nucleus"]).sum()) == 52
    assert sorted(boxes_of(found, ["nucleus"], 0).tolist()) == [[0, 3, 10, 8, 20], [0, 20, 5, 22, 6]]


def test_real_voc_boxes_come_in_and_those_without_area_are_counted(kit_folder, shared_data):
    folder = shared_data / "blood_cells"
    report = import_folder(kit_folder, "c", folder / "images", options=replace(OPTIONS, boxes=folder / "boxes"))
    assert report.indexed == 292
    assert "boxes without any area, left out: 2" in report.warnings
    found = drawn(kit_folder)
    assert sum(len(one.boxes) for one in found.values()) > 3000
    assert {name for one in found.values() for name in one.names} == {"RBC", "WBC", "Platelets"}


@pytest.mark.parametrize("form", ["csv", "coco"])
def test_boxes_of_a_file_are_on_the_jobs_grid_and_an_image_may_have_none(kit_folder, pictures, tmp_path, form):
    path = tmp_path / f"boxes.{'csv' if form == 'csv' else 'json'}"
    if form == "csv":
        path.write_text("file,label,x_min,y_min,x_max,y_max\na.png,cell,10,3,20,9\nb.png,,,,,\n")
    else:
        images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}]
        boxes = [{"image_id": 1, "category_id": 5, "bbox": [10, 3, 10, 6]}]
        path.write_text(json.dumps({"images": images, "categories": [{"id": 5, "name": "cell"}], "annotations": boxes}))
    import_folder(kit_folder, "c", pictures, options=replace(OPTIONS, boxes=path))
    found = drawn(kit_folder)
    assert boxes_of(found["a.png"], ["cell"], 0).tolist() == [[0, 3, 10, 9, 20]]
    assert len(boxes_of(found["b.png"], ["cell"], 0)) == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,label,x_min,y_min,x_max\na.png,cell,1,2,3\n", "no column for bottom"),
        (
            "file,label,x_min,y_min,x_max,y_max\na.png,cell,1,2,three,4\n",
            ":2: an edge or frame of the box is no number",
        ),
        ("file,label,x_min,y_min,x_max,y_max\nz.png,cell,1,2,3,4\n", "nothing in it is drawn on any of the 2 images"),
        (
            "file,label,x_min,y_min,x_max,y_max\na.png,cell,1,2,300,4\n",
            "a box of it lies outside of its 40 x 30 pixels",
        ),
    ],
)
def test_boxes_that_can_not_be_used_are_said_in_a_line_and_nothing_is_imported(
    kit_folder, pictures, tmp_path, text, said
):
    (tmp_path / "boxes.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        import_folder(kit_folder, "c", pictures, options=replace(OPTIONS, boxes=tmp_path / "boxes.csv"))
    assert not Catalog(kit_folder / CATALOG_FILE).collections()


def test_a_dicom_segmentation_in_the_folder_is_drawn_on_its_image(kit_folder, shared_data, tmp_path):
    for name in ("ct_image.dcm", "seg_image_ct_binary_single_frame.dcm"):
        (tmp_path / "study").mkdir(exist_ok=True)
        shutil.copy(shared_data / "derived_dicom" / name, tmp_path / "study")
    report = import_folder(
        kit_folder, "c", tmp_path / "study", options=replace(OPTIONS, structures=(("first segment", "bone"),))
    )
    stored = pydicom.dcmread(tmp_path / "study" / "seg_image_ct_binary_single_frame.dcm").pixel_array
    assert np.array_equal(mask_of(drawn(kit_folder)["ct_image.dcm"], ["bone"])[0], stored)
    assert report.refused == ()
    assert "DICOM SEG: 1 taken as masks" in report.warnings


def test_the_same_drawing_has_the_same_name_each_time(kit_folder):
    drawing = Annotation(("liver", "spleen"), (1, 2, 2), np.array([[[0, 1], [2, 0]]], dtype=np.uint8))
    assert len({keep(kit_folder, drawing) for _ in range(20)}) == 1


def test_a_models_draft_is_no_truth_to_learn_from(kit_folder, shared_data, tmp_path):
    shutil.copy(shared_data / "derived_dicom" / "ct_image.dcm", tmp_path)
    predict(saved(tmp_path, unet()), tmp_path / "ct_image.dcm", tmp_path / "study")
    predict(saved(tmp_path, job_of()), tmp_path / "ct_image.dcm", tmp_path / "study" / "reports")
    shutil.move(tmp_path / "ct_image.dcm", tmp_path / "study")
    report = import_folder(kit_folder, "c", tmp_path / "study", options=OPTIONS)
    assert "DICOM SEG: a model's draft, which says nothing that is true of the patient (1)" in report.warnings
    assert not drawn(kit_folder)
    with pytest.raises(DataError, match="no Structured Report in it"):
        import_folder(kit_folder, "d", tmp_path / "study", options=replace(OPTIONS, label_reports=True))


@pytest.mark.parametrize(("name", "structures"), [("binary", 1), ("binary_overlap", 2), ("true_fractional", 1)])
def test_a_segmentation_of_a_series_lies_on_every_slice_that_it_names(
    kit_folder, shared_data, tmp_path, name, structures
):
    source = shared_data / "derived_dicom" / f"seg_image_ct_{name}.dcm"
    shutil.copy(source, tmp_path / "seg.dcm")
    for place in range(4):
        shutil.copy(get_testdata_file(f"dicomdirtests/77654033/CT2/{(17136, 17196, 17166, 17106)[place]}"), tmp_path)
    import_folder(kit_folder, "c", tmp_path, options=OPTIONS)
    found = drawn(kit_folder)
    assert len(found) == 4
    assert {len(one.names) for one in found.values()} == {structures}
    assert sum(int(one.mask.any()) for one in found.values()) > 0


def test_contours_of_a_structure_set_are_filled_where_they_were_drawn(kit_folder, shared_data, tmp_path):
    source = shared_data / "radiotherapy_dicom"
    for name in ("ct.0.dcm", "rtss.dcm"):
        shutil.copy(source / name, tmp_path)
    report = import_folder(kit_folder, "c", tmp_path, options=OPTIONS)
    found = drawn(kit_folder)["ct.0.dcm"]
    assert "RTSTRUCT: 1 taken as masks" in report.warnings
    assert found.mask.any()
    assert set(np.unique(found.mask)) <= set(range(len(found.names) + 1))


def test_importing_again_keeps_what_was_drawn_and_other_masks_are_another_collection(kit_folder, pictures, tmp_path):
    catalog = Catalog(kit_folder / CATALOG_FILE)
    options = replace(OPTIONS, masks=tmp_path / "masks")
    for name in ("a", "b"):
        write_png(tmp_path / "masks" / f"{name}.png", np.eye(30, 40, dtype=np.uint8))
    import_folder(kit_folder, "c", pictures, options=options)
    before = catalog.digest("c")
    assert import_folder(kit_folder, "c", pictures, options=OPTIONS).unchanged == 2
    assert catalog.digest("c") == before
    write_png(tmp_path / "masks" / "b.png", np.ones((30, 40), dtype=np.uint8))
    import_folder(kit_folder, "c", pictures, options=options)
    assert catalog.digest("c") != before
    assert {path.stem for path in (kit_folder / "annotations").iterdir()} == catalog.annotations()


def test_a_job_that_needs_masks_says_so_where_there_are_none(kit_folder, pictures, tmp_path):
    import_folder(kit_folder, "c", pictures, options=OPTIONS)
    task, data = TaskSection(kind="segmentation", labels=("x",)), DataSection(collection="c")
    with pytest.raises(DataError, match="2 images without a mask in its train split: import their folder with --masks"):
        open_cases(Catalog(kit_folder / CATALOG_FILE), data, "train", tmp_path / "cache", task=task)


def write_report(path, images, finding="Nodule", box=None):
    """A report by highdicom: what was found in the images as a whole, or in a rectangle (left, top, right, bottom)."""
    from highdicom import sr
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    evidence = [pydicom.dcmread(image) for image in images]
    code = sr.CodedConcept("99", "99TEST", finding)
    person = sr.ObserverContext(codes.DCM.Device, sr.DeviceObserverIdentifyingAttributes(generate_uid()))
    tracking = sr.TrackingIdentifier(generate_uid(), "1")
    if box is None:
        sources = [sr.SourceImageForMeasurementGroup.from_source_image(one) for one in evidence]
        group = sr.MeasurementsAndQualitativeEvaluations(tracking, finding_type=code, source_images=sources)
    else:
        left, top, right, bottom = box
        points = np.array([[left, top], [right, top], [right, bottom], [left, bottom], [left, top]], dtype=float)
        source = sr.SourceImageForRegion.from_source_image(evidence[0])
        region = sr.ImageRegion(sr.GraphicTypeValues.POLYLINE, points, source)
        group = sr.PlanarROIMeasurementsAndQualitativeEvaluations(tracking, referenced_region=region, finding_type=code)
    content = sr.MeasurementReport(
        sr.ObservationContext(person), codes.LN.CTUnspecifiedBodyRegion, imaging_measurements=[group]
    )
    report = sr.ComprehensiveSR(evidence, content, generate_uid(), 9, generate_uid(), 1, manufacturer="x")
    report.save_as(path)


@pytest.fixture
def radiographs(tmp_path, write_dicom):
    """Two radiographs of two patients, of one study."""
    views = (("a", "PA"), ("b", "LL"))
    return [
        write_dicom(
            tmp_path / "study" / f"{name}.dcm", PatientID=name, StudyInstanceUID="1.2.3", ViewPosition=view,
            StudyDate="20200101", StudyTime="120000", AccessionNumber="", StudyID="1", PatientBirthDate="",
            PatientSex="", ReferringPhysicianName="",
        )
        for name, view in views
    ]  # fmt: skip


def labels_in(kit_folder):
    return {one.path: one.label for one in Catalog(kit_folder / CATALOG_FILE).records("c") if not one.reason}


def test_labels_may_stand_in_the_images_own_headers(kit_folder, radiographs):
    import_folder(kit_folder, "c", radiographs[0].parent, options=replace(OPTIONS, label_tag="ViewPosition"))
    assert labels_in(kit_folder) == {"a.dcm": "PA", "b.dcm": "LL"}


def test_labels_may_stand_in_a_report_of_the_same_study(kit_folder, radiographs):
    write_report(radiographs[0].parent / "report.dcm", radiographs[:1], "Pneumonia")
    write_report(radiographs[0].parent / "other.dcm", radiographs[1:], "Normal")
    import_folder(kit_folder, "c", radiographs[0].parent, options=replace(OPTIONS, label_reports=True))
    assert labels_in(kit_folder) == {"a.dcm": "Pneumonia", "b.dcm": "Normal"}


def test_regions_of_a_report_are_boxes_and_an_image_that_it_saw_without_one_has_none(kit_folder, radiographs):
    write_report(radiographs[0].parent / "report.dcm", radiographs, box=(4, 6, 12, 20))
    import_folder(kit_folder, "c", radiographs[0].parent, options=OPTIONS)
    found = drawn(kit_folder)
    assert boxes_of(found["a.dcm"], ["Nodule"], 0).tolist() == [[0, 6, 4, 20, 12]]
    assert boxes_of(found["b.dcm"], ["Nodule"], 0).tolist() == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"label_tag": "ViewPositon"}, "no keyword of DICOM's dictionary"),
        ({"label_reports": True}, "no Structured Report"),
    ],
)
def test_labels_that_nothing_tells_are_said_in_a_line(kit_folder, radiographs, options, said):
    with pytest.raises((DataError, UsageError), match=said):
        import_folder(kit_folder, "c", radiographs[0].parent, options=replace(OPTIONS, **options))


def test_a_detection_job_takes_images_with_boxes_and_images_with_none(kit_folder, pictures, tmp_path):
    (tmp_path / "boxes.csv").write_text("file,label,x_min,y_min,x_max,y_max\na.png,cell,10,3,20,9\nb.png,,,,,\n")
    import_folder(kit_folder, "c", pictures, options=replace(OPTIONS, boxes=tmp_path / "boxes.csv"))
    task, data = TaskSection(kind="detection", labels=("cell",)), DataSection(collection="c", size=(60, 80))
    truth = open_cases(Catalog(kit_folder / CATALOG_FILE), data, "train", tmp_path / "cache", task=task).truth
    assert sorted((boxes[:, 0] >= 0).sum() for boxes in truth) == [0, 1]
    assert [0, 6, 20, 18, 40] in truth[:, 0].tolist()
