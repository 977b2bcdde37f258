"""Raw k-space in fastMRI's HDF5: it is imported, keeps its phase, and a site learns from it, privately or not."""

from __future__ import annotations

import base64
import csv
import io
import sys
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))  # the tests' own measurements and models

from raw_measurements import header, kspace_of, measure, with_phase, write
from saved_models import job_of, saved, unet

from client.catalog import CATALOG_FILE, Catalog
from client.dataset import open_cases
from client.intake.formats import HEAD_BYTES, format_named, identify
from client.intake.image import FileRefusedError
from client.intake.importer import ImportOptions, import_folder
from client.intake.intensity import with_channels
from client.intake.kspace import combined
from client.intake.quality.pictures import _encoded
from client.results.predict import predict
from client.site import Site
from common.errors import DataError
from common.job import Job
from common.networks import initial_model
from common.update import Request

RAW = format_named("kspace")
ALL_TRAIN = ImportOptions(fractions=(1.0, 0.0, 0.0))


def heads(count=2, rows=48, columns=40):
    """Ellipses with structures, in [0, 1]: as far as a test needs a head."""
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    made = []
    for number in range(count):
        image = 0.5 * (x**2 / 0.6 + y**2 / 0.8 < 1)
        image += 0.3 * ((x - 0.2) ** 2 + (y + 0.1 * number) ** 2 < 0.06) + 0.2 * (np.abs(x + 0.4) < 0.08) * (image > 0)
        made.append(with_phase(image))
    return np.stack(made)


def magnitudes(path):
    return with_channels(RAW.volume([path]), 1)[..., 0]


def test_one_coils_image_comes_back_complex_and_is_measured_against_its_brightest_place(tmp_path):
    true = heads()
    path = write(tmp_path / "one.h5", kspace_of(true))
    assert identify(path.read_bytes()[:HEAD_BYTES]).name == "kspace"
    found = RAW.volume([path])
    assert found.shape == (2, 48, 40, 2)
    assert np.allclose(found[..., 0] + 1j * found[..., 1], true / np.abs(true).max(), atol=1e-5)


def test_many_coils_make_the_root_of_their_summed_squares_and_keep_the_anatomys_phase(tmp_path):
    true = heads()
    kspace = measure(true, coils=8)
    path = write(tmp_path / "many.h5", kspace, header(48, 40))
    wide = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes=(-2, -1)), norm="ortho"), axes=(-2, -1))
    root = np.sqrt((np.abs(wide) ** 2).sum(axis=1))[:, 24:72]
    found = magnitudes(path)
    assert np.abs(found - root / root.max()).max() < 0.03
    made = combined(kspace[0], (48, 40))
    there = np.abs(true[0]) > 0.1
    apart = np.angle(made * true[0].conj())  # the coils' own phase is smooth: no edge where the anatomy has one
    steps = np.abs(np.angle(np.exp(1j * np.diff(apart, axis=1))))[there[:, 1:] & there[:, :-1]]
    assert np.quantile(steps, 0.99) < 0.15  # the edge in the anatomy is of 1.2


def test_the_header_says_matrix_spacing_and_scanner_and_the_file_whose_it_is(tmp_path):
    path = write(tmp_path / "a.h5", measure(heads()), header(48, 40), patient="0f3c", reconstruction_rss=np.ones(3))
    facts = RAW.inspect(path)
    assert (facts.rows, facts.columns, facts.frames, facts.modality, facts.patient) == (48, 40, 2, "MR", "0f3c")
    assert (facts.acquired.manufacturer, facts.acquired.model, facts.acquired.field) == ("ACME", "Magnus", 2.9)
    assert RAW.grid([path]).spacing == pytest.approx((2.0, 1.0, 0.5))
    assert (facts.acquired.spacing, facts.acquired.thickness) == (pytest.approx((1.0, 0.5)), pytest.approx(2.0))
    without = write(tmp_path / "b.h5", measure(heads()))
    assert (RAW.inspect(without).rows, RAW.grid([without]).spacing) == (96, None)


def test_the_image_is_what_the_header_wants_to_see_in_pixels_as_they_were_measured(tmp_path):
    # The scanner shows 96 x 80 pixels, interpolated; measured are 48 x 40 in the same field of view.
    path = write(tmp_path / "a.h5", measure(heads()), header(48, 40, finer=2), as_list=True)
    facts = RAW.inspect(path)
    assert (facts.rows, facts.columns) == (48, 40)
    assert RAW.grid([path]).spacing == pytest.approx((2.0, 1.0, 0.5))


def test_a_header_that_names_its_patient_is_told(tmp_path):
    person = "<subjectInformation><patientName>Quillonby^Z</patientName><patientName/><patientGender>F</patientGender>"
    path = write(tmp_path / "a.h5", measure(heads()), header(48, 40, f"{person}</subjectInformation>"))
    facts = RAW.inspect(path)
    assert (facts.identifiers, facts.acquired.sex) == (("PatientName",), "F")


@pytest.mark.parametrize("patient", ["17", b"17", np.bytes_(b"17"), np.array(["17"], dtype="S2"), 17, np.int64(17)])
def test_whose_a_file_is_is_read_however_it_is_stored(tmp_path, patient):
    assert RAW.inspect(write(tmp_path / "a.h5", measure(heads()), patient=patient)).patient == "17"


def unwritten(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("kspace", (4000, 1024, 1024), np.complex64, chunks=(1, 1024, 1024))


def damaged(path):
    """Bytes overturned in the file's own structure, where HDF5's library can crash on them."""
    content = bytearray(write(path, measure(heads(), coils=2), header(48, 40)).read_bytes())
    random = np.random.default_rng(0)
    for place in random.integers(8, 2000, 200):
        content[place] = random.integers(256)
    path.write_bytes(content)


def external(path):
    other = write(path.with_name("other.h5"), measure(heads()))
    with h5py.File(path, "w") as file:
        file["kspace"] = h5py.ExternalLink(str(other), "kspace")


def cut_short(path):
    whole = write(path, measure(heads())).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(("written", "why"), [
    (lambda path: write(path, measure(heads()), mask=np.ones(40)), "undersampled already"),
    (lambda path: write(path, np.abs(measure(heads()))), "complex numbers"),
    (lambda path: write(path, np.zeros((2, 8, 8), np.complex64)), "empty"),
    (lambda path: write(path, np.full((2, 8, 8), np.nan, np.complex64)), "no numbers, in slice 1"),
    (lambda path: write(path, measure(heads()), "<not closed"), "no ISMRMRD header"),
    (lambda path: write(path, measure(heads()), "<!DOCTYPE x [<!ENTITY a 'b'>]><x>&a;</x>"), "no ISMRMRD header"),
    (lambda path: h5py.File(path, "w").close(), 'without "kspace"'),
    (external, "no data set of the file itself"),
    (unwritten, "not written whole"),
    (lambda path: write(path, np.ones((1, 300, 8, 8), np.complex64)), "256 coils"),
    (lambda path: write(path, np.full((1, 8, 8), 1e38, np.complex64)), "beyond reason"),
    (lambda path: write(path, measure(heads()), patient=np.zeros((2, 2))), "no text: whose it is"),
    (damaged, "can't be read"),
    (cut_short, "can't be read"),
])  # fmt: skip
def test_a_file_that_is_no_whole_measurement_is_refused_with_its_reason(tmp_path, written, why):
    path = tmp_path / "x.h5"
    written(path)
    with pytest.raises(FileRefusedError, match=why) as raised:
        RAW.inspect(path)
    assert str(tmp_path) not in str(raised.value)


def test_a_file_that_crashes_the_library_is_refused_and_the_import_lives(tmp_path, monkeypatch):
    path = write(tmp_path / "a.h5", measure(heads()))
    monkeypatch.setattr("client.intake.kspace.READ_ALL", "import os; os.abort()")  # as the library does
    with pytest.raises(FileRefusedError, match="crashes HDF5's library"):
        RAW.inspect(path)


def test_the_report_on_quality_shows_the_magnitude(tmp_path):
    image = RAW.volume([write(tmp_path / "a.h5", measure(heads()), header(48, 40))])[0]
    shown = base64.b64decode(_encoded(image).partition(",")[2])
    with Image.open(io.BytesIO(shown)) as picture:
        assert picture.mode == "L"
        pixels = np.asarray(picture) / 255
    assert np.abs(pixels - with_channels(image, 1)[..., 0]).max() < 0.01


def test_a_model_of_another_task_refuses_raw_data_and_says_so(tmp_path):
    write(tmp_path / "in" / "a.h5", measure(heads()), header(48, 40))
    with pytest.raises(DataError, match="raw MR data, and the model is one of segmentation"):
        predict(saved(tmp_path, unet()), tmp_path / "in", tmp_path / "out")


def test_a_job_for_complex_images_reads_pictures_too_and_one_for_grey_images_the_magnitude(tmp_path, kit_folder):
    write(tmp_path / "raw" / "a.h5", measure(heads()), header(48, 40), patient="p")
    import_folder(kit_folder, "raw", tmp_path / "raw", options=ALL_TRAIN)
    catalog = Catalog(kit_folder / CATALOG_FILE)
    job = restorer()
    complex_ones = open_cases(catalog, job.data, "train", tmp_path / "cache", task=job.task).images
    grey = job.model_copy(update={"data": job.data.model_copy(update={"channels": 1})})
    magnitude = open_cases(catalog, grey.data, "train", tmp_path / "cache", task=job.task).images
    assert (complex_ones.shape, magnitude.shape) == ((2, 2, 32, 32), (2, 1, 32, 32))
    assert complex_ones.min() < 0
    assert np.abs(np.hypot(complex_ones[:, :1], complex_ones[:, 1:]) - magnitude).mean() < 0.03


def test_complex_images_are_for_reconstruction_alone():
    with pytest.raises(ValueError, match=r"data.channels: complex images are for reconstruction"):
        job_of(channels=2)


def restorer(network="unrolled-cnn", privacy=None, **data):
    small = {"width": 8, "cascades": 2} if network == "unrolled-cnn" else {"width": 4, "levels": 2}
    sees = "k-space" if network == "unrolled-cnn" else "image"
    return Job.model_validate({
        "name": "knee", "sites": ["north"], "network": {"name": network, "parameters": small},
        "task": {"kind": "reconstruction", "parameters": {"sees": sees, "acceleration": 2, "center_fraction": 0.1}},
        "data": {"collection": "raw", "size": [32, 32], "channels": 2, **data},
        "training": {"optimizer": "adamw", "learning_rate": 0.005, "batch_size": 4, "local_steps": 20},
        "aggregation": {"rounds": 3}, "privacy": privacy or {},
    })  # fmt: skip


@pytest.fixture
def site(kit_folder, write_kit, tmp_path, shared_data):
    """A site with raw data made of a real head's slices: coils, phase, noise; two slices of each of eight people."""
    write_kit(kit_folder)
    policy = 'collections = ["raw"]\ntasks = ["reconstruction"]\nnetworks = ["*"]\nrequire_privacy = false\n'
    (kit_folder / "policy.toml").write_text(
        policy + "max_delta = 1e-2\nmin_evaluation_patients = 1\nmin_patients = 4\n"
    )
    files = sorted((shared_data / "brain_mri_dicom" / "36468-FLAIRreg-58706").iterdir())[4:20]
    slices = [pydicom.dcmread(path).pixel_array[::4, ::4].astype(float) for path in files]
    for number in range(8):
        pair = np.stack([with_phase(one / one.max(), blob=number / 4) for one in slices[2 * number : 2 * number + 2]])
        rows, columns = pair.shape[1:]
        kspace = measure(pair, noise=0.01, seed=number)
        write(tmp_path / "raw" / f"{number}.h5", kspace, header(rows, columns), patient=f"p{number}")
    labels = tmp_path / "splits.csv"
    rows = [f"{number}.h5,any,{'train' if number < 6 else 'test'}\n" for number in range(8)]
    labels.write_text("file,label,split\n" + "".join(rows))
    import_folder(kit_folder, "raw", tmp_path / "raw", labels)
    return Site.open(kit_folder, "cpu")


def test_a_site_learns_to_fill_in_what_was_not_measured_of_raw_data(site):
    wanted = restorer()
    model = untrained = initial_model(wanted)
    for number in (1, 2, 3):
        answer = site.answer(Request("train", "run", number, wanted, model))
        assert (answer.status, answer.reason) == ("ok", "")
        model = answer.tensors
    before, after = (
        site.answer(Request("evaluate", "run", 3, wanted, tensors, split="test")).metrics
        for tensors in (untrained, model)
    )
    assert after["eval.psnr"] > before["eval.psnr"] + 0.5
    assert after["eval.ssim"] > before["eval.ssim"]


@pytest.mark.parametrize("network", ["unrolled-cnn", "residual-unet"])
def test_with_privacy_a_patients_slices_of_raw_data_count_as_one(site, network):
    wanted = restorer(network, {"mechanism": "dp-sgd", "epsilon": 8.0, "delta": 1e-2}, augment="light")
    answer = site.answer(Request("train", "run", 1, wanted, initial_model(wanted)))
    assert (answer.status, answer.reason) == ("ok", "")
    assert 0 < answer.metrics["privacy.epsilon"] <= 8.0
    assert set(answer.numbers.bases().values()) <= {"noised"}


def test_predict_writes_a_volume_with_its_spacing_and_how_near_it_is(tmp_path):
    write(tmp_path / "in" / "a.h5", measure(heads(3)), header(48, 40), patient="p")
    done = predict(saved(tmp_path, restorer()), tmp_path / "in", tmp_path / "out")
    assert (done.sources, done.refused) == (1, ())
    made = nibabel.load(tmp_path / "out" / "a.recon.nii.gz")
    assert (made.shape, made.header.get_zooms()) == ((40, 48, 3), pytest.approx((0.5, 1.0, 2.0)))
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert [row["file"] for row in rows] == ["a.h5"] * 3
    shown = np.asarray(made.dataobj).transpose(2, 1, 0)
    assert (
        np.corrcoef(shown.ravel(), magnitudes(tmp_path / "in" / "a.h5").ravel())[0, 1] > 0.8
    )  # lies as its source does
    assert all(10 < float(row["psnr"]) < 60 for row in rows)
