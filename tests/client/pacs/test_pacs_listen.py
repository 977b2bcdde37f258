"""A receiver feeds a collection: DCMTK's tools send to a real process, which may be killed at any moment."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess

import pydicom
import pytest
from hospital_pacs import PROJECT, line_of, wait_for
from pydicom.data import get_testdata_file
from pynetdicom import AE, _config
from pynetdicom.dsutils import split_dataset

from client.catalog import CATALOG_FILE, Catalog
from client.pacs.listen import Listening
from client.record import site_log
from common.errors import UsageError

pytestmark = pytest.mark.usefixtures("dcmtk")
MR_IMAGES = "1.2.840.10008.5.1.4.1.1.4"


class Receiver:
    """`wardround site listen` as a process, for the collection "brain"."""

    def __init__(self, kit, *arguments):
        line = line_of("listen", "--kit", kit, "--collection", "brain", "--port", 0, "--allow-identified", *arguments)
        self.log = kit.parent / "receiver.log"
        with self.log.open("a") as log:
            self.process = subprocess.Popen(line, cwd=PROJECT, stdout=subprocess.PIPE, stderr=log, text=True)
        self.first = self.process.stdout.readline()
        self.port = self.first.rpartition(":")[2].split(";")[0]

    def end(self, number=signal.SIGINT):
        self.process.send_signal(number)
        last = self.process.communicate(timeout=120)[0]
        return last, self.log.read_text()


@pytest.fixture
def listen(kit):
    running = []

    def start(*arguments):
        running.append(Receiver(kit, *arguments))
        return running[-1]

    yield start
    for receiver in running:
        receiver.process.kill()
        receiver.process.communicate()


def storescu(port, *files, calling="SCANNER", called="WARDROUND"):
    line = ["storescu", "-aet", calling, "-aec", called, "localhost", port, *map(str, files)]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)


def images(kit):
    catalog = Catalog(kit / CATALOG_FILE)
    return catalog.summary("brain").images if catalog.collections() else 0


def test_what_is_sent_becomes_a_collection_and_the_end_is_a_summary(kit, listen, brain):
    receiver = listen("--from", "SCANNER")
    files = sorted((brain / "11_HCropVolume").iterdir())[:10]
    assert storescu(receiver.port, *files[:5]).returncode == 0
    wait_for(lambda: images(kit) == 5, "the collection has what was sent")
    assert storescu(receiver.port, *files).returncode == 0
    last, log = receiver.end()
    assert images(kit) == 10
    assert re.search("received 10 objects in 2 associations, 5 once more, refused 0; 2 imports", last), log
    assert receiver.process.returncode == 0
    kinds = [entry.kind for entry in site_log(kit).entries()]
    assert kinds == ["opened", "listen", "import", "import", "listen"]
    assert not re.search("PGBM|Traceback", log)


def test_only_who_is_named_may_send_and_only_by_the_receivers_own_name(listen, small):
    receiver = listen("--from", "SCANNER")
    assert (
        subprocess.run(["echoscu", "-aet", "SCANNER", "-aec", "WARDROUND", "localhost", receiver.port]).returncode == 0
    )
    assert storescu(receiver.port, small[-1], calling="STRANGER").returncode != 0
    assert storescu(receiver.port, small[-1], called="OTHER").returncode != 0
    last, log = receiver.end()
    assert "received 0 objects" in last
    assert "refused an association of STRANGER" in log


def test_a_receiver_that_is_killed_loses_nothing_that_it_confirmed_and_indexes_nothing_half_received(
    kit, listen, brain
):
    receiver = listen()
    files = sorted((brain / "11_HCropVolume").iterdir())[:4]
    assert storescu(receiver.port, *files).returncode == 0
    receiver.end(signal.SIGKILL)
    (kit / "received" / "brain" / "incoming" / ".half.dcm").write_bytes(files[0].read_bytes()[:5000])
    receiver = listen()
    wait_for(lambda: images(kit) == 4, "the next receiver imports what the killed one had kept")
    _, log = receiver.end()
    assert Catalog(kit / CATALOG_FILE).summary("brain").refused == 0, log


def test_a_second_receiver_or_import_for_the_collection_is_refused(kit, listen, wardround):
    listen()
    second = wardround("listen", "--collection", "brain", "--port", 0)
    assert (second.returncode, second.stderr.count("\n")) == (3, 1)
    assert "is at work on the collection" in second.stderr


def send_raw(port, path):
    """Send a file's bytes as they are, whatever they are; return the status of the answer."""
    entity = AE("SCANNER")
    entity.add_requested_context(MR_IMAGES, "1.2.840.10008.1.2.1")
    association = entity.associate("localhost", int(port), ae_title="WARDROUND")
    try:
        return association.send_c_store(path).Status
    finally:
        association.release()


def broken(fault, path):
    """Write a real image with a fault to `path`, as a file whose header is whole."""
    image = pydicom.dcmread(get_testdata_file("MR_small.dcm"))
    if fault == "no study":
        del image.StudyInstanceUID
    if fault == "another object":
        image.SOPInstanceUID = "1.2.3"
    image.save_as(path)
    content = path.read_bytes()
    start = split_dataset(path)[1]
    path.write_bytes({"garbage": content[:start] + os.urandom(3000), "cut": content[:-3000]}.get(fault, content))
    return path


def test_broken_objects_are_refused_and_the_receiver_goes_on(kit, listen, tmp_path, monkeypatch):
    monkeypatch.setattr(_config, "STORE_SEND_CHUNKED_DATASET", True)
    receiver = listen()
    for fault in ("garbage", "no study", "another object"):
        assert send_raw(receiver.port, broken(fault, tmp_path / "broken.dcm")) == 0xC000
    assert (
        send_raw(receiver.port, broken("cut", tmp_path / "broken.dcm")) == 0x0000
    )  # its pixels are the import's matter
    assert subprocess.run(["echoscu", "-aec", "WARDROUND", "localhost", receiver.port]).returncode == 0
    last, log = receiver.end()
    assert "received 1 objects in 5 associations, 0 once more, refused 3" in last, log
    (report,) = (json.loads(path.read_text()) for path in (kit / "reports").glob("*.json"))
    assert list(report["reasons"]) == ["the pixels can't be decoded"]


def test_a_receiver_for_other_machines_must_say_who_may_send():
    with pytest.raises(UsageError, match="must say who may send"):
        Listening("WARDROUND", "0.0.0.0", 104)
    assert Listening("WARDROUND", "0.0.0.0", 104, ("SCANNER",)).calling == ("SCANNER",)
