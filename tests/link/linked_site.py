"""A site process without images, for tests of the link: answers each message with its arrays, changed.

Usage: python linked_site.py KIT BEHAVIOUR
    add:NUMBER     the arrays with NUMBER added
    slow:SECONDS   the same with 1 added, after some time
    until:FILE     the same with 1 added, as soon as there is such a file
    fail           an exception whose text must not leave
    short:SECONDS  as slow, with Flower's shortest heartbeat (10 s, so that a node is given up after 20 s)
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.client.grpc_rere_client import connection
from flwr.supercore import heartbeat

from client.node import run_node
from common.kit import read_kit


def main() -> None:
    kit, (kind, _, value) = read_kit(Path(sys.argv[1]), "site"), sys.argv[2].partition(":")
    if kind == "short":
        connection.HEARTBEAT_DEFAULT_INTERVAL = heartbeat.HEARTBEAT_DEFAULT_INTERVAL = 10

    def answer(message: Message) -> Message:
        print("asked", message.metadata.group_id, flush=True)
        if kind == "fail":
            raise ValueError("the patient's name")
        if kind in ("slow", "short"):
            time.sleep(float(value))
        while kind == "until" and not Path(value).exists():
            time.sleep(0.02)
        step = float(value) if kind == "add" else 1.0
        model = message.content.array_records["model"]
        changed = {name: np.asarray(array.numpy() + step, array.dtype) for name, array in model.items()}
        update = ArrayRecord({name: Array(array) for name, array in changed.items()})
        return Message(RecordDict({"update": update}), reply_to=message)

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    run_node(kit, answer, stop=stop, on_state=lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
