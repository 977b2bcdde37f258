"""Ten kinds of bad input: one clear line with what, where and what to do; the right exit code; nothing half-written."""

import hashlib
import os
import resource
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from certs.admission import admit
from certs.enrol import accept, enrol
from certs.kits import create_kits
from client.policy import DEFAULT_POLICY
from common.federation import parse_federation
from common.kit import read_kit

WARDROUND = Path(sys.executable).parent / "wardround"
JOB = """
name = "j"
sites = ["north"]
[task]
labels = ["dark", "bright"]
[data]
collection = "squares"
size = [16, 16]
"""


def wardround(*arguments, **settings):
    command = [str(WARDROUND), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, **settings)


def state_of(folder):
    """Every file below `folder` with the digest of its bytes; SQLite's side files and locks come and go."""
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("-wal", "-shm", ".lock"))
    }


def assert_one_line(done, code, *words):
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert "Traceback" not in line
    for word in words:
        assert word in line


def federation(folder, port, **settings):
    text = f'name = "f"\n[coordinator]\naddress = "127.0.0.1:{port}"\n[[sites]]\nname = "north"\n'
    kits = create_kits(parse_federation(text, "federation.toml"), folder, **settings)
    kit = read_kit(kits / "sites" / "north", "site")
    accept(kit, admit(kits, enrol(kit)))
    allowed = DEFAULT_POLICY.replace("collections = []", 'collections = ["*"]')
    (kit.folder / "policy.toml").write_text(allowed.replace("require_privacy = true", "require_privacy = false"))
    return kits


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def kits(tmp_path, port):
    return federation(tmp_path / "kits", port)


@pytest.fixture
def north(kits):
    return kits / "sites" / "north"


@pytest.fixture
def images(tmp_path):
    """40 small images and their label file."""
    folder, random, rows = tmp_path / "images", np.random.default_rng(0), ["file,label"]
    folder.mkdir()
    for number in range(40):
        pixels = random.integers(0, 120, (16, 16), dtype=np.uint8) + np.uint8(100 * (number % 2))
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{('dark', 'bright')[number % 2]}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    return folder


def take_in(north, images, labels="labels.csv"):
    return wardround(
        "site", "import", images, "--collection", "squares", "--labels", images.parent / labels, "--kit", north
    )


def test_1_a_wrong_job(kits, tmp_path):
    job, before = tmp_path / "job.toml", state_of(kits)
    job.write_text(JOB + "[training]\nbatchsize = 3\n")
    assert_one_line(wardround("run", job, "--kit", kits / "coordinator"), 2, "job.toml:10", "batch_size")
    assert state_of(kits) == before


def test_2_an_unreadable_folder(north, tmp_path):
    before = state_of(north)
    done = wardround("site", "import", tmp_path / "nowhere", "--collection", "squares", "--kit", north)
    assert_one_line(done, 3, "nowhere")
    assert state_of(north) == before


def test_3_labels_that_match_nothing(north, images):
    before = state_of(north)
    (images.parent / "other.csv").write_text("file,label\nx.png,dark\ny.png,bright\n")
    assert_one_line(take_in(north, images, "other.csv"), 3, "other.csv")
    assert not {path for path in state_of(north).keys() - before.keys() if path.name == "catalog.sqlite"}


def test_4_one_class_only(north, images, tmp_path):
    labels = images.parent / "labels.csv"
    labels.write_text(labels.read_text().replace("bright", "dark"))
    assert take_in(north, images).returncode == 0
    (tmp_path / "job.toml").write_text(JOB)
    done = wardround("site", "baseline", tmp_path / "job.toml", "--kit", north, "--device", "cpu")
    assert_one_line(done, 5, "one class only")


def test_5_an_expired_certificate(tmp_path, port):
    kits = federation(tmp_path / "old", port)
    from certs.admission import renew

    renew(kits, "coordinator", now=datetime.now(UTC) - timedelta(days=500), days_valid=30)
    before = state_of(kits)
    assert_one_line(wardround("coordinator", "start", kits / "coordinator"), 2, "ended", "renew")
    assert state_of(kits) == before


def test_6_a_port_in_use(kits, port):
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        done = wardround("coordinator", "start", kits / "coordinator")
    assert_one_line(done, 4, str(port), "in use")


def _small_disk():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def test_7_a_full_disk(north, images):
    done = wardround(
        "site", "import", images, "--collection", "squares", "--labels", images.parent / "labels.csv", "--kit", north,
        preexec_fn=_small_disk,
    )  # fmt: skip
    assert_one_line(done, 3, "disk")
    assert "Nothing is indexed yet" in wardround("site", "show", "--kit", north).stdout
    assert take_in(north, images).returncode == 0


def test_8_a_corrupt_catalog(north, images):
    assert take_in(north, images).returncode == 0
    catalog = north / "catalog.sqlite"
    catalog.write_bytes(b"garbage" + catalog.read_bytes()[7:])
    before = state_of(north)
    assert_one_line(wardround("site", "show", "--kit", north), 3, "catalog.sqlite")
    assert state_of(north) == before


def test_9_a_site_with_too_few_patients(north, images, tmp_path):
    from client.site import Site
    from common.job import parse_job
    from common.networks import initial_model
    from common.update import Request

    policy = north / "policy.toml"
    policy.write_text(policy.read_text().replace("min_patients = 20", "min_patients = 2000"))
    assert take_in(north, images).returncode == 0
    job = parse_job(JOB + '[privacy]\nmechanism = "dp-sgd"\n')
    given = Site.open(north, "cpu").answer(Request("train", "r", 1, job, initial_model(job)))
    assert given.status == "refused"
    assert "smallest cohort, 2000" in given.reason
    assert given.tensors is None


def test_10_a_kit_for_another_federation(kits, tmp_path, port):
    other = federation(tmp_path / "other", port)
    before = state_of(kits)
    request = other / "sites" / "north" / "north.request.pem"
    assert_one_line(wardround("kits", "admit", request, "--kits", kits), 2, "another federation")
    certificate = other / "sites" / "north" / "north.crt"
    done = wardround("site", "enrol", kits / "sites" / "north", "--certificate", certificate)
    assert_one_line(done, 2, "north.crt")
    assert_one_line(wardround("site", "check", "--kit", kits / "coordinator"), 2, "coordinator")
    assert state_of(kits) == before


def test_and_a_folder_without_a_kit(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "WARDROUND_KIT"}
    assert_one_line(wardround("site", "show", cwd=tmp_path, env=environment), 2, "kit.toml", "WARDROUND_KIT")
