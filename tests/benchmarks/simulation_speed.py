"""Clients trained a second, in simulations of the same work: ours, Flower's stock simulation, pfl, and a bare loop.

Run by hand: python tests/benchmarks/simulation_speed.py [--sites 10 100 1000] [--rounds 30] [--repeats 3]
Needs `pip install "flwr[simulation]" pfl==0.6.0` beside the project.

The work, 10 clients a round, one pass of plain SGD over 64 cases each: the small CNN on 28 x 28 images in batches of
16; and logistic regression on 13 features in batches of 4.
Each system runs in a process of its own with one thread for torch, turn by turn; of the repeats the best counts, for
each. CPU seconds, of all of a system's processes, are what to read on a machine that does other work as well.
Start-up and a first round are not counted. "bare" trains the same batches in a loop without any federation.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import threading
import time
import types

import numpy as np

CLIENTS, RATE = 10, 0.05
WORK = os.environ.get("WORK", "images")
CASES, BATCH, FORM = {"images": (64, 16, (1, 28, 28)), "table": (64, 4, (13,))}[WORK]
SYSTEMS = ("bare", "ours", "ours-ray", "pfl", "flower")


def clock():
    """Wall-clock seconds, and the CPU seconds of this process and all that it has started and that still runs."""
    import psutil

    tree = [psutil.Process(), *psutil.Process().children(recursive=True)]
    spent = 0.0
    for one in tree:
        try:
            spent += sum(one.cpu_times()[:2])
        except psutil.Error:
            continue
    return np.array([time.perf_counter(), spent])


def client_cases(number):
    random = np.random.default_rng(number)
    truth = random.integers(0, 2, CASES)
    truth[:2] = 0, 1
    return random.random((CASES, *FORM), dtype=np.float32), truth


def a_job(sites, rounds):
    from common.job import parse_job

    names = ", ".join(f'"s{number}"' for number in range(sites))
    features = ", ".join(f'"f{number}"' for number in range(FORM[0]))
    data = "size = [28, 28]" if WORK == "images" else f'features = [{features}]\n[network]\nname = "linear"'
    return parse_job(
        f'name = "speed"\nsites = [{names}]\n[task]\nlabels = ["no", "yes"]\n[data]\ncollection = "c"\n{data}\n'
        f"[training]\nbatch_size = {BATCH}\nmomentum = 0\nlearning_rate = {RATE}\n"
        f"[aggregation]\nrounds = {rounds}\nsites_per_round = {CLIENTS}\nevaluate_every = 1000000\n"
    )


def a_network():
    from common.networks import build_network

    return build_network(a_job(10, 1))


class Hospitals(dict):
    """Made when first asked, as a folder of data would be read."""

    def __missing__(self, name):
        from client.dataset import CaseSet
        from simulations.members import Hospital

        images, truth = client_cases(int(name[1:]))
        cases = CaseSet(images, tuple(("no", "yes")[label] for label in truth), np.arange(CASES))
        self[name] = Hospital(name, {"train": cases})
        return self[name]

    def __contains__(self, name):
        return True


def ours(sites, rounds, grid="process"):
    from simulations.engine import simulate

    marks = []
    simulate(
        a_job(sites, rounds + 1), Hospitals(), grid=grid, workers=2, evaluate=False,
        watch=lambda record, *_: marks.append(clock()) if record.number in (1, rounds + 1) else None,
    )  # fmt: skip
    return marks[-1] - marks[0]


def bare(sites, rounds):
    import torch

    from common.selection import chosen

    network, job = a_network(), a_job(sites, rounds + 1)
    network.train()
    data = {}

    def train(site):
        if site not in data:
            data[site] = [torch.from_numpy(array) for array in client_cases(int(site[1:]))]
        images, truth = data[site]
        optimizer = torch.optim.SGD(network.parameters(), lr=RATE)
        for start in range(0, CASES, BATCH):
            optimizer.zero_grad(set_to_none=True)
            part = slice(start, start + BATCH)
            torch.nn.functional.cross_entropy(network(images[part]), truth[part]).backward()
            optimizer.step()

    for number in range(1, rounds + 2):
        if number == 2:
            started = clock()
        for site in chosen(job, number):
            train(site)
    return clock() - started


def pfl(sites, rounds):
    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.model.pytorch import PyTorchModel

    network, kept, marks = a_network(), {}, []

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, images):
            return self.network(images)

        def loss(self, images, truth, is_eval=False):
            self.train()
            return torch.nn.functional.cross_entropy(self(images), truth)

        def metrics(self, images, truth, is_eval=False):
            return {}

    class Clock(TrainingProcessCallback):
        def after_central_iteration(self, aggregate_metrics, model, **_):
            if len(marks) in (0, rounds):
                marks.append(clock())
            else:
                marks.append(None)
            from pfl.metrics import Metrics

            return False, Metrics()

    def user(name):
        if name not in kept:
            kept[name] = [torch.from_numpy(array) for array in client_cases(name)]
        return Dataset(raw_data=kept[name], user_id=str(name))

    module = Module()
    users = FederatedDataset(user, get_user_sampler("minimize_reuse", list(range(sites))))
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=rounds + 1, evaluation_frequency=10**6, train_cohort_size=CLIENTS, val_cohort_size=0
        ),
        backend=SimulatedBackend(training_data=users, val_data=users),
        model=PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0)),
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=RATE, local_batch_size=BATCH, local_max_grad_norm=None
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=None),
        callbacks=[Clock()],
    )
    return marks[-1] - marks[0]


def flower(sites, rounds):
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    client, server, took = ClientApp(), ServerApp(), []

    @client.train()
    def train(message: Message, context: Context) -> Message:
        import torch

        torch.set_num_threads(1)
        # Flower's workers stay: a network and data that are kept there are the fastest that an app of its can be.
        kept = sys.modules.setdefault("kept_by_this_worker", types.SimpleNamespace(network=None, data={}))
        network = kept.network = kept.network or a_network()
        network.load_state_dict(message.content["arrays"].to_torch_state_dict())
        network.train()
        site = int(context.node_config["partition-id"])
        if site not in kept.data:
            kept.data[site] = [torch.from_numpy(array) for array in client_cases(site)]
        images, truth = kept.data[site]
        optimizer = torch.optim.SGD(network.parameters(), lr=RATE)
        for start in range(0, CASES, BATCH):
            optimizer.zero_grad(set_to_none=True)
            part = slice(start, start + BATCH)
            torch.nn.functional.cross_entropy(network(images[part]), truth[part]).backward()
            optimizer.step()
        content = {"arrays": ArrayRecord(network.state_dict()), "metrics": MetricRecord({"num-examples": CASES})}
        return Message(RecordDict(content), reply_to=message)

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_train=CLIENTS / sites, fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS
        )
        arrays = ArrayRecord(a_network().state_dict())
        strategy.start(grid, arrays, num_rounds=1)
        started = clock()
        strategy.start(grid, arrays, num_rounds=rounds)
        took.append(clock() - started)

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 2}}
    run_simulation(server, client, num_supernodes=sites, backend_config=resources)
    return took[0]


def measure(work, system, sites, rounds):
    """Run one system in a process of its own; return seconds and the peak memory of its processes in bytes."""
    import psutil

    command = [sys.executable, __file__, "--one", system, "--sites", str(sites), "--rounds", str(rounds)]
    environment = os.environ | {
        "WORK": work,
        "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"
    }  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    peak, done = 0, threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(0.2):
            try:
                tree = [psutil.Process(process.pid)]
                tree += tree[0].children(recursive=True)
                peak = max(peak, sum(one.memory_full_info().pss for one in tree))
            except psutil.Error:
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, err = process.communicate(timeout=3600)
    done.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{system}: {err[-2000:]}")
    return np.array(json.loads(out.splitlines()[-1])["seconds"]), peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--systems", nargs="+", default=SYSTEMS)
    parser.add_argument("--one")
    parser.add_argument("--work", choices=("images", "table"), nargs="+", default=["images", "table"])
    options = parser.parse_args()
    if options.one:
        import torch

        torch.set_num_threads(1)
        logging.disable(logging.WARNING)
        systems = {"bare": bare, "ours": ours, "pfl": pfl, "flower": flower}
        systems["ours-ray"] = lambda sites, rounds: ours(sites, rounds, grid="ray")
        print(json.dumps({"seconds": list(systems[options.one](options.sites[0], options.rounds))}))
        return
    print(
        f"load {os.getloadavg()[0]:.1f}; {CLIENTS} clients a round, {options.rounds} rounds, best of {options.repeats}"
    )
    columns = "clients a second | clients a CPU second | CPU, times the bare loop | peak memory MB"
    print(f"| work | sites | system | {columns} |\n|---|---|---|---|---|---|---|")
    for work, sites in ((work, sites) for work in options.work for sites in options.sites):
        found = {system: (np.full(2, np.inf), 0) for system in options.systems}
        for _ in range(options.repeats):
            for system in options.systems:
                rounds = max(3, options.rounds // 6) if system == "flower" else options.rounds
                seconds, peak = measure(work, system, sites, rounds)
                best, most = found[system]
                found[system] = (np.minimum(best, seconds / rounds), max(most, peak))
        for system, ((wall, cpu), peak) in found.items():
            times = cpu / found["bare"][0][1] if "bare" in found else float("nan")
            cells = (work, sites, system, f"{CLIENTS / wall:.1f}", f"{CLIENTS / cpu:.1f}", f"{times:.2f}")
            print(f"| {' | '.join(map(str, cells))} | {peak / 1e6:.0f} |", flush=True)


if __name__ == "__main__":
    main()
