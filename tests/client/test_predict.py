"""What `wardround predict` writes: read back by highdicom, nibabel, Pillow and DCMTK, and held against a validator."""

import csv
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import highdicom as hd
import nibabel
import numpy as np
import pydicom
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from nibabel import orientations
from PIL import Image
from pydicom.data import get_testdata_file
from safetensors.numpy import save_file
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))  # the tests' own models

from saved_models import job_of, saved, unet

from client.intake.formats import format_named
from client.intake.nifti import read_classes, write_classes
from client.placing import as_case, placement
from client.predict_cli import app
from client.results.about import NOTE, About
from client.results.masks import write_masks
from client.results.predict import predict
from client.results.prediction import Answer, View
from client.results.source import find_sources
from common.errors import DataError, UpdateError, UsageError, WardroundError
from common.model_file import read_saved
from common.networks import build_network, load_tensors

CT = Path(str(get_testdata_file("CT_small.dcm")))


@pytest.fixture(scope="module")
def flair(shared_data, tmp_path_factory):
    """Twenty-two slices of a real brain, their files in disorder."""
    folder = tmp_path_factory.mktemp("flair")
    files = sorted((shared_data / "brain_mri_dicom" / "36468-FLAIRreg-58706").iterdir())
    for number, path in enumerate(np.random.default_rng(0).permutation([str(path) for path in files])):
        shutil.copy(path, folder / f"{number:02}.dcm")
    return folder


def rows_of(out):
    return list(csv.DictReader((out / "results.csv").open()))


def by_hand(model, path):
    network = build_network(model.job)
    load_tensors(network, model.tensors)
    image = next(format_named("dicom").frames(path))
    with torch.inference_mode():
        return torch.softmax(network.eval()(torch.from_numpy(as_case(image, model.job.data))[None]), dim=1)[0]


def test_a_report_has_each_labels_probability_as_the_network_gives_it(tmp_path):
    model = saved(tmp_path, job_of())
    predict(model, CT, tmp_path / "out")
    report = hd.sr.srread(tmp_path / "out" / "CT_small.sr.dcm")
    groups = report.content.get_image_measurement_groups()
    found = {group.finding_type.meaning: group.get_measurements()[0].value for group in groups}
    wanted = by_hand(model, CT)
    assert [found["normal"], found["ill"]] == pytest.approx(wanted.tolist(), abs=1e-5)
    (row,) = rows_of(tmp_path / "out")
    assert (row["file"], row["label"]) == ("CT_small.dcm", ["normal", "ill"][int(wanted.argmax())])
    assert float(row["p(ill)"]) == pytest.approx(float(wanted[1]), abs=1e-5)


def test_a_report_is_of_the_images_own_study_and_says_that_it_is_an_unverified_draft(tmp_path):
    predict(saved(tmp_path, job_of()), CT, tmp_path / "out")
    report, image = (pydicom.dcmread(path) for path in (tmp_path / "out" / "CT_small.sr.dcm", CT))
    for keyword in ("StudyInstanceUID", "PatientID", "PatientName", "StudyDate"):
        assert report[keyword].value == image[keyword].value
    flags = (report.CompletionFlag, report.VerificationFlag, report.PreliminaryFlag, report.CompletionFlagDescription)
    assert flags == ("PARTIAL", "UNVERIFIED", "PRELIMINARY", NOTE)
    ours = [item for item in report.ContributingEquipmentSequence if item.Manufacturer == "Ward Round"]
    assert "chest-260101-a1b2c3, round 7" in ours[0].ContributionDescription
    assert NOTE in ours[0].ContributionDescription
    assert report.CurrentRequestedProcedureEvidenceSequence[0].StudyInstanceUID == image.StudyInstanceUID


def test_a_report_names_the_algorithm_its_version_and_its_job(tmp_path):
    model = saved(tmp_path, job_of())
    predict(model, CT, tmp_path / "out")
    text = str(pydicom.dcmread(tmp_path / "out" / "CT_small.sr.dcm"))
    for word in ("Algorithm Name", "Algorithm Version", "chest-260101-a1b2c3, round 7", model.job.digest, model.sha256):
        assert word in text


def test_a_series_of_slices_is_one_report_that_refers_to_each_of_them(tmp_path, flair):
    predict(saved(tmp_path, job_of()), flair, tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*.sr.dcm")
    groups = hd.sr.srread(path).content.get_image_measurement_groups()
    named = {group.source_images[0].referenced_sop_instance_uid for group in groups}
    assert len(groups) == 2 * 22
    assert named == {pydicom.dcmread(file).SOPInstanceUID for file in flair.iterdir()}


def test_a_report_on_a_volume_refers_to_all_of_its_slices_at_once(tmp_path, flair):
    predict(saved(tmp_path, job_of(size=(16, 32, 32))), flair, tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*.sr.dcm")
    assert [len(group.source_images) for group in hd.sr.srread(path).content.get_image_measurement_groups()] == [22, 22]


@pytest.mark.parametrize("size", [(32, 32), (16, 32, 32)])
def test_a_segmentation_lies_on_the_very_slices_that_it_was_made_from(tmp_path, flair, size):
    job = unet(size)
    model = saved(tmp_path, job)
    ((source,), _) = (found := find_sources(flair)).sources, found.refused
    answers, wanted = drawn(source, job)
    write_masks(source, answers, None, About.of(model), tmp_path / "flair")
    made = hd.seg.segread(tmp_path / "flair.seg.dcm")
    assert [made.get_segment_description(number).segment_label for number in (1, 2)] == ["liver", "spleen"]
    uids = list(wanted)
    pixels = made.get_pixels_by_source_instance(uids, combine_segments=True, ignore_spatial_locations=True)
    assert np.array_equal(pixels, np.stack([wanted[uid] for uid in uids]))
    assert made.FrameOfReferenceUID == pydicom.dcmread(source.paths[0]).FrameOfReferenceUID


def drawn(source, job):
    """Made-up answers about a source, and the mask that each of its instances must then have."""
    kind, wanted, answers = format_named("dicom"), {}, []
    uids = [pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in source.paths]
    shape = pydicom.dcmread(source.paths[0]).pixel_array.shape
    orders = [kind.grid(source.paths).order] if len(job.data.size) == 3 else [((n, 0),) for n in range(source.count)]
    for order in orders:
        own = shape if len(job.data.size) == 2 else (len(order), *shape)
        classes = torch.from_numpy(np.random.default_rng(order[0][0]).integers(0, 3, job.data.size))
        outputs = torch.nn.functional.one_hot(classes, 3).movedim(-1, 0).float()
        place = placement(own, job.data, None)
        answers.append(Answer(View(np.zeros(0, np.float32), None, order, place), outputs))
        axes = zip(own, job.data.size, strict=True)
        picked = [np.minimum((np.arange(n) + 0.5) * m / n, m - 1).astype(int) for n, m in axes]
        back = classes.numpy()[np.ix_(*picked)].reshape(len(order), *shape)
        wanted |= {uids[file]: back[at] for at, (file, _) in enumerate(order)}
    return answers, wanted


@pytest.mark.parametrize("data", [{}, {"spacing": [6.0, 5.0, 5.0], "patch": [8, 16, 16]}])
def test_a_model_of_volumes_gives_a_segmentation_with_the_counts_of_its_table(tmp_path, flair, data):
    predict(saved(tmp_path, unet((16, 32, 32), **data)), flair, tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*.seg.dcm")
    made, (row,) = hd.seg.segread(path), rows_of(tmp_path / "out")
    volume = made.get_volume(combine_segments=True) if made.NumberOfFrames > 1 else None
    counts = np.bincount(volume.array.ravel().astype(int), minlength=3)
    assert [str(count) for count in counts[1:]] == [row["pixels(liver)"], row["pixels(spleen)"]]
    assert counts[1:].sum() > 0


def test_a_segmentation_says_which_algorithm_made_it_and_that_it_is_no_medical_devices(tmp_path):
    predict(saved(tmp_path, unet()), CT, tmp_path / "out")
    made = hd.seg.segread(tmp_path / "out" / "CT_small.seg.dcm")
    algorithm = made.get_segment_description(1).algorithm_identification
    assert (algorithm.name, algorithm.version) == ("chest", "chest-260101-a1b2c3, round 7")
    assert made.ContentDescription == NOTE
    assert made.StudyInstanceUID == pydicom.dcmread(CT).StudyInstanceUID
    assert made.SoftwareVersions


IMAGES = ["CT_small.dcm", "MR_small.dcm"]
DERIVED = ["dx_image.dcm"]


@pytest.mark.parametrize("name", IMAGES + DERIVED)
@pytest.mark.parametrize("kind", ["sr", "seg"])
def test_results_have_no_fault_that_a_validator_finds(tmp_path, shared_data, kind, name):
    if shutil.which("dciodvfy") is None:
        pytest.skip("no DICOM validator: apt-get install dicom3tools")
    path = shared_data / "derived_dicom" / name if name in DERIVED else Path(str(get_testdata_file(name)))
    predict(saved(tmp_path, job_of() if kind == "sr" else unet()), path, tmp_path / "out")
    (made,) = (tmp_path / "out").glob(f"*.{kind}.dcm")
    told = subprocess.run(["dciodvfy", "-new", str(made)], capture_output=True, text=True, check=False)
    assert [line for line in (told.stdout + told.stderr).splitlines() if line.startswith("Error")] == []


def test_dcmtk_reads_the_report_without_a_complaint(tmp_path):
    if shutil.which("dsrdump") is None:
        pytest.skip("DCMTK's tools are not installed: apt-get install dcmtk")
    predict(saved(tmp_path, job_of()), CT, tmp_path / "out")
    told = subprocess.run(["dsrdump", "-Er", str(tmp_path / "out" / "CT_small.sr.dcm")], capture_output=True, text=True)
    assert (told.returncode, told.stderr) == (0, "")
    assert "UNVERIFIED" in told.stdout


@given(some.permutations([0, 1, 2]), some.tuples(*[some.sampled_from([1, -1])] * 3), some.booleans())
def test_a_mask_of_a_nifti_lies_on_the_files_own_grid_however_its_axes_run(tmp_path_factory, axes, signs, packed):
    folder = tmp_path_factory.mktemp("nifti")
    affine = np.eye(4)
    affine[:3, :3] = (np.diag([2.0, 3.0, 4.0]) @ np.eye(3)[axes]) * signs
    like, target = folder / f"image.nii{'.gz' if packed else ''}", folder / "mask.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.random.default_rng(1).normal(size=(5, 6, 7)), affine), like)
    shape = next(iter([format_named("nifti").volume([like])])).shape[:3]
    classes = np.random.default_rng(2).integers(0, 4, shape).astype(np.uint8)
    write_classes(classes, like, target)
    made = nibabel.load(target)
    assert np.array_equal(made.affine, nibabel.load(like).affine)
    assert made.shape == (5, 6, 7)
    assert made.get_data_dtype() == np.uint8
    assert np.array_equal(read_classes(target), classes)


def test_a_nifti_gets_a_nifti_and_a_png_a_png(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (40, 50, 12)).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(noise, np.diag([1.0, 1.0, 3.0, 1.0])), images / "brain.nii.gz")
    Image.fromarray(noise[..., 0]).save(images / "smear.png")
    done = predict(saved(tmp_path, unet()), images, tmp_path / "out")
    assert done.files == ("brain.seg.nii.gz", "results.csv", "smear.seg.png", "results.json")
    shown = Image.open(tmp_path / "out" / "smear.seg.png")
    assert (shown.size, shown.mode) == ((50, 40), "P")
    row = next(row for row in rows_of(tmp_path / "out") if row["file"] == "smear.png")
    assert np.count_nonzero(np.asarray(shown) == 2) == int(row["pixels(spleen)"])
    assert orientations.aff2axcodes(nibabel.load(tmp_path / "out" / "brain.seg.nii.gz").affine) == ("R", "A", "S")


def test_a_file_that_can_not_be_used_is_named_with_its_reason_and_the_others_have_results(tmp_path, write_dicom):
    write_dicom(tmp_path / "in" / "good.dcm")
    (tmp_path / "in" / "notes.txt").write_text("nothing to see")
    broken = write_dicom(tmp_path / "in" / "broken.dcm")
    broken.write_bytes(broken.read_bytes()[:-100])
    done = predict(saved(tmp_path, job_of()), tmp_path / "in", tmp_path / "out")
    assert done.sources == 1
    assert [name for name, _ in done.refused] == ["broken.dcm", "notes.txt"]
    listing = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [one["file"] for one in listing["refused"]] == ["broken.dcm", "notes.txt"]


@pytest.mark.parametrize("content", [None, b"", b"no image"])
def test_nothing_to_predict_on_is_an_error_and_leaves_nothing(tmp_path, content):
    (tmp_path / "in").mkdir()
    if content is not None:
        (tmp_path / "in" / "file").write_bytes(content)
    with pytest.raises(DataError, match=r"no file|no image to predict on"):
        predict(saved(tmp_path, job_of()), tmp_path / "in", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "model.safetensors"]


def test_a_folder_with_files_in_it_is_not_written_into_unless_told(tmp_path, write_dicom):
    model, out = saved(tmp_path, job_of()), tmp_path / "out"
    first, second = (write_dicom(tmp_path / name / f"{name}.dcm") for name in ("one", "two"))
    predict(model, first, out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="--overwrite"):
        predict(model, second, out)
    predict(model, second, out, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == ["notes.txt", "results.csv", "results.json", "two.sr.dcm"]


def test_a_listing_that_was_tampered_with_removes_nothing_outside_the_folder(tmp_path):
    model, out, mine = saved(tmp_path, job_of()), tmp_path / "out", tmp_path / "mine.txt"
    mine.write_text("mine")
    predict(model, CT, out)
    (out / "results.json").write_text(json.dumps({"files": ["../mine.txt", str(mine), "results.csv"]}))
    predict(model, CT, out, overwrite=True)
    assert mine.read_text() == "mine"


def test_a_model_of_tables_or_with_layers_that_stay_at_sites_is_refused(tmp_path):
    table = job_of(network="linear", features=["age", "sex"])
    parted = job_of().model_dump() | {"aggregation": {"strategy": "fedbn"}}
    for job, why in ((table, "tables"), (type(table).model_validate(parted), "stay at each site")):
        with pytest.raises(UsageError, match=why):
            predict(saved(tmp_path, job), CT, tmp_path / "out")


def test_a_model_file_without_its_job_needs_it_by_name_and_no_other(tmp_path):
    model = saved(tmp_path, job_of())
    bare = tmp_path / "old.safetensors"
    save_file(model.tensors, bare, metadata={"run": "old", "job_digest": model.job.digest, "round": "3"})
    with pytest.raises(UsageError, match="--job"):
        read_saved(bare)
    with pytest.raises(UsageError, match="of another job"):
        read_saved(bare, job_of(size=(64, 64)))
    assert read_saved(bare, model.job).provenance.run == "old"


def test_a_job_that_was_changed_in_the_file_is_noticed(tmp_path):
    model = saved(tmp_path, job_of())
    header = model.provenance.header()
    save_file(model.tensors, tmp_path / "bad", metadata=header | {"job": header["job"].replace("ill", "well")})
    with pytest.raises(UsageError, match="not the one that its digest says"):
        read_saved(tmp_path / "bad")


def test_a_model_of_another_network_than_its_jobs_is_refused(tmp_path):
    model = saved(tmp_path, job_of())
    other = saved(tmp_path, job_of(network="resnet18"))
    with pytest.raises(UpdateError):
        predict(type(model)(other.tensors, model.job, model.provenance, model.sha256), CT, tmp_path / "out")


def test_prediction_needs_no_network(tmp_path, monkeypatch):
    def nobody(*_):
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket.socket, "connect", nobody)
    assert predict(saved(tmp_path, job_of()), CT, tmp_path / "out").sources == 1


def test_the_command_takes_a_models_file_or_a_run_and_not_both(tmp_path):
    saved(tmp_path, job_of())
    model, out = tmp_path / "model.safetensors", tmp_path / "out"
    done = CliRunner().invoke(app, ["--model", str(model), str(CT), str(out), "--json"])
    assert json.loads(done.stdout)["files"] == ["CT_small.sr.dcm", "results.csv", "results.json"]
    for arguments in ([], ["--run", "x", "--model", str(model)]):
        done = CliRunner().invoke(app, [str(CT), str(out), *arguments])
        assert isinstance(done.exception, WardroundError)
        assert "one of the two" in str(done.exception)


def test_an_explanation_is_a_picture_of_the_study_that_a_viewer_shows(tmp_path):
    done = predict(saved(tmp_path, job_of()), CT, tmp_path / "out", explain=True)
    assert {"CT_small.saliency.png", "CT_small.saliency.sc.dcm", "CT_small.sr.dcm"} < set(done.files)
    made, image = (pydicom.dcmread(path) for path in (tmp_path / "out" / "CT_small.saliency.sc.dcm", CT))
    assert np.array_equal(made.pixel_array, np.asarray(Image.open(tmp_path / "out" / "CT_small.saliency.png")))
    assert made.pixel_array.shape == (128, 128, 3)
    assert made.StudyInstanceUID == image.StudyInstanceUID
    assert made.SourceImageSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID
    assert made.ImageComments == NOTE


def test_an_explanation_of_a_volume_lies_on_the_volumes_own_grid(tmp_path, flair):
    predict(saved(tmp_path, job_of(size=(16, 32, 32))), flair, tmp_path / "out", explain=True)
    (path,) = (tmp_path / "out").glob("*.pm.dcm")
    made = pydicom.dcmread(path)
    assert (made.NumberOfFrames, made.Rows, made.Columns) == (22, 320, 280)
    assert made.FrameOfReferenceUID == pydicom.dcmread(flair / "00.dcm").FrameOfReferenceUID
    assert made.pixel_array.max() > 0


def test_only_what_gives_labels_can_be_explained(tmp_path):
    with pytest.raises(UsageError, match="--explain"):
        predict(saved(tmp_path, unet()), CT, tmp_path / "out", explain=True)
