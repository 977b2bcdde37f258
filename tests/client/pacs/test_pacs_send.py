"""Results go back to the hospital's PACS, and a query finds them at the study that they belong to."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path

import pydicom
import pytest
from hospital_pacs import PASSWORD, USER, wait_for
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from client.pacs.address import Secret, Tls, read_peer
from client.pacs.deliver import send_to_pacs
from client.pacs.dicomweb import WebPacs
from client.pacs.dimse import DimsePacs, Own
from client.pacs.query import Query, find_series
from client.record import site_log
from common.errors import DataError, LinkError, UsageError


@pytest.fixture
def results(tmp_path, shared_data, small):
    """A real segmentation and a real TID 1500 report, made to belong to the brain's study, as results would."""
    study = pydicom.dcmread(small[0], stop_before_pixels=True)
    folder = tmp_path / "results"
    folder.mkdir()
    for name in ("seg_image_ct_binary.dcm", "sr_document.dcm"):
        made = pydicom.dcmread(shared_data / "derived_dicom" / name)
        for keyword in ("StudyInstanceUID", "PatientID", "PatientName", "StudyDate", "StudyID"):
            setattr(made, keyword, study.get(keyword))
        made.SeriesInstanceUID, made.SOPInstanceUID = generate_uid(), generate_uid()
        made.save_as(folder / name, enforce_file_format=True)
    return folder


def pacs_of(orthanc, way):
    if way == "STOW-RS":
        return WebPacs(orthanc.url, Tls(), Secret(USER, PASSWORD))
    return DimsePacs(read_peer(orthanc.peer), Own("WARDROUND"))


@pytest.mark.parametrize("way", ["C-STORE", "STOW-RS"])
def test_results_are_found_at_the_right_study(kit, orthanc, dcmtk, results, way):
    made = {file.Modality: file for file in map(pydicom.dcmread, results.iterdir())}
    with pacs_of(orthanc, way) as pacs:
        done = send_to_pacs(kit, pacs, [results])
        assert [one.problem for one in done] == ["", ""]
        found = list(find_series(pacs.find, Query(("SEG", "SR"), study=str(made["SEG"].StudyInstanceUID))))
    named = {(one.modality, one.uid, each.uid) for one in found for each in one.instances}
    for modality, file in made.items():
        assert (modality, file.SeriesInstanceUID, file.SOPInstanceUID) in named
        line = ["findscu", "-S", "-aet", "WARDROUND", "-aec", "HOSPITAL", "localhost", str(orthanc.dicom)]
        keys = ("QueryRetrieveLevel=SERIES", f"StudyInstanceUID={file.StudyInstanceUID}", f"Modality={modality}")
        line += [part for key in (*keys, "SeriesInstanceUID") for part in ("-k", key)]
        told = subprocess.run(line, capture_output=True, text=True, check=True, timeout=60)
        assert file.SeriesInstanceUID in told.stdout + told.stderr


def test_the_command_sends_and_the_log_has_what_was_sent_before_it_was(kit, wardround, orthanc, results):
    done = wardround("send", "--pacs", orthanc.peer, results, "--json")
    assert done.returncode == 0, done.stderr
    assert [one["problem"] for one in json.loads(done.stdout)] == ["", ""]
    sent, taken = [entry.body for entry in site_log(kit).entries() if entry.kind in ("send", "sent")]
    assert {one["sop_class"] for one in sent["objects"]} == {
        "1.2.840.10008.5.1.4.1.1.66.4",
        "1.2.840.10008.5.1.4.1.1.88.34",
    }
    assert taken == {"to": orthanc.peer, "taken": 2, "of": 2}
    study = str(pydicom.dcmread(next(results.iterdir())).StudyInstanceUID)
    assert study not in (kit / "audit.jsonl").read_text()


def test_a_folder_without_a_file_is_not_called_sent(kit, orthanc, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no DICOM file in it: nothing was sent"):
        send_to_pacs(kit, pacs_of(orthanc, "C-STORE"), [tmp_path / "empty"])


def test_what_is_no_dicom_stops_all_before_anything_is_sent(kit, orthanc, results):
    (results / "note.txt").write_text("I am no image")
    with pytest.raises(DataError, match=r"note\.txt: this is no DICOM file: nothing was sent"):
        send_to_pacs(kit, pacs_of(orthanc, "C-STORE"), [results])
    with pytest.raises(UsageError, match="no such file or folder"):
        send_to_pacs(kit, pacs_of(orthanc, "C-STORE"), [results / "nowhere"])
    assert not (kit / "audit.jsonl").exists()


def test_a_file_that_the_pacs_does_not_take_is_told_and_the_others_go(kit, orthanc, results):
    with pacs_of(orthanc, "C-STORE") as pacs:
        done = send_to_pacs(kit, pacs, [results, Path(get_testdata_file("MR_small_bigendian.dcm"))])
    assert [bool(one.problem) for one in done] == [False, False, True]
    assert done[-1].problem == "it takes no MR Image Storage in Explicit VR Big Endian"


def test_a_pacs_that_goes_away_while_files_are_sent_is_a_line_that_says_how_many_it_has(kit, orthanc, results):
    def watch(done, total):
        orthanc.stop()
        wait_for(lambda: not any(each.name.startswith("Requestor") for each in threading.enumerate()), "it is noticed")

    try:
        with pytest.raises(LinkError, match="it has 1 of 2 files"), pacs_of(orthanc, "C-STORE") as pacs:
            send_to_pacs(kit, pacs, [results], watch)
    finally:
        orthanc.start()
    assert [entry.body for entry in site_log(kit).entries()][-1] == {"to": orthanc.peer, "taken": 1, "of": 2}
