"""A coordinator process for tests of the link: asks a site once a second, until it is killed.

Usage: python linked_coordinator.py KIT DATABASE SITE
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict

from certs.roster import read_roster
from common.kit import read_kit
from server.link import open_link


def main() -> None:
    kit, database, name = read_kit(Path(sys.argv[1]), "coordinator"), Path(sys.argv[2]), sys.argv[3]
    with open_link(kit, database) as link:
        link.reconcile(read_roster(kit.folder / "roster"))
        print("node", link.node_ids()[name], flush=True)
        with link.open_run("run", [name]) as run:
            while True:
                content = RecordDict({"model": ArrayRecord({"0": Array(np.zeros(3))})})
                ids = run.grid.push_messages([Message(content, link.node_ids()[name], "train", ttl=3600.0)])
                end = time.monotonic() + 1
                for message_id in filter(None, ids):
                    while not (replies := list(run.grid.pull_messages([message_id]))):
                        time.sleep(0.02)
                    print("answer", replies[0].has_error(), flush=True)
                time.sleep(max(0.0, end - time.monotonic()))


if __name__ == "__main__":
    main()
