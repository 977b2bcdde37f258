"""Seconds a round and peak memory of simulations with 100 to 10,000 sites, 100 a round, each in its own process.

Run by hand: python tests/benchmarks/simulation_scale.py [--sites 100 1000 10000] [--rounds 20] [--strategy fedavg]
Hospitals are made when they are asked and forgotten after: 64 cases of 13 features, logistic regression.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping

import numpy as np


class Hospitals(Mapping):
    """Made anew whenever they are asked for."""

    def __init__(self, count):
        self.count = count

    def __getitem__(self, name):
        from client.dataset import CaseSet
        from simulations.members import Hospital

        random = np.random.default_rng(int(name[1:]))
        truth = random.integers(0, 2, 64)
        truth[:2] = 0, 1
        features = random.normal(truth[:, None], 2.0, (64, 13)).astype(np.float32)
        return Hospital(name, {"train": CaseSet(features, tuple(("no", "yes")[one] for one in truth), np.arange(64))})

    def __iter__(self):
        return (f"s{number}" for number in range(self.count))

    def __len__(self):
        return self.count


def run(sites, rounds, strategy):
    from common.job import parse_job
    from simulations.engine import simulate

    names = ", ".join(f'"s{number}"' for number in range(sites))
    features = ", ".join(f'"f{number}"' for number in range(13))
    job = parse_job(
        f'name = "scale"\nsites = [{names}]\n[task]\nlabels = ["no", "yes"]\n[data]\ncollection = "c"\n'
        f'features = [{features}]\n[network]\nname = "linear"\n[training]\nbatch_size = 16\nmomentum = 0\n'
        f'[aggregation]\nstrategy = "{strategy}"\nrounds = {rounds}\nsites_per_round = 100\nevaluate_every = 1000000\n'
    )
    marks = []
    simulate(job, Hospitals(sites), evaluate=False, watch=lambda *_: marks.append(time.perf_counter()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": (marks[-1] - marks[0]) / (rounds - 1), "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--strategy", default="fedavg")
    parser.add_argument("--one", action="store_true")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run(options.sites[0], options.rounds, options.strategy)))
        return
    print(
        f"load {os.getloadavg()[0]:.1f}, {options.strategy}\n"
        "| sites | s a round of 100 | peak memory MB |\n|---|---|---|"
    )
    for sites in options.sites:
        words = ["--one", "--sites", str(sites), "--rounds", str(options.rounds), "--strategy", options.strategy]
        command = [sys.executable, __file__, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=3600)
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"| {sites:,} | {found['seconds']:.2f} | {found['peak'] / 1e6:.0f} |", flush=True)


if __name__ == "__main__":
    main()
