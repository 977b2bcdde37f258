"""Seconds that a round spends outside local training: Ward Round against stock Flower 1.39, in one run on one machine.

Run by hand: python tests/benchmarks/round_overhead.py [--megabytes 10 200] [--rounds 3] [--only ours|stock]
Two sites as processes of their own, TLS and node keys on both sides, a model of ten float32 arrays, and "training" that
adds a constant. Stock: flower-superlink (database, TLS, node authentication), two flower-supernodes and Flower's own
FedAvg, which trains and evaluates in each round, as Ward Round does with one message; its app loads no torch, as a real
one would have to for each message. A round lasts from one global model to the next; the first is left out (connections,
caches). Goal: ten times less for 10 MB.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from loopback import ENVIRONMENT, HERE, free_port, make_kits, process, python

from certs.pem import read_private_key

SITES = ["north", "south"]
PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "stockbench"
version = "1.0.0"
description = "A benchmark"
license = { file = "LICENSE" }
dependencies = ["flwr>=1.39,<1.40"]
[tool.flwr.app]
publisher = "stockbench"
fab-format-version = 1
flwr-version-target = "1.39.0"
fab-include = ["stockbench/*.py", "LICENSE"]
[tool.flwr.app.components]
serverapp = "stockbench.server:app"
clientapp = "stockbench.client:app"
[tool.flwr.app.config]
megabytes = 10.0
rounds = 2
times = ""
"""
CLIENT = """
import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()
@app.train()
def train(message, context):
    step = np.float32(context.node_config["step"])
    arrays = {name: Array(array.numpy() + step) for name, array in message.content["arrays"].items()}
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 1000})})
    return Message(content, reply_to=message)
@app.evaluate()
def evaluate(message, context):
    metrics = MetricRecord({"num-examples": 1000, "loss": float(message.content["arrays"]["layer0"].numpy()[0])})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
"""
SERVER = """
import json, time
import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
app = ServerApp()
class Timed(FedAvg):
    ends = []
    def configure_train(self, *args, **kwargs):
        self.ends.append(time.monotonic())
        return super().configure_train(*args, **kwargs)
    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        assert len([reply for reply in replies if reply.has_content()]) == 2, replies
        return super().aggregate_train(server_round, replies)
@app.main()
def main(grid, context):
    config = context.run_config
    size, draw = int(config["megabytes"] * 1e6 / 4 / 10), np.random.default_rng(0)
    model = {f"layer{n}": Array(draw.standard_normal(size, dtype=np.float32)) for n in range(10)}
    strategy = Timed(min_train_nodes=2, min_evaluate_nodes=2, min_available_nodes=2)
    strategy.start(grid=grid, initial_arrays=ArrayRecord(model), num_rounds=config["rounds"])
    ends = strategy.ends + [time.monotonic()]
    with open(config["times"], "w") as file:
        json.dump([end - start for start, end in zip(ends, ends[1:])], file)
"""


def ours(folder: Path, megabytes: float, rounds: int) -> list[float]:
    kits = make_kits(folder, SITES)
    with contextlib.ExitStack() as stack:
        for name in SITES:
            stack.enter_context(python("echo_sites.py", kits[name].folder, log=folder / f"{name}.log"))
        words = [str(word) for word in (folder, megabytes, rounds, *SITES)]
        command = [sys.executable, str(HERE / "echo_coordinator.py"), *words]
        ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=1800)
    if ended.returncode:
        raise SystemExit(ended.stderr[-3000:])
    return json.loads(ended.stdout.splitlines()[-1])["rounds"]


def stock(folder: Path, megabytes: float, rounds: int) -> list[float]:
    kits, tools = make_kits(folder, SITES), Path(sys.executable).parent
    coordinator, app, home, times = kits["coordinator"], folder / "app", folder / "home", folder / "times.json"
    (app / "stockbench").mkdir(parents=True)
    files = {"pyproject.toml": PYPROJECT, "LICENSE": "Apache-2.0\n", "stockbench/__init__.py": ""}
    for name, text in {**files, "stockbench/client.py": CLIENT, "stockbench/server.py": SERVER}.items():
        (app / name).write_text(text)
    control = free_port()
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "bench"\n[superlink.bench]\naddress = "127.0.0.1:{control}"\n'
        f'root-certificates = "{coordinator.authority_certificate}"\n'
    )
    settings = ENVIRONMENT | {"FLWR_HOME": str(home), "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    certificates = (
        "--ssl-ca-certfile", coordinator.authority_certificate,
        "--ssl-certfile", coordinator.certificate,
        "--ssl-keyfile", coordinator.key,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        start = lambda log, *command: stack.enter_context(  # noqa: E731
            process(*command, log=folder / log, env=settings, cwd=folder)
        )
        start(
            "superlink.log", tools / "flower-superlink", *certificates, "--enable-supernode-auth",
            "--database", folder / "superlink.sqlite", "--disable-runtime-dependency-installation",
            "--host", "127.0.0.1", "--port", control, "--fleet-api-address", coordinator.address,
        )  # fmt: skip
        for name in SITES:
            public = folder / f"{name}.pub"
            key = read_private_key(kits[name].key).public_key()
            public.write_bytes(key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
            command(settings, folder, tools / "flwr", "supernode", "register", public, "bench", patience=60)
        for number, name in enumerate(SITES):
            start(
                f"{name}.log", tools / "flower-supernode", "--superlink", coordinator.address,
                "--root-certificates", coordinator.authority_certificate,
                "--auth-supernode-private-key", kits[name].key, "--port", free_port(),
                "--node-config", f"step=0.00{number + 1}",
            )  # fmt: skip
        config = f'megabytes={float(megabytes)} rounds={rounds} times="{times}"'
        command(settings, folder, tools / "flwr", "run", app, "bench", "--run-config", config, patience=30)
        end = time.monotonic() + 1800
        while not times.exists() or not times.read_text():
            if time.monotonic() > end:
                raise SystemExit((folder / "superlink.log").read_text()[-3000:])
            time.sleep(0.5)
    return json.loads(times.read_text())


def command(settings: dict, folder: Path, *words: object, patience: float) -> None:
    """Run a command of Flower's until it works: the SuperLink needs a moment to start."""
    end = time.monotonic() + patience
    while True:
        ended = subprocess.run([*map(str, words)], env=settings, cwd=folder, capture_output=True, text=True)
        if ended.returncode == 0:
            return
        if time.monotonic() > end:
            raise SystemExit(f"{words}:\n{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}")
        time.sleep(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[10.0, 200.0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["ours", "stock"])
    options = parser.parse_args()
    print(f"{'model MB':>8} {'system':<12} {'median s a round':>17}  rounds", flush=True)
    for megabytes in options.megabytes:
        medians = {}
        for name, measure in (("Ward Round", ours), ("stock Flower", stock)):
            if options.only and (name == "Ward Round") != (options.only == "ours"):
                continue
            with tempfile.TemporaryDirectory() as folder:
                seconds = measure(Path(folder), megabytes, options.rounds + 1)[1:]
            medians[name] = statistics.median(seconds)
            row = " ".join(f"{second:.2f}" for second in seconds)
            print(f"{megabytes:>8.0f} {name:<12} {medians[name]:>17.2f}  {row}", flush=True)
        if len(medians) == 2:
            print(f"{'':>8} {'ratio':<12} {medians['stock Flower'] / medians['Ward Round']:>17.1f}", flush=True)


if __name__ == "__main__":
    main()
