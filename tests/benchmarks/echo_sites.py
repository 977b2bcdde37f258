"""Site processes' stand-in for the benchmarks: resident nodes that train nothing. Usage: echo_sites.py KIT [KIT ...]"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from flwr.app import Message

from client.node import run_node
from common.kit import Kit, read_kit
from common.update import Answer, decode_request, encode_answer


def serve(kit: Kit, stop: threading.Event) -> None:
    step = sum(kit.name.encode()) * 1e-6  # each site's arrays are its own: equal ones would be stored once

    def answer(message: Message) -> Message:
        request = decode_request(message.content)
        tensors = {name: tensor + tensor.dtype.type(step) for name, tensor in request.model.items()}
        trained = tensors if request.kind == "train" else None
        given = Answer(kit.name, request.job.digest, request.number, "ok", examples=1000, tensors=trained)
        return Message(encode_answer(given), reply_to=message)

    run_node(kit, answer, stop=stop, on_state=lambda line: print(line, flush=True))


def main() -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threads = [threading.Thread(target=serve, args=(read_kit(Path(kit), "site"), stop)) for kit in sys.argv[1:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
