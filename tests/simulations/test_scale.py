"""Memory does not grow with the sites of a simulation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "simulation_scale.py"


def peak(sites: int) -> float:
    words = [sys.executable, str(BENCHMARK), "--one", "--sites", str(sites), "--rounds", "3"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])["peak"]


@pytest.mark.slow
def test_ten_thousand_sites_take_the_memory_of_a_hundred():
    assert peak(10_000) < 1.15 * peak(100)
