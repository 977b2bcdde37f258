from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from common.errors import RunError
from simulations.processes import Crew, wardround_command

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def wait_until(true: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def printed_pid(log: Path) -> int:
    wait_until(lambda: log.exists() and log.read_text().strip() != "")
    return int(log.read_text().split()[0])


def test_no_process_outlives_its_crew(tmp_path: Path):
    with Crew(tmp_path, {}) as crew:
        members = [crew.start(f"sleeper {number}", SLEEP) for number in range(2)]
        assert all(alive(member.process.pid) for member in members)
    assert not any(alive(member.process.pid) for member in members)


def test_a_grandchild_that_ignores_its_end_is_ended_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("simulations.processes.GRACE_SECONDS", 0.3)
    deaf = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    spawn = f"p = subprocess.Popen([sys.executable, '-c', {deaf!r}])"
    parent = f"import subprocess,sys; {spawn}; print(p.pid, flush=True); p.wait()"
    with Crew(tmp_path, {}) as crew:
        crew.start("parent", [sys.executable, "-c", parent])
        grandchild = printed_pid(tmp_path / "parent.log")
    wait_until(lambda: not alive(grandchild))


def test_a_crew_ends_even_when_its_owner_is_killed(tmp_path: Path):
    owner = (
        "import time; from pathlib import Path; from simulations.processes import Crew\n"
        f"crew = Crew(Path({str(tmp_path)!r}), {{}})\n"
        f"print(crew.start('sleeper', {SLEEP!r}).process.pid, flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", owner], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    sleeper = int(process.stdout.readline())
    time.sleep(0.5)  # the sleeper ties itself to its owner first
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not alive(sleeper))


def test_commands_run_at_once_and_their_outputs_come_back(tmp_path: Path):
    commands = {name: [sys.executable, "-c", f"print({name!r})"] for name in ("a", "b", "c")}
    ended: list[str] = []
    with Crew(tmp_path, {}) as crew:
        outputs = crew.run_all(commands, at_once=2, on_end=lambda name, output: ended.append(name))
    assert outputs == {"a": "a\n", "b": "b\n", "c": "c\n"}
    assert sorted(ended) == ["a", "b", "c"]


def test_a_failed_command_is_one_line_with_the_end_of_its_log(tmp_path: Path):
    fail = [sys.executable, "-c", "import sys; print('first', file=sys.stderr); sys.exit('the disk is full')"]
    message = r"^import failed \(exit code 1\): first \| the disk"
    with Crew(tmp_path, {}) as crew, pytest.raises(RunError, match=message):
        crew.run_all({"import": fail}, at_once=1)


def test_a_resident_that_stops_is_reported_while_others_work(tmp_path: Path):
    with Crew(tmp_path, {}) as crew:
        crew.start("site north", [sys.executable, "-c", "import sys; sys.exit('port in use')"])
        with pytest.raises(RunError, match=r"site north stopped.*port in use"):
            crew.run_all({"work": SLEEP}, at_once=1)


def test_the_wardround_command_runs():
    done = subprocess.run([*wardround_command(), "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("wardround ")
