"""A site imports from a hospital's PACS: a real Orthanc, by C-GET, by C-MOVE and by DICOMweb."""

from __future__ import annotations

import json
import re
import signal
import stat
import subprocess
import sys

import pytest
from hospital_pacs import PASSWORD, PROJECT, USER

from client.catalog import CATALOG_FILE, Catalog
from client.intake.importer import ImportOptions
from client.pacs.address import Secret, Tls, read_peer
from client.pacs.deliver import send_to_pacs
from client.pacs.dicomweb import WebPacs
from client.pacs.dimse import DimsePacs, Own
from client.pacs.fetch import fetch, import_from_pacs
from client.pacs.query import Instance, Query, Series, find_series
from client.pacs.store import open_store
from client.record import site_log
from common.errors import DataError, LinkError, SignInError

ANYBODY = ImportOptions(allow_identified=True)
WAYS = ("C-GET", "C-MOVE", "DICOMweb")
FLAIR = Query(("MR",), dates="20200101-20201231", body_part="brain")
"""The 8 slices of one series."""


def pacs_of(orthanc, way: str = "C-GET"):
    if way == "DICOMweb":
        return WebPacs(orthanc.url, Tls(), Secret(USER, PASSWORD))
    return DimsePacs(read_peer(orthanc.peer), Own("WARDROUND", receive_port=orthanc.move if way == "C-MOVE" else None))


def pull(kit, orthanc, query, way="C-GET", collection="brain", **more):
    with pacs_of(orthanc, way) as pacs:
        return import_from_pacs(kit, collection, pacs, query, options=ANYBODY, **more)


@pytest.mark.parametrize("way", WAYS)
def test_what_the_query_finds_becomes_a_collection_and_a_second_call_asks_for_nothing(kit, orthanc, way):
    fetched, report = pull(kit, orthanc, FLAIR, way)
    assert (fetched.found, fetched.received, fetched.problems) == (8, 8, {})
    assert report.summary is not None
    assert (report.summary.images, report.summary.patients, report.indexed) == (8, 1, 8)
    fetched, report = pull(kit, orthanc, FLAIR, way)
    assert (fetched.before, fetched.received, report.unchanged, report.indexed) == (8, 0, 8, 0)


@pytest.mark.parametrize("way", ["C-GET", "DICOMweb"])
@pytest.mark.parametrize(("query", "objects"), [
    (Query(("MR",)), 14),
    (Query(("ct",)), 1),
    (Query(("CT", "MR")), 15),
    (Query(dates="20040101-20041231"), 1),
    (Query(dates="20200121"), 14),
    (Query(dates="20200122-"), 0),
    (Query(body_part="BR*"), 8),
    (Query(patient_id="1CT1"), 1),
    (Query(("MR",), patient_id="1CT1"), 0),
])  # fmt: skip
def test_a_query_finds_what_it_names_and_nothing_else(orthanc, way, query, objects):
    with pacs_of(orthanc, way) as pacs:
        assert sum(len(series.instances) for series in find_series(pacs.find, query)) == objects


def test_what_is_kept_is_what_the_pacs_has_for_nobody_else_and_under_pseudonyms(kit, orthanc, small):
    import pydicom

    pull(kit, orthanc, Query(("CT",)))
    (kept,) = (kit / "received" / "brain" / "objects").rglob("*.dcm")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (*kept.parents[:5],)} == {0o700}
    sent, here = pydicom.dcmread(small[-1]), pydicom.dcmread(kept)
    assert here.PixelData == sent.PixelData
    assert not {str(sent.StudyInstanceUID), str(sent.SOPInstanceUID)} & {*kept.parts, kept.stem}


def test_objects_whose_class_the_pacs_does_not_tell_come_too(kit, orthanc):
    with pacs_of(orthanc) as pacs, open_store(kit, "brain") as store:
        (series,) = find_series(pacs.find, Query(("CT",)))
        untold = Series(series.study, series.uid, "CT", tuple(Instance(one.uid) for one in series.instances))
        assert fetch(pacs, [untold], store).received == 1


@pytest.mark.parametrize("way", ["C-GET", "C-MOVE"])
def test_compressed_objects_stay_as_they_are(kit, orthanc, way):
    import pydicom
    from pydicom.data import get_testdata_file

    path = get_testdata_file("JPEG2000.dcm")
    orthanc.give([path])
    pull(kit, orthanc, Query(("NM",)), way)
    kept = [pydicom.dcmread(found) for found in (kit / "received" / "brain" / "objects").rglob("*.dcm")]
    assert pydicom.dcmread(path).PixelData in [found.PixelData for found in kept]


def test_another_query_adds_to_the_collection_and_takes_nothing_away(kit, orthanc):
    pull(kit, orthanc, Query(("CT",)))
    fetched, report = pull(kit, orthanc, Query(("MR",), body_part="BRAIN"), "DICOMweb")
    assert report.summary is not None
    assert (fetched.received, report.removed, report.summary.modalities) == (8, 0, {"CT": 1, "MR": 8})


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {folders!r}
from test_pacs_import import FLAIR, pacs_of, pull
from hospital_pacs import Orthanc
pacs = Orthanc(Path("unused"), dicom={dicom}, http={http}, move={move})
def watch(done, found, size):
    if done == 3:
        os.kill(os.getpid(), signal.SIGKILL)
pull(Path({kit!r}), pacs, FLAIR, {way!r}, watch=watch)
"""


@pytest.mark.parametrize("way", ["C-GET", "DICOMweb"])
def test_a_transfer_that_was_killed_goes_on_where_it_was(kit, orthanc, way):
    folders = [str(PROJECT), str(PROJECT / "tests" / "client" / "pacs")]
    script = KILLED.format(
        folders=folders, dicom=orthanc.dicom, http=orthanc.http, move=orthanc.move, kit=str(kit), way=way
    )
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (kit / CATALOG_FILE).exists()
    (kit / "received" / "brain" / "incoming" / "half").write_bytes(b"what a kill left")
    fetched, report = pull(kit, orthanc, FLAIR, way)
    assert (fetched.before, fetched.received, report.indexed, report.refused) == (3, 5, 8, ())
    assert list((kit / "received" / "brain" / "incoming").iterdir()) == []


@pytest.mark.parametrize("way", WAYS)
def test_a_pacs_that_goes_away_in_the_middle_is_one_line_and_what_came_is_kept(kit, orthanc, way):
    def watch(done, found, size):
        if done == 2:
            orthanc.stop()

    try:
        with pytest.raises(LinkError, match="went away") as lost:
            pull(kit, orthanc, FLAIR, way, watch=watch)
    finally:
        orthanc.start()
    assert "\n" not in str(lost.value)
    assert not (kit / CATALOG_FILE).exists()
    fetched, _ = pull(kit, orthanc, FLAIR, way)
    assert 2 <= fetched.before < fetched.found == fetched.before + fetched.received == 8


@pytest.mark.parametrize(("peer", "title", "words"), [
    ("WRONG@localhost:{dicom}", "WARDROUND", "it is not called WRONG: give its own AE title"),
    ("HOSPITAL@localhost:{dicom}", "STRANGER", "does not allow STRANGER to do this"),
    ("HOSPITAL@localhost:1", "WARDROUND", "the PACS can't be reached: Connection refused"),
    ("HOSPITAL@localhost:{http}", "WARDROUND", "the PACS ended the connection before it said anything"),
    ("HOSPITAL@nowhere.invalid:104", "WARDROUND", "the PACS can't be reached: "),
])  # fmt: skip
def test_a_pacs_that_refuses_or_is_not_there_is_one_line(kit, orthanc, peer, title, words):
    peer = peer.format(dicom=orthanc.dicom, http=orthanc.http)
    with pytest.raises(LinkError, match=words) as refusal, DimsePacs(read_peer(peer), Own(title)) as pacs:
        import_from_pacs(kit, "brain", pacs, Query(("MR",)))
    assert str(refusal.value).startswith(peer)


@pytest.mark.parametrize(("path", "secret", "error", "words"), [
    ("/dicom-web", Secret(USER, "guess"), SignInError, "does not accept the user or the secret"),
    ("/dicom-web", Secret(None, "guess"), SignInError, "does not accept the user or the secret"),
    ("/dicom-web", None, SignInError, "does not accept the user or the secret"),
    ("/elsewhere", Secret(USER, PASSWORD), LinkError, "404 Not Found: is the URL that of its DICOMweb service"),
])  # fmt: skip
def test_dicomweb_that_refuses_is_one_line_without_the_secret(kit, orthanc, path, secret, error, words):
    url = f"http://localhost:{orthanc.http}{path}"
    with pytest.raises(error, match=words) as refusal, WebPacs(url, Tls(), secret) as pacs:
        import_from_pacs(kit, "brain", pacs, Query(("MR",), patient_id="PGBM-003"))
    assert not re.search(r"guess|a secret|PGBM", str(refusal.value))


def test_dicomweb_that_is_not_there_is_one_line(kit):
    with pytest.raises(LinkError, match="went away: Connection refused") as refusal:
        import_from_pacs(kit, "brain", WebPacs("http://localhost:1/dicom-web", Tls(), None), Query(("MR",)))
    assert "\n" not in str(refusal.value)


def test_a_pacs_that_has_nothing_of_the_kind_says_so(kit, orthanc):
    with pytest.raises(DataError, match="no series of this kind"):
        pull(kit, orthanc, Query(("XA",)))
    assert not (kit / CATALOG_FILE).exists()


@pytest.mark.parametrize("way", ["C-GET", "C-MOVE"])
def test_dcmtks_archive_is_read_and_written_too(kit, dcmtk_archive, small, way):
    peer, port = dcmtk_archive
    with DimsePacs(peer, Own("WARDROUND", receive_port=port if way == "C-MOVE" else None)) as pacs:
        pacs.echo()
        send_to_pacs(kit, pacs, small[:2])
        fetched, _ = import_from_pacs(kit, "brain", pacs, Query(dates="20200121"), options=ANYBODY)
    assert (fetched.found, fetched.received) == (2, 2)


def test_a_pacs_that_does_not_know_where_to_send_is_told_what_is_missing(kit, dcmtk_archive, small):
    peer, port = dcmtk_archive
    with DimsePacs(peer, Own("STRANGER", None, port)) as pacs:
        send_to_pacs(kit, pacs, small[:2])
        with pytest.raises(LinkError, match='not know where "STRANGER" is'):
            import_from_pacs(kit, "brain", pacs, Query(("MR",)))


def test_two_imports_at_once_are_one_and_a_line(kit, wardround, orthanc):
    with open_store(kit, "brain"):
        second = wardround("import", "--collection", "brain", "--pacs", orthanc.peer, "--modality", "CT")
    assert second.returncode == 3
    assert "another import from a PACS, or a receiver, is at work" in second.stderr
    assert second.stderr.count("\n") == 1


def test_the_command_tells_what_came_and_the_log_names_the_pacs_but_neither_patient_nor_secret(kit, wardround, orthanc):
    line = ("--dicomweb", orthanc.url, "--user", USER, "--modality", "CT", "--patient-id", "1CT1", "--collection", "ct")
    done = wardround("import", *line, "--allow-identified", environment={"WARDROUND_PACS_SECRET": PASSWORD})
    assert done.returncode == 0, done.stderr
    assert "1 objects found, 0 were here, 1 received" in done.stdout
    assert Catalog(kit / CATALOG_FILE).summary("ct").images == 1
    entries = {entry.kind: entry.body for entry in site_log(kit).entries()}
    assert entries["fetch"] == {
        "collection": "ct", "from": orthanc.url, "query": {"Modality": "CT"}, "series": 1, "objects": 1
    }  # fmt: skip
    assert (entries["import"]["from"], entries["import"]["received"]) == (orthanc.url, 1)
    assert not re.search(f"1CT1|{PASSWORD}", done.stdout + done.stderr + json.dumps(list(entries.values())))


@pytest.mark.parametrize(("arguments", "words"), [
    ([], "import takes one source"),
    ([".", "--pacs", "A@h:1"], "import takes one source"),
    (["--pacs", "A@h:1", "--dicomweb", "http://h"], "import takes one source"),
    (["--pacs", "A@h:1"], "say which studies"),
    (["--pacs", "nothing", "--modality", "CT"], "is not AE@HOST:PORT"),
    (["--pacs", "A@h:1", "--modality", "CT", "--dates", "2020-01-01"], "are no dates"),
    (["--pacs", "A@h:1", "--modality", "CT", "--user", "u"], "are for --dicomweb"),
    (["--pacs", "A@h:1", "--modality", "CT", "--ca", "x.pem", "--tls"], "there is no such file"),
    (["--dicomweb", "http://u:p@h/w", "--modality", "CT"], "a URL that holds a password"),
    (["--dicomweb", "http://h/w", "--modality", "CT", "--tls"], "are for --pacs"),
])  # fmt: skip
def test_options_that_do_not_go_together_are_one_line(kit, arguments, words):
    from typer.testing import CliRunner

    from client.cli import app
    from common.errors import UsageError

    done = CliRunner().invoke(app, ["import", "--collection", "c", "--kit", str(kit), *arguments])
    assert isinstance(done.exception, UsageError), done.output
    assert words in str(done.exception)
    assert [path.name for path in kit.iterdir()] == ["kit.toml"]
