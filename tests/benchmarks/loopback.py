"""A federation on this machine's loopback for the benchmarks: kits, a model of a given size, processes that end."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from certs.admission import admit
from certs.enrol import accept, enrol
from certs.kits import create_kits
from common.federation import parse_federation
from common.job import Job, parse_job
from common.kit import Kit, read_kit
from common.update import Tensors

HERE = Path(__file__).parent
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(HERE.parents[1]),
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_kits(folder: Path, names: list[str]) -> dict[str, Kit]:
    """Kits for the coordinator and the sites named, all admitted."""
    text = f'name = "benchmark"\n[coordinator]\naddress = "127.0.0.1:{free_port()}"\n' + "".join(
        f'[[sites]]\nname = "{name}"\n' for name in names
    )
    kits = create_kits(parse_federation(text), folder / "kits")
    sites = {name: read_kit(kits / "sites" / name, "site") for name in names}
    for site in sites.values():
        accept(site, admit(kits, enrol(site)))
    return {"coordinator": read_kit(kits / "coordinator", "coordinator")} | sites


def make_model(megabytes: float) -> Tensors:
    """Ten equal float32 arrays of `megabytes` (10^6 bytes) in all."""
    draw, size = np.random.default_rng(0), int(megabytes * 1e6 / 4 / 10)
    return {f"layer{number}": draw.standard_normal(size, dtype=np.float32) for number in range(10)}


def make_job(sites: list[str], rounds: int) -> Job:
    return parse_job(
        f'name = "benchmark"\nsites = {sites!r}\n[task]\nlabels = ["no", "yes"]\n[data]\ncollection = "none"\n'
        f"[aggregation]\nrounds = {rounds}\n"
    )


@contextlib.contextmanager
def process(*command: object, log: Path, **settings: object) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block."""
    with log.open("ab") as file:
        started = subprocess.Popen(
            [*map(str, command)], stdout=file, stderr=subprocess.STDOUT, **{"env": ENVIRONMENT, **settings}
        )
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(10)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def python(script: str, *words: object, log: Path) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    return process(sys.executable, HERE / script, *words, log=log)
