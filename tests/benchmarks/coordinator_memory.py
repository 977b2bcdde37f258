"""Peak memory of the coordinator's process when 4 and when 32 sites send an update of 50 MB each in one round.

Run by hand: python tests/benchmarks/coordinator_memory.py [--megabytes 50] [--sites 4 32]
The sites are nodes in two processes; each answers at once, so that all updates arrive together. Goal: within 1.3.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from loopback import ENVIRONMENT, HERE, make_kits, python


def measure(folder: Path, megabytes: float, sites: int, rounds: int) -> dict:
    names = [f"site{number:02}" for number in range(sites)]
    kits = make_kits(folder, names)
    with contextlib.ExitStack() as stack:
        for half in (names[::2], names[1::2]):
            folders = [kits[name].folder for name in half]
            stack.enter_context(python("echo_sites.py", *folders, log=folder / "sites.log"))
        words = [str(word) for word in (folder, megabytes, rounds, *names)]
        command = [sys.executable, str(HERE / "echo_coordinator.py"), *words]
        ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=1800)
    if ended.returncode:
        raise SystemExit(ended.stderr[-3000:])
    return json.loads(ended.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=50.0)
    parser.add_argument("--sites", type=int, nargs="+", default=[4, 32])
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    print(f"{'sites':>6} {'update MB':>10} {'peak MB':>8} {'s a round':>10}")
    peaks = []
    for sites in options.sites:
        with tempfile.TemporaryDirectory() as folder:
            result = measure(Path(folder), options.megabytes, sites, options.rounds)
        peaks.append(result["peak"])
        print(f"{sites:>6} {options.megabytes:>10.0f} {peaks[-1] / 1e6:>8.0f} {max(result['rounds']):>10.1f}")
    print(f"ratio {peaks[-1] / peaks[0]:.2f} (goal: at most 1.3)")


if __name__ == "__main__":
    main()
