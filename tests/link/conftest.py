"""A federation on this machine's loopback: real kits, real TLS, sites as processes of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict

from certs.admission import admit, revoke
from certs.enrol import accept, enrol
from certs.kits import create_kits
from certs.roster import read_roster
from common.federation import parse_federation
from common.kit import Kit, read_kit
from server.link import Link, RunLink, open_link

HERE = Path(__file__).parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), "FLWR_TELEMETRY_ENABLED": "0"}


def wait_until(what: Callable[[], object], seconds: float = 180.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Process:
    """A process whose lines can be waited for."""

    popen: subprocess.Popen[bytes]
    log: Path

    def said(self) -> str:
        return self.log.read_text()

    def says(self, text: str, seconds: float = 180.0) -> None:
        end = time.monotonic() + seconds
        while text not in self.said():
            assert time.monotonic() < end, f'"{text}" was not said, but:\n{self.said()}'
            time.sleep(0.05)

    def kill(self) -> None:
        self.popen.send_signal(signal.SIGKILL)
        self.popen.wait()

    def end(self) -> None:
        self.popen.terminate()
        try:
            self.popen.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()


@dataclass
class Federation:
    """Kits on disk, and the processes that were started with them."""

    folder: Path
    address: str
    processes: list[Process] = field(default_factory=list)

    @property
    def kits(self) -> Path:
        return self.folder / "kits"

    @property
    def coordinator(self) -> Kit:
        return read_kit(self.kits / "coordinator", "coordinator")

    @property
    def roster(self) -> dict:
        return read_roster(self.kits / "coordinator" / "roster")

    @property
    def database(self) -> Path:
        return self.folder / "link.sqlite"

    def site(self, name: str) -> Kit:
        return read_kit(self.kits / "sites" / name, "site")

    def admit(self, name: str) -> None:
        accept(self.site(name), admit(self.kits, enrol(self.site(name))))

    def revoke(self, name: str) -> None:
        revoke(self.kits, name)

    def start(self, script: str, *words: object) -> Process:
        log = self.folder / f"{len(self.processes)}-{Path(script).stem}.log"
        with log.open("wb") as file:
            command = [sys.executable, str(HERE / script), *map(str, words)]
            popen = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=ENVIRONMENT)
        self.processes.append(Process(popen, log))
        return self.processes[-1]

    def start_site(self, name: str, behaviour: str = "add:1") -> Process:
        return self.start("linked_site.py", self.site(name).folder, behaviour)

    @contextlib.contextmanager
    def link(self) -> Iterator[Link]:
        with open_link(self.coordinator, self.database) as link:
            link.reconcile(self.roster)
            yield link


def make_federation(folder: Path, sites: Iterable[str] = ("north", "south"), address: str = "") -> Federation:
    address = address or f"127.0.0.1:{free_port()}"
    text = f'name = "test"\n[coordinator]\naddress = "{address}"\n' + "".join(
        f'[[sites]]\nname = "{name}"\n' for name in sites
    )
    folder.mkdir(exist_ok=True)
    create_kits(parse_federation(text), folder / "kits")
    return Federation(folder, address)


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    """Two sites, both admitted."""
    made = make_federation(tmp_path / "federation")
    for name in ("north", "south"):
        made.admit(name)
    yield made
    for process in made.processes:
        process.kill()


@pytest.fixture
def other_federation(tmp_path: Path) -> Iterator[Callable[..., Federation]]:
    """A function that makes further federations: at the same address, or at one that the certificate is not for."""
    made: list[Federation] = []

    def make(address: str, *names: str) -> Federation:
        made.append(make_federation(tmp_path / f"other{len(made)}", names or ("north",), address))
        made[-1].admit((names or ("north",))[0])
        return made[-1]

    yield make
    for process in [process for one in made for process in one.processes]:
        process.kill()


def content(*arrays: np.ndarray) -> RecordDict:
    named = {str(number): Array(np.asarray(array)) for number, array in enumerate(arrays)}
    return RecordDict({"model": ArrayRecord(named)})


def numbers(message: Message) -> list[np.ndarray]:
    return [array.numpy() for array in message.content.array_records["update"].values()]


class Questions:
    """What tests ask through a run."""

    content = staticmethod(content)
    numbers = staticmethod(numbers)
    wait_until = staticmethod(wait_until)

    @staticmethod
    def push(run: RunLink, *names: str, group: str = "1", arrays: tuple[np.ndarray, ...] = ()) -> dict[str, str]:
        """Push one message to each site named, once it was here; return its id by name."""
        wait_until(lambda: all(site.last_seen for site in run.members.states() if site.name in names))
        record = content(*(arrays or (np.arange(5, dtype=np.float32),)))
        messages = [Message(record, run.node_ids[name], "train", ttl=3600.0, group_id=group) for name in names]
        return dict(zip(names, run.grid.push_messages(messages), strict=True))

    @staticmethod
    def pull(run: RunLink, message_id: str, seconds: float = 180.0) -> Message:
        """Wait for the reply to a message."""
        end = time.monotonic() + seconds
        while not (replies := list(run.grid.pull_messages([message_id]))):
            assert time.monotonic() < end, "there was no reply in time"
            time.sleep(0.02)
        return replies[0]


@pytest.fixture
def ask() -> Questions:
    return Questions()
