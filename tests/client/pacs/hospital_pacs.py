"""A real PACS for the tests: Orthanc with its DICOMweb plugin, on loopback, with users and AE titles that it checks."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[3]
ORTHANC = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
USER, PASSWORD = "site", "a secret of this test"
DEADLINE = 120


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition, what: str):
    """Return what `condition` gives, once it gives something."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"this did not happen in {DEADLINE} s: {what}")


def answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class Orthanc:
    """One Orthanc in a folder of its own. `dicom` and `http` are its ports, `move` is where it sends to WARDROUND."""

    folder: Path
    settings: dict = field(default_factory=dict)
    dicom: int = field(default_factory=free_port)
    http: int = field(default_factory=free_port)
    move: int = field(default_factory=free_port)
    process: subprocess.Popen | None = None

    @property
    def peer(self) -> str:
        return f"HOSPITAL@localhost:{self.dicom}"

    @property
    def url(self) -> str:
        return f"http://localhost:{self.http}/dicom-web"

    def start(self) -> Orthanc:
        self.folder.mkdir(exist_ok=True)
        config = {
            "Name": "hospital", "StorageDirectory": str(self.folder / "db"), "IndexDirectory": str(self.folder / "db"),
            "DicomAet": "HOSPITAL", "DicomPort": self.dicom, "DicomCheckCalledAet": True, "HttpPort": self.http,
            "RemoteAccessAllowed": False, "AuthenticationEnabled": True, "RegisteredUsers": {USER: PASSWORD},
            "DicomModalities": {"site": ["WARDROUND", "127.0.0.1", self.move]}, "Plugins": [str(PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"}, "OverwriteInstances": True, **self.settings,
        }  # fmt: skip
        (self.folder / "orthanc.json").write_text(json.dumps(config))
        with (self.folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                [ORTHANC, str(self.folder / "orthanc.json")], stdout=log, stderr=subprocess.STDOUT
            )
        wait_for(lambda: answers(self.dicom) and answers(self.http), "Orthanc answers")
        return self

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def ask(self, path: str, body: bytes | None = None) -> object:
        """Orthanc's own REST, to look at what it has from another side."""
        request = urllib.request.Request(f"http://localhost:{self.http}{path}", data=body)
        manager = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        manager.add_password(None, f"http://localhost:{self.http}/", USER, PASSWORD)
        opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(manager))
        with opener.open(request, timeout=60) as answer:
            return json.loads(answer.read())

    def give(self, files) -> None:
        for path in files:
            self.ask("/instances", Path(path).read_bytes())


def line_of(command: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", "from common.cli import main; main()", "site", command, *map(str, arguments)]
