"""What `wardround predict` writes of detection and reconstruction models: read back by tools that did not write it."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.data import get_testdata_file

sys.path.insert(0, str(Path(__file__).parent))  # the tests' own models

from saved_models import job_of, saved

from client.annotations import read
from client.catalog import CATALOG_FILE, Catalog
from client.intake.formats import format_named
from client.intake.importer import ImportOptions, import_folder
from client.placing import placement
from client.results.about import NOTE, About
from client.results.boxes import EDGES, write_boxes
from client.results.predict import predict
from client.results.prediction import Answer, View
from client.results.source import find_sources
from common.job import Job
from common.tasks.registry import build_task

MR = Path(str(get_testdata_file("MR_small.dcm")))
CT = Path(str(get_testdata_file("CT_small.dcm")))
OPTIONS = ImportOptions(allow_identified=True, allow_burned_in=True, fractions=(1.0, 0.0, 0.0))


def with_task(job, **parameters):
    told = job.model_dump()
    told["task"]["parameters"] = parameters
    return Job.model_validate(told)


def detector(size=(32, 32), threshold=0.01, **data):
    small = {"width": 4, "levels": 2, "stride": 2}
    parameters = {"threshold": threshold, "most_found": 3}
    return with_task(job_of("detection", size, "heatmap-detector", small, ("cell", "spot"), **data), **parameters)


def restorer(size=(32, 32), network="residual-unet", sees="image", **data):
    small = {"width": 4, "levels": 2} if network == "residual-unet" else {"width": 4, "cascades": 2}
    return with_task(job_of("reconstruction", size, network, small, (), channels=1, **data), sees=sees)


@pytest.fixture(scope="module")
def slices(shared_data, tmp_path_factory):
    """Six slices of a real brain, their files in disorder."""
    folder = tmp_path_factory.mktemp("slices")
    files = sorted((shared_data / "brain_mri_dicom" / "36468-FLAIRreg-58706").iterdir())[8:14]
    for number, path in enumerate(np.random.default_rng(0).permutation([str(path) for path in files])):
        shutil.copy(path, folder / f"{number:02}.dcm")
    return folder


def rows_of(out):
    return list(csv.DictReader((out / "results.csv").open()))


def taken_over(draft, path):
    """A draft as another system's object: as it is, it is refused on import."""
    made = pydicom.dcmread(draft)
    made.Manufacturer = "x"
    made.save_as(path)


def told_where(rows):
    """The boxes of each file in the table, as (label, left, top, right, bottom), sorted."""
    boxes: dict[str, list] = {row["file"]: [] for row in rows}
    for row in rows:
        if row["label"]:
            boxes[row["file"]].append((row["label"], *(float(row[edge]) for edge in EDGES)))
    return {file: sorted(found) for file, found in boxes.items()}


def regions_of(path):
    """The regions of a report, found by nothing but the standard: (SOP Instance UID, points, label, percent)."""
    found = []
    for group in items_of(pydicom.dcmread(path), "125007"):
        inside = list(everything(group))
        if drawn := [item for item in inside if item.ValueType == "SCOORD"]:
            (region,) = drawn
            origin = region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
            label = next(item.ConceptCodeSequence[0].CodeMeaning for item in inside if named(item) == "121071")
            score = next(item for item in inside if named(item) == "111012").MeasuredValueSequence[0]
            assert (region.GraphicType, score.MeasurementUnitsCodeSequence[0].CodeValue) == ("POLYLINE", "%")
            found.append((origin, np.reshape(region.GraphicData, (-1, 2)), label, float(score.NumericValue)))
    return found


def named(item):
    return item.ConceptNameCodeSequence[0].CodeValue if "ConceptNameCodeSequence" in item else ""


def everything(item):
    for part in item.get("ContentSequence", ()):
        yield part
        yield from everything(part)


def items_of(dataset, code):
    return [item for item in everything(dataset) if named(item) == code]


def imported(kit_folder, folder):
    """The boxes of each file that `wardround site import` takes from a folder of images and reports."""
    import_folder(kit_folder, "c", folder, options=OPTIONS)
    found = {}
    for record in Catalog(kit_folder / CATALOG_FILE).records("c"):
        if record.annotation:
            known = read(kit_folder, record.annotation)
            rows = [(known.names[int(row[0])], row[3], row[2], row[6], row[5]) for row in known.boxes]
            found[record.path] = sorted(rows)
    return found


@pytest.mark.parametrize("size", [(32, 32), (8, 32, 32)], ids=["2D", "3D"])
def test_boxes_that_another_system_took_over_come_in_as_they_stand_in_the_table(tmp_path, kit_folder, slices, size):
    predict(saved(tmp_path, detector(size)), slices, tmp_path / "out")
    wanted = told_where(rows_of(tmp_path / "out"))
    both = shutil.copytree(slices, tmp_path / "both")
    (report,) = (tmp_path / "out").glob("*.sr.dcm")
    taken_over(report, both / "report.dcm")
    found = imported(kit_folder, both)
    assert sum(map(len, found.values())) > 0
    for file in {path.name for path in slices.iterdir()}:
        expected = wanted.get(file, [])
        assert [box[0] for box in found.get(file, [])] == [box[0] for box in expected]
        assert np.allclose([box[1:] for box in found.get(file, [])], [box[1:] for box in expected], atol=0.02)


def learnt(source, job, place, extents):
    """What a network would say that is sure of one "spot" at a place of the map, about so many places large."""
    grid = tuple(n // 2 for n in job.data.size)
    said = torch.zeros(2 + 2 * len(grid), *grid)
    said[:2], said[2:] = -20.0, 0.0
    said[(1, *place)] = 3.0
    said[(slice(2, 2 + len(grid)), *place)] = torch.tensor(extents).log()
    order = format_named("dicom").grid(source.paths).order if len(grid) == 3 else ((0, 0),)
    shape = pydicom.dcmread(source.paths[0], stop_before_pixels=True)
    own = (shape.Rows, shape.Columns) if len(grid) == 2 else (len(order), shape.Rows, shape.Columns)
    return Answer(View(np.zeros(0, np.float32), None, order, placement(own, job.data, None)), said)


def test_a_box_is_drawn_in_the_images_own_pixels_with_its_label_and_score(tmp_path):
    job, (source,) = detector(threshold=0.3), find_sources(MR).sources
    answers = [learnt(source, job, (4, 8), [2.0, 3.0])]
    written = write_boxes(source, answers, build_task(job), About.of(saved(tmp_path, job)), tmp_path / "mr")
    ((uid, points, label, score),) = regions_of(tmp_path / "mr.sr.dcm")
    # rows 6 to 10 and columns 13 to 19 of 32, on an image of 64 x 64
    assert points.tolist() == [[26, 12], [38, 12], [38, 20], [26, 20], [26, 12]]
    assert (uid, label) == (pydicom.dcmread(MR).SOPInstanceUID, "spot")
    assert score == pytest.approx(100 * torch.sigmoid(torch.tensor(3.0)).item(), abs=1e-3)
    assert [written.rows[0][edge] for edge in EDGES] == ["26.00", "12.00", "38.00", "20.00"]


def test_a_box_of_a_volume_is_drawn_on_the_slices_that_it_crosses_and_no_others(tmp_path, slices):
    job, (source,) = detector((12, 32, 32), threshold=0.3), find_sources(slices).sources
    answer = learnt(source, job, (3, 8, 8), [2.0, 2.0, 2.0])  # slices 4 to 8 of 12: of six, the third and fourth
    write_boxes(source, [answer], build_task(job), About.of(saved(tmp_path, job)), tmp_path / "mr")
    crossed = [source.paths[file] for file, _ in answer.view.order[2:4]]
    found = regions_of(tmp_path / "mr.sr.dcm")
    assert [uid for uid, *_ in found] == [pydicom.dcmread(path).SOPInstanceUID for path in crossed]
    tracked = {item.UID for item in items_of(pydicom.dcmread(tmp_path / "mr.sr.dcm"), "112040")}
    assert len(tracked) == 1


def test_an_image_without_a_box_is_said_to_have_none(tmp_path):
    predict(saved(tmp_path, detector(threshold=0.99)), CT, tmp_path / "out")
    (row,) = rows_of(tmp_path / "out")
    assert row == {"file": "CT_small.dcm", "frame": "", "label": "", "score": ""} | dict.fromkeys(EDGES, "")
    report = pydicom.dcmread(tmp_path / "out" / "CT_small.sr.dcm")
    assert "111241" in str(report)  # all algorithms succeeded; without findings
    assert regions_of(tmp_path / "out" / "CT_small.sr.dcm") == []


def test_a_report_of_boxes_says_that_it_is_a_draft_and_which_algorithm_made_it(tmp_path):
    model = saved(tmp_path, detector())
    predict(model, CT, tmp_path / "out")
    report = pydicom.dcmread(tmp_path / "out" / "CT_small.sr.dcm")
    flags = (report.CompletionFlag, report.VerificationFlag, report.PreliminaryFlag, report.CompletionFlagDescription)
    assert flags == ("PARTIAL", "UNVERIFIED", "PRELIMINARY", NOTE)
    assert all(word in str(report) for word in ("Algorithm Name", model.job.digest, model.sha256))
    assert regions_of(tmp_path / "out" / "CT_small.sr.dcm")


def test_boxes_of_a_picture_and_of_a_nifti_are_in_the_table(tmp_path):
    (tmp_path / "in").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (40, 50, 3)).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(noise, np.eye(4)), tmp_path / "in" / "brain.nii.gz")
    Image.fromarray(noise).save(tmp_path / "in" / "smear.png")
    done = predict(saved(tmp_path, detector()), tmp_path / "in", tmp_path / "out")
    assert done.files == ("results.csv", "results.json")
    rows = rows_of(tmp_path / "out")
    assert {(row["file"], row["frame"]) for row in rows} == {
        ("smear.png", ""), *(("brain.nii.gz", str(number)) for number in (1, 2, 3))
    }  # fmt: skip
    assert all(0 <= float(row["x_min"]) < float(row["x_max"]) <= 50 for row in rows if row["file"] == "smear.png")


@pytest.mark.parametrize("job", [detector(), restorer()], ids=["boxes", "images"])
def test_no_validator_finds_a_fault(tmp_path, job):
    if shutil.which("dciodvfy") is None:
        pytest.skip("no DICOM validator: apt-get install dicom3tools")
    predict(saved(tmp_path, job), MR, tmp_path / "out")
    (made,) = (tmp_path / "out").glob("*.dcm")
    told = subprocess.run(["dciodvfy", "-new", str(made)], capture_output=True, text=True, check=False)
    assert [line for line in (told.stdout + told.stderr).splitlines() if line.startswith("Error")] == []


@pytest.mark.parametrize("size", [(32, 32), (8, 32, 32)], ids=["2D", "3D"])
def test_a_reconstruction_is_a_new_series_where_its_source_lies(tmp_path, slices, size):
    done = predict(saved(tmp_path, restorer(size)), slices, tmp_path / "out")
    made = [pydicom.dcmread(tmp_path / "out" / name) for name in done.files if name.endswith(".dcm")]
    sources = {(one := pydicom.dcmread(path)).SOPInstanceUID: one for path in slices.iterdir()}
    assert {one.SourceImageSequence[0].ReferencedSOPInstanceUID for one in made} == set(sources)
    assert len({one.SOPInstanceUID for one in made} - set(sources)) == 6
    (series,) = {one.SeriesInstanceUID for one in made}
    for one in made:
        source = sources[one.SourceImageSequence[0].ReferencedSOPInstanceUID]
        same = ("StudyInstanceUID", "FrameOfReferenceUID", "ImagePositionPatient", "PixelSpacing", "Rows", "Columns")
        assert all(one[keyword].value == source[keyword].value for keyword in same)
        assert series != source.SeriesInstanceUID
        assert (list(one.ImageType[:2]), one.BitsStored) == (["DERIVED", "SECONDARY"], 16)


@pytest.mark.parametrize(("network", "sees"), [("residual-unet", "image"), ("unrolled-cnn", "k-space")])
def test_a_reconstruction_is_like_its_source_and_says_that_it_is_of_no_raw_data(tmp_path, network, sees):
    predict(saved(tmp_path, restorer((64, 64), network, sees)), MR, tmp_path / "out")
    made, images = pydicom.dcmread(tmp_path / "out" / "MR_small.recon.dcm"), format_named("dicom").frames
    for word in ("taken as fully sampled", "one column of 4 kept", "no scanner's raw data", NOTE):
        assert word in made.DerivationDescription
    taken_over(tmp_path / "out" / "MR_small.recon.dcm", tmp_path / "own.dcm")
    shown, source = (next(images(path))[..., 0] for path in (tmp_path / "own.dcm", MR))
    assert np.array_equal(np.rint(shown * 65535), made.pixel_array)
    assert np.corrcoef(shown.ravel(), source.ravel())[0, 1] > 0.5
    (row,) = rows_of(tmp_path / "out")
    assert float(row["psnr"]) == pytest.approx(-10 * np.log10(np.mean((shown - source) ** 2)), abs=0.01)


def test_a_nifti_is_reconstructed_as_a_nifti_and_a_picture_as_a_picture(tmp_path):
    (tmp_path / "in").mkdir()
    rows, columns, _ = np.mgrid[:40, :50, :12]
    disc = (100 * ((rows - 14) ** 2 + (columns - 30) ** 2 < 64)).astype(np.uint8)
    affine = np.array([[0, -2, 0, 5], [1, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1.0]])
    nibabel.save(nibabel.Nifti1Image(disc, affine), tmp_path / "in" / "brain.nii.gz")
    Image.fromarray(disc[..., 0]).save(tmp_path / "in" / "smear.png")
    predict(saved(tmp_path, restorer((32, 32), "unrolled-cnn", "k-space")), tmp_path / "in", tmp_path / "out")
    made, shown = nibabel.load(tmp_path / "out" / "brain.recon.nii.gz"), Image.open(tmp_path / "out/smear.recon.png")
    assert np.array_equal(made.affine, affine)
    assert b"undersampled" in made.header["descrip"].tobytes()
    for values in (made.get_fdata()[..., 5], np.asarray(shown) / 255):
        alike, turned = (np.corrcoef(one.ravel(), disc[..., 0].ravel())[0, 1] for one in (values, values[::-1]))
        assert alike > 0.6 > 0.2 > turned
    assert "taken as fully sampled" in shown.text["Description"]


def test_a_dicom_image_that_is_no_mr_is_refused_in_a_line(tmp_path):
    for name in ("mr", "ct"):
        (tmp_path / "in").mkdir(exist_ok=True)
        shutil.copy(MR if name == "mr" else CT, tmp_path / "in" / f"{name}.dcm")
    done = predict(saved(tmp_path, restorer()), tmp_path / "in", tmp_path / "out")
    assert done.refused == (("ct.dcm", "CT, not MR: reconstruction is of MR images"),)
    assert "mr.recon.dcm" in done.files
