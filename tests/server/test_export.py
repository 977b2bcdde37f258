"""Models in other programs' formats: loaded back by those programs, they say what the model says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "client"))  # the tests' own models

from saved_models import job_of, saved, unet

from client.intake.formats import format_named
from client.placing import as_case
from common.errors import RunError, UsageError
from common.model_file import read_saved
from server.export import comparing
from server.export.comparing import example_of, network_of
from server.export.formats import FORMATS, export_model

JOBS = {
    "small-cnn": job_of(),
    "unet in patches": unet((16, 32, 32), patch=[8, 16, 16]),
    "mlp": job_of(network="mlp", features=["age", "sex"]),
}


@pytest.fixture(params=JOBS)
def model(request, tmp_path):
    return saved(tmp_path, JOBS[request.param])


def test_an_onnx_file_gives_what_the_network_gives_for_any_number_of_images(model, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    assert export_model(tmp_path / "model.safetensors", tmp_path / "model.onnx", "onnx") < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    images = example_of(model, 5)
    with torch.inference_mode():
        wanted = network_of(model)(images).numpy()
    assert session.run(None, {"image": images.numpy()})[0] == pytest.approx(wanted, abs=1e-4)
    facts = session.get_modelmeta().custom_metadata_map
    assert (facts["job_digest"], facts["labels"]) == (model.job.digest, "|".join(model.job.task.labels))


def test_a_copy_for_a_hospital_has_its_job_and_the_same_bits(model, tmp_path):
    assert export_model(tmp_path / "model.safetensors", tmp_path / "copy.safetensors", "safetensors") == 0
    copy = read_saved(tmp_path / "copy.safetensors")
    assert (copy.job, copy.provenance) == (model.job, model.provenance)
    assert all(np.array_equal(copy.tensors[name], tensor) for name, tensor in model.tensors.items())


def test_a_bundles_steps_before_and_after_the_network_come_near_to_ward_rounds_own(tmp_path):
    from monai.bundle.config_parser import ConfigParser

    model, image = saved(tmp_path, unet((16, 32, 32))), tmp_path / "brain.nii.gz"
    smooth = np.outer(np.arange(40), np.arange(36))[..., None] * np.linspace(1, 2, 20)
    affine = np.diag([-2.0, 3.0, 4.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(smooth.astype(np.float32), affine), image)
    assert export_model(tmp_path / "model.safetensors", tmp_path / "bundle", "bundle") < 1e-5
    parser = ConfigParser()
    parser.read_config(tmp_path / "bundle" / "configs" / "inference.json")
    parser["bundle_root"] = str(tmp_path / "bundle")
    seen = parser.get_parsed_content("preprocessing")({"image": str(image)})["image"]
    ours = as_case(format_named("nifti").volume([image]), model.job.data)
    assert np.abs(np.asarray(seen) - ours).mean() < 0.02
    with torch.inference_mode():
        pred = parser.get_parsed_content("inferer")(seen[None], parser.get_parsed_content("network"))
    assert tuple(pred.shape) == (1, 3, 16, 32, 32)


def test_a_bundles_papers_say_what_it_is_and_what_it_is_not(tmp_path):
    model = saved(tmp_path, job_of())
    export_model(tmp_path / "model.safetensors", tmp_path / "bundle", "bundle")
    about = json.loads((tmp_path / "bundle" / "configs" / "metadata.json").read_text())
    assert "not a medical device" in about["intended_use"]
    assert about["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "normal", "1": "ill"}
    assert about["provenance"]["job_digest"] == model.job.digest
    assert read_saved(tmp_path / "bundle" / "models" / "model.safetensors").job == model.job


@pytest.mark.parametrize("kind", ["onnx", "bundle"])
def test_an_export_that_gives_other_outputs_is_not_left_behind(tmp_path, monkeypatch, kind):
    pytest.importorskip("onnxruntime")
    saved(tmp_path, job_of())
    monkeypatch.setattr(comparing, "TOLERANCE", -1.0)
    with pytest.raises(RunError, match="other outputs"):
        export_model(tmp_path / "model.safetensors", tmp_path / "out", kind)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_there_is_not_overwritten(tmp_path, kind):
    saved(tmp_path, job_of())
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError, match="nothing is overwritten"):
        export_model(tmp_path / "model.safetensors", tmp_path / "out", kind)
    assert (tmp_path / "out").read_text() == "mine"
