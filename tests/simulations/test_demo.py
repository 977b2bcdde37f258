from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from simulations.hospitals import HOSPITALS, write_hospital
from simulations.processes import wardround_command

RATES = {"auc", "accuracy", "sensitivity", "specificity"}
SMALL = ["demo", "--no-dashboard", "--sites", "2", "--rounds", "2", "--patients", "0.1"]


def processes_of(folder: Path) -> list[psutil.Process]:
    """Every process that names the demo's folder: coordinator, sites, imports."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in part for part in process.info["cmdline"] or []):
            found.append(process)
    return found


def start(arguments: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*wardround_command(), *SMALL, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | environment,
    )  # fmt: skip


@pytest.mark.slow
def test_the_demo_trains_across_processes_and_compares_and_leaves_none_behind(tmp_path: Path):
    folder = tmp_path / "demo"
    process = start(["--keep", str(folder), "--json"], WARDROUND_REGISTRY="sqlite:////nowhere/else.sqlite")
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    assert processes_of(folder) == []
    result = json.loads(out)
    assert result["status"] == "completed"
    assert set(result["sites"]) == {"northfield", "eastbrook"}
    for site in result["sites"].values():
        assert 0 < site["epsilon"] <= 8
        # So few test patients may be of one class only (no AUC), or fewer than a site tells metrics of (none at all).
        common, own = site["common"], site["own"]
        assert set(common) <= set(own)
        assert all(0 <= numbers[name] <= 1 for numbers in (common, own) for name in RATES & set(numbers))
    assert any("accuracy" in site["common"] for site in result["sites"].values())
    assert Path(result["model"]).read_bytes()
    assert "round 2/2" in err
    assert f"wardround runs show {result['run']}" in err
    shown = subprocess.run(
        [*wardround_command(), "runs", "show", result["run"], "--kit", str(folder / "kits" / "coordinator"), "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(shown.stdout)["status"] == "completed"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_every_process_and_leaves_no_folder(tmp_path: Path, number: signal.Signals):
    process = start([], TMPDIR=str(tmp_path))
    end = time.monotonic() + 400
    while not any("site start" in " ".join(found.info["cmdline"]) for found in processes_of(tmp_path)):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Stopped. No process is left running." in err
    assert "Traceback" not in err
    end = time.monotonic() + 60  # one that was being started as the signal came is ended by its parent's end
    while processes_of(tmp_path) and time.monotonic() < end:
        time.sleep(0.1)
    assert processes_of(tmp_path) == []
    assert list(tmp_path.glob("wardround-demo-*")) == []


@pytest.mark.slow
def test_ones_own_images_can_be_trained_on(tmp_path: Path):
    write_hospital(replace(HOSPITALS[0], patients=100), tmp_path / "own", seed=1)
    process = start(["--keep", str(tmp_path / "demo"), "--data", str(tmp_path / "own"), "--no-privacy", "--json"])
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    result = json.loads(out)
    assert [site["patients"] for site in result["sites"].values()] == [50, 50]
    assert all(site["epsilon"] is None for site in result["sites"].values())


@pytest.mark.slow
def test_a_process_that_dies_is_one_clear_line(tmp_path: Path):
    process = start(["--keep", str(tmp_path / "demo")])
    end = time.monotonic() + 400
    while not (victims := [found for found in processes_of(tmp_path) if "start" in found.info["cmdline"]]):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)
    victims[0].kill()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 7
    assert "coordinator stopped (exit code -9)" in err.splitlines()[-1]
    assert processes_of(tmp_path) == []


def test_a_folder_in_use_is_refused_before_anything_starts(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("x")
    process = start(["--keep", str(tmp_path)])
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert err.strip().endswith("is not empty: name a new folder")


def test_the_demos_help_loads_no_torch():
    code = (
        "import sys; sys.argv = ['wardround', 'demo', '--help']\n"
        "from common.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules, 'flwr' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Ctrl-C ends them all" in done.stdout
    assert done.stdout.splitlines()[-1] == "False False"
