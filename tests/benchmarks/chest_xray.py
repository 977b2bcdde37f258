"""Real chest X-rays over four unequal hospitals: pooled, alone, FedAvg, FedProx, FedAvg with DP.

    python tests/benchmarks/chest_xray.py [--seeds 3] [--rounds 20] [--out results.md]

Data: PneumoniaMNIST (MedMNIST v2, CC BY 4.0), `pneumonia_28.npz`, in `chest_xray/` of the folder that --data or
WARDROUND_DATA names. Its 4,708 training images are split over hospitals of 2,400, 1,200, 700 and 408 with Dirichlet
label skew, written as DICOM and imported; its 524 validation images are the test set that every model here is judged
on, and no site sees them. Hyperparameters are the same for all seeds. Ends with exit code 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from common.errors import DataError
from simulations.federation import LocalFederation
from simulations.study import POOLED, Arm, Images, Outcome, markdown, prepare, run_arm

SIZES = {"h2400": 2400, "h1200": 1200, "h700": 700, "h408": 408}
ALPHA = 3.0
NAMES = ("normal", "pneumonia")
COMMON = """
[task]
labels = ["normal", "pneumonia"]
[data]
collection = "chest-xray"
size = [28, 28]
"""
TRAINING = "[training]\nlearning_rate = 0.05\nmomentum = 0.9\nbatch_size = 32\n"
PRIVATE_TRAINING = "[training]\nlearning_rate = 0.1\nmomentum = 0.0\nbatch_size = 64\n"
PRIVACY = '[privacy]\nmechanism = "dp-sgd"\nepsilon = 8.0\ndelta = 1e-5\nclip_norm = 4.0\n'


def arms(rounds: int) -> tuple[Arm, ...]:
    """Return every way to train, the slowest first. Each makes the same number of passes over its images."""
    sites = tuple(SIZES)
    loop = f"[aggregation]\nrounds = {rounds}\n"
    plain = COMMON + TRAINING + loop
    return (
        Arm("FedAvg-DP", sites, COMMON + PRIVATE_TRAINING + loop + PRIVACY),
        Arm("pooled", (POOLED,), plain),
        Arm("FedAvg", sites, plain),
        Arm("FedProx", sites, f'{plain}strategy = "fedprox"\nproximal_mu = 0.01\n'),
        *(Arm(f"{site}-alone", (site,), plain) for site in sites),
    )


def load(data: Path) -> tuple[Images, Images]:
    """Return the training images and the common test images."""
    path = data / "chest_xray" / "pneumonia_28.npz"
    if not path.is_file():
        raise DataError(f"{path} is missing: name the folder that holds chest_xray/ with --data, or set WARDROUND_DATA")
    with np.load(path, allow_pickle=False) as arrays:
        return tuple(
            Images(arrays[f"{split}_images"], tuple(NAMES[int(label)] for label in arrays[f"{split}_labels"].ravel()))
            for split in ("train", "val")
        )  # type: ignore[return-value]


def _prepare(folder: Path, data: Path, seed: int) -> LocalFederation:
    training, test = load(data)
    return prepare(folder / f"seed-{seed}", training, test, SIZES, alpha=ALPHA, seed=seed)


def _run(federation: LocalFederation, arm: Arm, seed: int) -> Outcome:
    import torch

    torch.set_num_threads(1)
    outcome = run_arm(federation, arm, seed=seed)
    line = f"seed {seed} {arm.name}: AUC {outcome.metrics['auc']:.3f}, {outcome.seconds:.0f} s"
    print(line, file=sys.stderr, flush=True)
    return outcome


def run_all(folder: Path, data: Path, seeds: Sequence[int], rounds: int, workers: int) -> list[Outcome]:
    """Run every arm for every seed, `workers` at a time, each on one thread."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        federations = [pool.submit(_prepare, folder, data, seed) for seed in seeds]
        ready = {seed: federation.result() for seed, federation in zip(seeds, federations, strict=True)}
        waiting = [pool.submit(_run, ready[seed], arm, seed) for arm in arms(rounds) for seed in seeds]
        return [outcome.result() for outcome in waiting]


def goals(outcomes: Sequence[Outcome]) -> dict[str, bool]:
    """Return each goal with whether the means over the seeds meet it."""

    def mean(*names: str) -> float:
        return float(np.mean([outcome.metrics["auc"] for outcome in outcomes if outcome.arm in names]))

    pooled, average, prox, private = mean("pooled"), mean("FedAvg"), mean("FedProx"), mean("FedAvg-DP")
    alone = mean(*(f"{site}-alone" for site in SIZES))
    return {
        f"FedAvg within 0.02 of pooled ({average - pooled:+.3f})": average >= pooled - 0.02,
        f"FedAvg above the mean of the sites alone ({average - alone:+.3f})": average > alone,
        f"FedProx within 0.02 of pooled ({prox - pooled:+.3f})": prox >= pooled - 0.02,
        f"FedProx above the mean of the sites alone ({prox - alone:+.3f})": prox > alone,
        f"DP loses at most 0.04 against FedAvg without ({private - average:+.3f})": private >= average - 0.04,
    }


def report(outcomes: Sequence[Outcome], rounds: int, seconds: float) -> str:
    """Return the results as Markdown."""
    import torch

    order = ("pooled", *(f"{site}-alone" for site in SIZES), "FedAvg", "FedProx", "FedAvg-DP")
    lines = [
        markdown(outcomes, order), "",
        f"AUC of the kept model on the 524 images of the validation split; {rounds} rounds of one pass; spread is the "
        f"standard deviation over seeds. {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"one thread a run; {seconds / 60:.0f} minutes in all.", "",
        *(f"- {'met' if met else 'MISSED'}: {goal}" for goal, met in goals(outcomes).items()),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("WARDROUND_DATA") or Path(__file__).resolve().parents[2].parent / "shared" / "data"
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of one pass over the images")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--data", type=Path, default=Path(default), help="the folder that holds chest_xray/")
    parser.add_argument("--out", type=Path, help="also write the results here")
    wanted = parser.parse_args()
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="wardround-chest-") as folder:
            outcomes = run_all(Path(folder), wanted.data, range(wanted.seeds), wanted.rounds, wanted.workers)
    except DataError as error:
        sys.exit(f"chest_xray: {error}")
    text = report(outcomes, wanted.rounds, time.monotonic() - started)
    print(text)
    if wanted.out:
        wanted.out.write_text(text, encoding="utf-8")
    return 0 if all(goals(outcomes).values()) else 1


if __name__ == "__main__":
    sys.exit(main())
