"""The same apps under Flower's own SuperLink and SuperNodes: TLS, node keys, a job to its end."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from PIL import Image
from safetensors.numpy import load_file

from certs.admission import admit
from certs.enrol import accept, enrol
from certs.kits import create_kits
from certs.pem import read_private_key
from client.intake.importer import import_folder
from client.policy import DEFAULT_POLICY
from client.releases import read as read_releases
from common.federation import parse_federation
from common.kit import read_kit

pytestmark = pytest.mark.slow
PROJECT = Path(__file__).resolve().parent.parent
COMMANDS = Path(sys.executable).parent
SITES = ("north", "south")
JOB = """
name = "stock"
sites = ["north", "south"]
[task]
labels = ["dark", "bright"]
[data]
collection = "squares"
size = [16, 16]
[aggregation]
rounds = 1
[privacy]
mechanism = "dp-sgd"
"""


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture
def kits(tmp_path):
    """Two admitted sites with 60 images each, and the ports: fleet, SuperLink's HTTP, and one for each SuperNode."""
    ports = free_ports(4)
    sites = "".join(f'[[sites]]\nname = "{name}"\n' for name in SITES)
    text = f'name = "stock"\n[coordinator]\naddress = "127.0.0.1:{ports[0]}"\n{sites}'
    folder = create_kits(parse_federation(text, "federation.toml"), tmp_path / "kits")
    random = np.random.default_rng(0)
    for name in SITES:
        kit = read_kit(folder / "sites" / name, "site")
        accept(kit, admit(folder, enrol(kit)))
        public = read_private_key(kit.key).public_key()
        openssh = public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        (kit.folder / "site.pub").write_bytes(openssh)
        allow = DEFAULT_POLICY.replace("collections = []", 'collections = ["*"]')
        (kit.folder / "policy.toml").write_text(allow.replace("min_patients = 20", "min_patients = 5"))
        images = tmp_path / f"images-{name}"
        images.mkdir()
        rows = ["file,label"]
        for number in range(60):
            pixels = random.integers(0, 120, (16, 16), dtype=np.uint8)
            pixels[4:12, 4:12] += 100 * (number % 2)
            Image.fromarray(pixels).save(images / f"{number}.png")
            rows.append(f"{number}.png,{('dark', 'bright')[number % 2]}")
        (tmp_path / f"{name}.csv").write_text("\n".join(rows))
        import_folder(kit.folder, "squares", images, tmp_path / f"{name}.csv")
    return folder, ports


def wait_for(condition, log, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time:\n" + "\n".join(
            f"--- {path.name}\n{path.read_text()[-3000:]}" for path in log.glob("*.log")
        )
        time.sleep(0.5)


@contextlib.contextmanager
def running(log, environment, **commands):
    """Run commands, each in a process group of its own, and leave none of them or of their children behind."""
    processes = []
    try:
        for name, command in commands.items():
            with (log / f"{name}.log").open("wb") as file:
                processes.append(
                    subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
                )
        yield
    finally:
        for process in reversed(processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)


def flwr(environment, *arguments):
    done = subprocess.run([COMMANDS / "flwr", *arguments], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_private_job_runs_to_its_end_on_stock_superlink_and_supernodes(kits, tmp_path):
    folder, (fleet, http, *node_ports) = kits
    home, output = tmp_path / "flwr", tmp_path / "output"
    home.mkdir()
    coordinator = folder / "coordinator"
    ca = str(coordinator / "ca.crt")
    connection = (
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{http}"\nroot-certificates = "{ca}"\n'
    )
    (home / "config.toml").write_text(connection)
    environment = os.environ | {
        "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1",
        "PATH": f"{COMMANDS}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    superlink = [
        COMMANDS / "flower-superlink", "--fleet-api-address", f"127.0.0.1:{fleet}", "--host", "127.0.0.1",
        "--port", str(http), "--database", str(tmp_path / "state.sqlite"), "--enable-supernode-auth",
        "--disable-runtime-dependency-installation", "--ssl-ca-certfile", ca,
        "--ssl-certfile", str(coordinator / "server.crt"), "--ssl-keyfile", str(coordinator / "server.key"),
    ]  # fmt: skip
    supernodes = {
        name: [
            COMMANDS / "flower-supernode", "--superlink", f"127.0.0.1:{fleet}", "--root-certificates", ca,
            "--auth-supernode-private-key", str(folder / "sites" / name / "site.key"),
            "--host", "127.0.0.1", "--port", str(port), "--node-config", f'kit="{folder / "sites" / name}"',
        ]
        for name, port in zip(SITES, node_ports, strict=True)
    }  # fmt: skip
    (tmp_path / "job.toml").write_text(JOB)
    with running(tmp_path, environment, superlink=superlink):
        wait_for(lambda: _listens(http) and _listens(fleet), tmp_path)
        for name in SITES:
            flwr(environment, "supernode", "register", str(folder / "sites" / name / "site.pub"), "here")
        with running(tmp_path, environment, **supernodes):
            config = f'job="{tmp_path / "job.toml"}" output="{output}"'
            started = json.loads(
                flwr(environment, "run", str(PROJECT), "here", "--run-config", config, "--format", "json")
            )
            assert started["success"]
            wait_for(lambda: _status(environment) == "finished:completed", tmp_path, seconds=900)
    models = list(output.rglob("*.safetensors"))
    assert models
    assert all(np.isfinite(tensor).all() for path in models for tensor in load_file(path).values())
    for name in SITES:
        releases = read_releases(folder / "sites" / name)
        assert {release.status for release in releases} == {"ok"}
        assert max(release.epsilon or 0 for release in releases) <= 8.0


def test_a_job_runs_to_its_end_in_flowers_own_simulation(kits, tmp_path):
    folder, (control, http, *_) = kits
    home, output = tmp_path / "flwr", tmp_path / "output"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink.local-simulation]\naddress = "127.0.0.1:{http}"\ninsecure = true\noptions.num-supernodes = 2\n'
    )
    environment = os.environ | {
        "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1",
        "PATH": f"{COMMANDS}{os.pathsep}{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0",
        "WARDROUND_SIMULATED_KITS": str(folder / "sites"),
    }  # fmt: skip
    # What `flwr run` itself would start, in a process group that the test can end.
    superlink = [
        COMMANDS / "flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess", "--host", "127.0.0.1",
        "--port", str(http), "--control-api-address", f"127.0.0.1:{control}",
        "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    (tmp_path / "job.toml").write_text(JOB)
    with running(tmp_path, environment, superlink=superlink):
        wait_for(lambda: _listens(http), tmp_path)
        config = f'job="{tmp_path / "job.toml"}" output="{output}"'
        flwr(environment, "run", str(PROJECT), "local-simulation", "--run-config", config, "--format", "json")
        wait_for(lambda: _status(environment, "local-simulation").startswith("finished"), tmp_path, seconds=900)
        assert _status(environment, "local-simulation") == "finished:completed", (
            tmp_path / "superlink.log"
        ).read_text()
    assert list(output.rglob("*.safetensors"))
    for name in SITES:
        assert {release.status for release in read_releases(folder / "sites" / name)} == {"ok"}


def _listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _status(environment, where="here"):
    return json.loads(flwr(environment, "list", where, "--format", "json"))["runs"][0]["status"]


def test_flowers_bundle_holds_the_code_and_nothing_else(tmp_path):
    from flwr.cli.build import build_fab_from_disk

    bundle = tmp_path / "bundle.zip"
    bundle.write_bytes(build_fab_from_disk(PROJECT))
    with zipfile.ZipFile(bundle) as archive:
        names = archive.namelist()
    folders = {name.split("/")[0] for name in names if "/" in name}
    assert {"client", "server", "common", "certs"} <= folders
    assert all(name.endswith(".py") for name in names if name.split("/")[0] in ("client", "server", "common", "certs"))
    assert not {"tests", "simulations", "shared"} & folders
    assert {"client/site.py", "client/privacy/clipping.py", "server/rounds.py", "common/job.py"} <= set(names)
