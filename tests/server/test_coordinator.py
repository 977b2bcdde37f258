"""The coordinator as a process: real TLS, real node processes, kill -9, and what it says when it can't start."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from playground import job_of, model_of

from certs.admission import admit, renew
from certs.enrol import accept, enrol
from certs.kits import create_kits
from common.federation import read_federation
from common.kit import read_kit
from server.modelfiles import read_checkpoint
from server.registry import Registry, open_registry

WARDROUND = [sys.executable, "-c", "from common.cli import main; main()"]
SITES = {"north": (2400, 1.0), "south": (700, -1.0), "west": (400, 3.0)}


def wait_until(what: Callable[[], object], seconds: float = 600.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


@dataclass
class Live:
    """A federation of processes on this machine's loopback."""

    kits: Path
    processes: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    @property
    def kit(self) -> Path:
        return self.kits / "coordinator"

    @property
    def hold(self) -> Path:
        """While there is such a file, sites leave rounds after the second unanswered."""
        return self.kits / "hold"

    @property
    def registry(self) -> Registry:
        return open_registry(read_kit(self.kit, "coordinator"))

    def spawn(self, name: str, *command: str) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
        with (self.kits / f"{name}.log").open("a") as log:
            self.processes[name] = subprocess.Popen(
                [*command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, text=True
            )

    def start_coordinator(self) -> None:
        self.spawn("coordinator", *WARDROUND, "coordinator", "start", str(self.kit), "--no-dashboard")

    def start_site(self, name: str, pause: float = 0.0) -> None:
        examples, target = SITES[name]
        script, kit = Path(__file__).parent / "honest_node.py", self.kits / "sites" / name
        words = str(kit), str(examples), str(target), str(pause), str(self.hold)
        self.spawn(name, sys.executable, str(script), *words)

    def log(self, name: str) -> str:
        return (self.kits / f"{name}.log").read_text()

    def end(self, name: str, number: int = signal.SIGTERM) -> int:
        process = self.processes.pop(name)
        process.send_signal(number)
        return process.wait(120)


def make_kits(folder: Path, port: int) -> Path:
    sites = "".join(f'[[sites]]\nname = "{name}"\n' for name in SITES)
    (folder / "federation.toml").write_text(
        f'name = "study"\n[coordinator]\naddress = "127.0.0.1:{port}"\naddresses = ["127.0.0.1"]\n{sites}'
    )
    kits = create_kits(read_federation(folder / "federation.toml"), folder / "kits")
    for name in SITES:
        kit = read_kit(kits / "sites" / name, "site")
        accept(kit, admit(kits, enrol(kit)))
    return kits


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    federation = Live(make_kits(tmp_path, free_port()))
    yield federation
    for name in list(federation.processes):
        with contextlib.suppress(Exception):
            federation.end(name, signal.SIGKILL)


def wardround(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*WARDROUND, *arguments], capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_a_run_over_tls_that_is_killed_goes_on_to_the_same_model_as_one_that_was_not(live):
    job = job_of(aggregation="rounds = 4")
    live.start_coordinator()
    for name in SITES:
        live.start_site(name)
    registry = live.registry
    whole = registry.submit(job, model_of())
    wait_until(lambda: registry.summary(whole).status == "completed")

    live.hold.touch()
    cut = registry.submit(job, model_of())
    wait_until(lambda: registry.summary(cut).done == 2)
    live.end("coordinator", signal.SIGKILL)
    assert registry.summary(cut).status == "running"
    live.hold.unlink()
    live.start_coordinator()
    wait_until(lambda: registry.summary(cut).status == "interrupted")
    assert registry.summary(cut).done == 2
    resumed = wardround("run", "--resume", cut, "--follow", "--kit", str(live.kit))
    assert resumed.returncode == 0, resumed.stderr
    detail = registry.run_detail(cut)
    assert [record.number for record in detail.rounds if record.kind == "train"] == [1, 2, 3, 4]
    for mine, other in zip(registry.run_detail(whole).models, detail.models, strict=True):
        left, right = (read_checkpoint(Path(model.path), model_of()) for model in (mine, other))
        assert all(left[name].tobytes() == right[name].tobytes() for name in left)


@pytest.mark.slow
def test_a_run_waits_for_a_site_that_comes_late_and_others_see_who_is_online(live):
    live.start_coordinator()
    live.start_site("north")
    live.start_site("south")
    registry = live.registry
    name = registry.submit(job_of(aggregation="rounds = 1"), model_of())
    wait_until(lambda: (registry.summary(name).progress or {}).get("waiting") == ["west"])
    seen = json.loads(wardround("sites", "--json", "--kit", str(live.kit)).stdout)
    assert seen["coordinator_running"]
    assert {site["name"]: site["online"] for site in seen["sites"]} == {"north": True, "south": True, "west": False}
    live.start_site("west")
    wait_until(lambda: registry.summary(name).status == "completed")


@pytest.mark.slow
def test_a_coordinator_that_is_asked_to_end_leaves_its_run_to_be_resumed(live):
    live.start_coordinator()
    registry = live.registry
    name = registry.submit(job_of(), model_of())
    wait_until(lambda: registry.summary(name).progress)
    assert live.end("coordinator") == 0
    assert registry.summary(name).status == "interrupted"
    assert registry.coordinator() is None
    listed = wardround("runs", "--kit", str(live.kit))
    assert "interrupted" in listed.stdout


@pytest.mark.slow
def test_a_site_process_that_dies_in_a_round_is_asked_again_when_it_is_back(live):
    live.start_coordinator()
    live.start_site("north")
    live.start_site("west")
    live.start_site("south", pause=600.0)
    registry = live.registry
    name = registry.submit(job_of(aggregation="rounds = 1"), model_of())
    wait_until(lambda: (registry.summary(name).progress or {}).get("waiting") == ["south"])
    time.sleep(1.0)
    live.end("south", signal.SIGKILL)
    live.start_site("south")
    wait_until(lambda: registry.summary(name).status == "completed")
    assert registry.run_detail(name).rounds[1].named("aggregated") == ("north", "south", "west")


def problem(result: subprocess.CompletedProcess[str], code: int) -> str:
    assert result.returncode == code, result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def test_a_port_in_use_is_told_in_one_line(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        kits = make_kits(tmp_path, taken.getsockname()[1])
        line = problem(wardround("coordinator", "start", str(kits / "coordinator")), 4)
    assert "the port is in use" in line


def test_a_server_certificate_that_has_ended_is_told_in_one_line(tmp_path):
    kits = make_kits(tmp_path, free_port())
    renew(kits, "coordinator", days_valid=1, now=datetime(2020, 1, 1, tzinfo=UTC))
    line = problem(wardround("coordinator", "start", str(kits / "coordinator")), 2)
    assert "ended" in line
    assert "renew" in line


def test_a_folder_without_a_kit_is_told_in_one_line(tmp_path):
    assert "no kit here" in problem(wardround("coordinator", "start", str(tmp_path)), 2)


def test_a_sites_kit_does_not_start_a_coordinator(tmp_path):
    kits = make_kits(tmp_path, free_port())
    line = problem(wardround("coordinator", "start", str(kits / "sites" / "north")), 2)
    assert "this is the kit of a site" in line


def test_a_damaged_registry_is_told_in_one_line(tmp_path):
    kits = make_kits(tmp_path, free_port())
    (kits / "coordinator" / "registry.sqlite").write_bytes(b"no database" * 1000)
    assert "the file is damaged" in problem(wardround("coordinator", "start", str(kits / "coordinator")), 3)


@pytest.mark.slow
def test_a_second_coordinator_on_the_same_kit_is_refused(live):
    live.start_coordinator()
    wait_until(lambda: live.registry.coordinator())
    assert "running already (process" in problem(wardround("coordinator", "start", str(live.kit)), 2)


@pytest.mark.slow
def test_ctrl_c_while_following_leaves_the_run_going(live):
    job = live.kits / "job.toml"
    job.write_text('name = "chest"\nsites = ["north"]\n[task]\nlabels = ["no", "yes"]\n[data]\ncollection = "c"\n')
    live.spawn("follower", *WARDROUND, "run", str(job), "--follow", "--kit", str(live.kit))
    wait_until(lambda: any(run.name in live.log("follower") for run in live.registry.list_runs()))
    assert live.end("follower", signal.SIGINT) == 130
    assert "The run goes on" in live.log("follower")
    assert [run.status for run in live.registry.list_runs()] == ["queued"]
