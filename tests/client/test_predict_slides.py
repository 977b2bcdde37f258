"""What `wardround predict` writes of whole-slide images: a report or a row, and heat maps that viewers open."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import highdicom
import numpy as np
import openslide
import pytest
from pydicom import dcmread

sys.path.insert(0, str(Path(__file__).parent))  # the tests' own models

from saved_models import job_of, saved

from client.results.predict import predict
from simulations.slide_files import write_dicom
from simulations.slides import LABORATORIES, draw_slide

UNKNOWN_TO_THE_VALIDATOR = (
    "<PlanePositionMacro>", "<PlaneOrientationMacro>", "<PlanePositionSlideMacro>",
    "<MultiFrameFunctionalGroupsForParametricMap>",
)  # fmt: skip
"""It wants each frame's place, which a map in slide coordinates that is TILED_FULL leaves out (PS3.3 A.75.3)."""


def model_of_bags(folder):
    small, labels = {"width": 8, "hidden": 8}, ("normal", "tumour")
    job = job_of(size=(6, 48, 48), network="attention-mil", parameters=small, labels=labels, bag="slide", channels=3,
                 mpp=1.0)  # fmt: skip
    return saved(folder, job)


@pytest.fixture(scope="module")
def dicom_slide(tmp_path_factory):
    """A slide as the levels of one DICOM series."""
    picture = draw_slide(np.random.default_rng(4), LABORATORIES[0], tumour=True, edge=384)
    return write_dicom(picture, tmp_path_factory.mktemp("slide"), "S1", patient="P1")


def test_a_real_slide_gets_its_probabilities_and_heat_maps_that_a_slide_viewer_opens(shared_data, tmp_path):
    done = predict(model_of_bags(tmp_path), shared_data / "slide", tmp_path / "out")
    assert (done.sources, done.refused) == (1, ())
    (row,) = csv.DictReader((tmp_path / "out" / "results.csv").open())
    assert row["file"] == "CMU-1-Small-Region.svs"
    assert float(row["p(normal)"]) + float(row["p(tumour)"]) == pytest.approx(1, abs=1e-5)
    with openslide.OpenSlide(shared_data / "slide" / "CMU-1-Small-Region.svs") as slide:
        extent = [size * float(slide.properties["openslide.mpp-x"]) for size in slide.dimensions]
    maps = sorted((tmp_path / "out").glob("*.heat-*.tif"))
    assert len(maps) == 2  # of the second label, and of the attention
    for path in maps:
        with openslide.OpenSlide(path) as drawn:
            found = [size * float(drawn.properties["openslide.mpp-x"]) for size in drawn.dimensions]
        assert found == pytest.approx(extent, abs=2 * 48)  # micrometres: to the tile


def test_a_dicom_slides_report_and_maps_belong_to_its_study_and_hold_against_a_validator(dicom_slide, tmp_path):
    predict(model_of_bags(tmp_path), dicom_slide, tmp_path / "out")
    source = dcmread(next(iter(sorted(dicom_slide.iterdir()))), stop_before_pixels=True)
    objects = sorted((tmp_path / "out").rglob("*.dcm"))
    assert [path.suffixes[-2] for path in objects] == [".heat-1", ".heat-2", ".sr"]
    for path in objects:
        made = dcmread(path)
        assert (made.StudyInstanceUID, made.PatientID) == (source.StudyInstanceUID, source.PatientID)
    report = highdicom.sr.srread(objects[-1])
    assert len(report.content.get_image_measurement_groups()) == 2
    values = dcmread(objects[0])
    assert values.FrameOfReferenceUID == source.FrameOfReferenceUID
    if shutil.which("dciodvfy") is None:
        pytest.skip("no DICOM validator: apt-get install dicom3tools")
    for path in objects:
        told = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False)
        faults = [line for line in (told.stdout + told.stderr).splitlines() if line.startswith("Error")]
        assert [line for line in faults if not line.endswith(UNKNOWN_TO_THE_VALIDATOR)] == []


def test_a_model_of_slides_refuses_what_is_no_slide_with_a_reason(tmp_path, shared_data):
    from common.errors import DataError

    with pytest.raises(DataError, match="no slide, and the model is one of slides"):
        predict(model_of_bags(tmp_path), shared_data / "derived_dicom" / "ct_image.dcm", tmp_path / "out")
    assert not (tmp_path / "out").exists()
