"""A real site process for tests of the coordinator: client.node over TLS, and a site that needs no images.

Usage: python honest_node.py KIT EXAMPLES TARGET SECONDS_A_ROUND HOLD

While there is a file HOLD, rounds after the second are not answered.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path

from flwr.app import Message

from client.node import run_node
from common.kit import read_kit
from common.update import decode_request, encode_answer

sys.path.insert(0, str(Path(__file__).parent))

from playground import HonestSite


def main() -> None:
    kit = read_kit(Path(sys.argv[1]), "site")
    site, pause = HonestSite(kit.name, int(sys.argv[2]), float(sys.argv[3])), float(sys.argv[4])
    hold = Path(sys.argv[5])

    def answer(message: Message) -> Message:
        request = decode_request(message.content)
        time.sleep(pause)
        while request.number > 2 and hold.exists():
            time.sleep(0.05)
        return Message(encode_answer(site(request)), reply_to=message)

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    run_node(kit, answer, stop=stop)


if __name__ == "__main__":
    main()
