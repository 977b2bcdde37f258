"""A federation of two hospitals with real keys and certificates, made once and copied for each test."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from certs.enrol import accept, enrol
from certs.kits import admit, create_kits
from common.federation import Federation, parse_federation
from common.kit import Kit, read_kit

FEDERATION = """
name = "chest-study"
[coordinator]
address = "127.0.0.1:9092"
dns = ["wardround.example.org"]
addresses = ["192.0.2.10"]
[[sites]]
name = "north"
[[sites]]
name = "south"
"""


@pytest.fixture(scope="session")
def federation() -> Federation:
    return parse_federation(FEDERATION)


@pytest.fixture(scope="session")
def made(federation, tmp_path_factory) -> Path:
    return create_kits(federation, tmp_path_factory.mktemp("made") / "kits")


@pytest.fixture
def kits(made, tmp_path) -> Path:
    return shutil.copytree(made, tmp_path / "kits")


@pytest.fixture
def give(kits, tmp_path):
    """Give a site its kit: a copy at the hospital, as it would travel there."""

    def give_kit(name: str) -> Kit:
        folder = tmp_path / "hospitals" / name
        shutil.copytree(kits / "sites" / name, folder)
        return read_kit(folder, "site")

    return give_kit


@pytest.fixture
def north(give, kits) -> Kit:
    """The site north: enrolled, admitted, its certificate installed."""
    kit = give("north")
    accept(kit, admit(kits, enrol(kit)))
    return kit


def everything(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but the locks."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture(name="everything")
def everything_fixture():
    return everything


@pytest.fixture
def full_disk():
    """Let no file grow past some bytes, as the kernel does on a full disk: every write beyond fails with an OSError."""

    @contextmanager
    def limited(room: int = 0) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture
def tool():
    """The path of a command that is not ours, or a skip that says which is absent."""

    def find(name: str) -> str:
        if (path := shutil.which(name)) is None:
            pytest.skip(f"the {name} command is absent: install it to check keys and certificates with it")
        return path

    return find
