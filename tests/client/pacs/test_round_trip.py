"""From the PACS and back to it: studies are pulled, a site trains, its model predicts, and its drafts are there."""

from __future__ import annotations

import json
from dataclasses import replace

import highdicom as hd
import numpy as np
import pydicom
import pytest
from hospital_pacs import PASSWORD, USER, Orthanc

from client.catalog import CATALOG_FILE, Catalog
from client.pacs.address import Secret, Tls, read_peer
from client.pacs.dicomweb import WebPacs
from client.pacs.dimse import DimsePacs, Own
from client.pacs.query import Query, find_series
from client.results.about import NOTE
from client.site import Site
from common.cli import main
from common.job import Job
from common.model_file import Provenance
from common.networks import initial_model
from common.update import Request
from server.modelfiles import write_model
from simulations.hospitals import HOSPITALS, write_hospital

pytestmark = pytest.mark.slow
SEGMENTED = "seg_image_ct_binary_single_frame.dcm"
POLICY = """collections = ["chest", "bones"]
tasks = ["classification", "segmentation"]
networks = ["*"]
require_privacy = false
min_patients = 1
min_evaluation_patients = 1
"""
CHEST = {"task": {"kind": "classification", "labels": ["normal", "pneumonia"]}, "network": {"name": "small-cnn"}}
BONES = {
    "task": {"kind": "segmentation", "labels": ["bone"]},
    "network": {"name": "unet", "parameters": {"width": 4, "levels": 3}},
}


@pytest.fixture(scope="module")
def chest(tmp_path_factory):
    """Radiographs of 30 phantom patients, who are well or have pneumonia."""
    folder = tmp_path_factory.mktemp("chest")
    write_hospital(replace(HOSPITALS[0], patients=30, repeated=0.0), folder, seed=1)
    return folder


@pytest.fixture(scope="module")
def hospital(orthanc_program, chest, shared_data, tmp_path_factory):
    """Orthanc with the radiographs, and a real CT slice with the segmentation that highdicom's makers drew on it."""
    pacs = Orthanc(tmp_path_factory.mktemp("trip") / "orthanc").start()
    try:
        pacs.give(chest.rglob("*.dcm"))
        pacs.give(shared_data / "derived_dicom" / name for name in ("ct_image.dcm", SEGMENTED))
        yield pacs
    finally:
        pacs.stop()


@pytest.fixture
def ward(kit, monkeypatch, capsys):
    """Run `wardround ...`, which must end well, and return what it prints."""
    monkeypatch.setenv("WARDROUND_PACS_SECRET", PASSWORD)
    (kit / "policy.toml").write_text(POLICY)

    def run(*arguments: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert not ended.value.code, printed.out + printed.err
        return printed.out

    return run


def trained(kit, collection, parts, rounds):
    """Let the site answer some rounds, as it would a coordinator, and write the last model as a coordinator would."""
    job = Job.model_validate({
        "name": collection, "sites": ["north"], "data": {"collection": collection, "size": [32, 32]}, **parts,
        "training": {"optimizer": "adamw", "learning_rate": 0.01, "batch_size": 8, "local_steps": 4},
    })  # fmt: skip
    site, model = Site.open(kit, "cpu"), initial_model(job)
    for number in range(1, rounds + 1):
        answer = site.answer(Request("train", "run", number, job, model))
        assert (answer.status, answer.reason) == ("ok", "")
        model = answer.tensors
    path = kit.parent / f"{collection}.safetensors"
    write_model(path, model, Provenance("run", job.digest, rounds, "0.1.0", job.canonical_json()))
    return path


def received(kit, collection):
    return kit / "received" / collection / "objects"


def drafts_at(pacs, source, modality):
    """The drafts that a query of the PACS finds at the study of a source's image."""
    found = find_series(pacs.find, Query((modality,), study=str(source.StudyInstanceUID)))
    return {one.uid for series in found for one in series.instances}


def test_radiographs_of_a_pacs_become_a_model_whose_reports_it_then_has_at_each_patients_study(
    kit, ward, hospital, chest, tmp_path
):
    pacs = ("--pacs", hospital.peer, "--kit", kit)
    told = ward("site", "import", "--collection", "chest", *pacs, "--modality", "DX", "--labels", chest / "labels.csv")
    assert "30 objects found, 0 were here, 30 received" in told
    model = trained(kit, "chest", CHEST, rounds=2)
    ward("predict", "--model", model, received(kit, "chest"), tmp_path / "drafts")
    assert "30 of 30 files sent" in ward("site", "send", *pacs, tmp_path / "drafts")
    reports = {str(one.SOPInstanceUID): one for one in map(hd.sr.srread, (tmp_path / "drafts").rglob("*.sr.dcm"))}
    sources = [pydicom.dcmread(path, stop_before_pixels=True) for path in chest.rglob("*.dcm")]
    with DimsePacs(read_peer(hospital.peer), Own("WARDROUND")) as asked:
        for source in sources:
            (uid,) = drafts_at(asked, source, "SR")
            assert reports[uid].PatientID == source.PatientID
            assert_probabilities_of(reports[uid], source)


def assert_probabilities_of(report, source):
    groups = report.content.get_image_measurement_groups()
    values = {group.finding_type.meaning: float(group.get_measurements()[0].value) for group in groups}
    assert set(values) == {"normal", "pneumonia"}
    assert sum(values.values()) == pytest.approx(1, abs=1e-4)
    assert {group.source_images[0].referenced_sop_instance_uid for group in groups} == {source.SOPInstanceUID}
    assert report.CompletionFlagDescription == NOTE


def test_a_ct_and_its_segmentation_become_a_model_whose_segmentation_the_pacs_then_has_beside_the_first(
    kit, ward, hospital, shared_data, tmp_path
):
    source, truth = (pydicom.dcmread(shared_data / "derived_dicom" / name) for name in ("ct_image.dcm", SEGMENTED))
    web = ("--dicomweb", hospital.url, "--user", USER, "--kit", kit)
    what = ("--collection", "bones", "--study", source.StudyInstanceUID, "--structure", "first segment=bone")
    pull = ("site", "import", *web, *what, "--labels", split_of(source, tmp_path), "--allow-identified", "--json")
    assert "DICOM SEG: 1 taken as masks" in json.loads(ward(*pull))["warnings"]
    before = drawing(kit)
    model = trained(kit, "bones", BONES, rounds=1)
    ward("predict", "--model", model, received(kit, "bones"), tmp_path / "drafts")
    ward("site", "send", *web, tmp_path / "drafts")
    (draft,) = map(hd.seg.segread, (tmp_path / "drafts").rglob("*.seg.dcm"))
    with WebPacs(hospital.url, Tls(), Secret(USER, PASSWORD)) as asked:
        assert drafts_at(asked, source, "SEG") == {truth.SOPInstanceUID, draft.SOPInstanceUID}
    assert (draft.StudyInstanceUID, draft.PatientID) == (source.StudyInstanceUID, source.PatientID)
    assert_lies_on(draft, source)
    ward(*pull)
    assert drawing(kit) == before, "a model's draft was taken for a drawing of its truth"


def split_of(source, folder):
    """A label file by which the one patient is trained on."""
    (folder / "split.csv").write_text(f"patient,label,split\n{source.PatientID},scanned,train\n")
    return folder / "split.csv"


def drawing(kit):
    """The annotation of the collection's one image."""
    (one,) = (record for record in Catalog(kit / CATALOG_FILE).records("bones") if not record.reason)
    return one.annotation


def assert_lies_on(draft, source):
    assert [draft.get_segment_description(number).segment_label for number in draft.segment_numbers] == ["bone"]
    pixels = draft.get_pixels_by_source_instance(
        [source.SOPInstanceUID], ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    assert pixels.shape[:3] == (1, source.Rows, source.Columns)
    assert set(np.unique(pixels)) <= {0, 1}
