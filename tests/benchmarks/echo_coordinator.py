"""The coordinator's side of the benchmarks: the real link and round loop, a recorder that keeps nothing.

Usage: echo_coordinator.py FOLDER MEGABYTES ROUNDS SITE [SITE ...]
Prints JSON: "rounds", the seconds of each round, and "peak", the process' largest resident size in bytes.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from loopback import make_job, make_model

from certs.roster import read_roster
from common.kit import read_kit
from common.update import Tensors
from server.link import open_link
from server.records import Kept, RoundRecord
from server.rounds import RoundLoop, Start


class Clock:
    """A recorder that only looks at the time."""

    def __init__(self) -> None:
        self.ends: list[float] = [time.monotonic()]
        self.last: Tensors = {}

    def progress(self, record: RoundRecord, waiting: tuple[str, ...]) -> None: ...

    def commit(self, record: RoundRecord, model: Tensors | None, best: Kept | None) -> None:
        if record.kind == "train":
            assert record.status == "aggregated", record
            self.ends.append(time.monotonic())
            self.last = model or {}

    def load(self, number: int) -> Tensors:
        return self.last


def main() -> None:
    folder, megabytes, rounds, names = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    kit = read_kit(folder / "kits" / "coordinator", "coordinator")
    with open_link(kit, folder / "link.sqlite") as link:
        link.reconcile(read_roster(kit.folder / "roster"))
        while not all(site.online for site in link.sites()):
            time.sleep(0.1)
        with link.open_run("benchmark", names) as run:
            clock = Clock()
            job = make_job(names, rounds)
            RoundLoop(job, "benchmark", run.grid, lambda: run.node_ids, clock, Start(make_model(megabytes))).run()
    seconds = [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)]
    print(json.dumps({"rounds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


if __name__ == "__main__":
    main()
