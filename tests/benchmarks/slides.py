"""Phantom whole-slide images at three laboratories: pooled, each alone, federated; a slide is a bag of its tiles.

    python tests/benchmarks/slides.py [--seeds 1] [--rounds 12] [--slides 32] [--out results.md]

Every laboratory stains in its own way. The slides are written as pyramid TIFFs (or with --dicom as DICOM), imported by
the real intake, cut into tiles of 48 x 48 micrometres where there is tissue, and trained through the same site and
round loop as a deployment. Every model is judged on slides of all three laboratories that no site has.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from client.intake.importer import ImportOptions, import_folder
from simulations.federation import LocalFederation, create_federation
from simulations.slides import LABORATORIES, write_laboratory
from simulations.study import POOLED, REFEREE, Arm, Outcome, markdown, run_arm

COLLECTION = "slides"
NAMES = tuple(laboratory.name for laboratory in LABORATORIES)
EDGE = 384
JOB = """
[task]
labels = ["normal", "tumour"]
[data]
collection = "slides"
bag = "slide"
size = [12, 48, 48]
channels = 3
mpp = 1.0
[network]
name = "attention-mil"
parameters = {{ width = 16, hidden = 32 }}
[training]
learning_rate = 0.05
batch_size = 6
[aggregation]
rounds = {rounds}
"""


def arms(rounds: int) -> tuple[Arm, ...]:
    """Return every way to train; each makes the same number of passes over its slides."""
    text = JOB.format(rounds=rounds)
    return (
        Arm("pooled", (POOLED,), text, kept="last"),
        *(Arm(f"{name}-alone", (name,), text, kept="last") for name in NAMES),
        Arm("FedAvg", NAMES, text, kept="last"),
    )


def prepare(folder: Path, slides: int, seed: int, *, dicom: bool) -> LocalFederation:
    """Write and import `slides` slides a laboratory, and half as many of each for the common test."""
    federation = create_federation(folder, (*NAMES, POOLED, REFEREE), collection=COLLECTION, private=False)
    for laboratory in LABORATORIES:
        own = federation.data(laboratory.name)
        labels = write_laboratory(laboratory, own, slides, seed, dicom=dicom, edge=EDGE)
        for kit in (laboratory.name, POOLED):
            _import(federation.site_kit(kit), own, labels, seed)
        unseen = federation.data(REFEREE) / laboratory.name
        labels = write_laboratory(laboratory, unseen, slides // 2, 1000 + seed, dicom=dicom, edge=EDGE)
        _import(federation.site_kit(REFEREE), unseen, labels, seed, fractions=(1.0, 0.0, 0.0))
    return federation


def _import(
    kit: Path, folder: Path, labels: Path, seed: int, fractions: tuple[float, float, float] = (0.9, 0.1, 0.0)
) -> None:
    import_folder(kit, COLLECTION, folder, labels, options=ImportOptions(fractions=fractions, seed=seed))


def run_all(folder: Path, seeds: Sequence[int], rounds: int, slides: int, *, dicom: bool) -> list[Outcome]:
    """Run every arm for every seed."""
    outcomes = []
    for seed in seeds:
        federation = prepare(folder / f"seed-{seed}", slides, seed, dicom=dicom)
        for arm in arms(rounds):
            outcomes.append(run_arm(federation, arm, seed=seed))
            print(f"seed {seed} {arm.name}: AUC {outcomes[-1].metrics['auc']:.3f}", file=sys.stderr, flush=True)
    return outcomes


def report(outcomes: Sequence[Outcome], rounds: int, slides: int, seconds: float) -> str:
    """Return the results as Markdown."""
    import torch

    order = ("pooled", *(f"{name}-alone" for name in NAMES), "FedAvg")
    return (
        f"{markdown(outcomes, order)}\n\n"
        f"AUC of the last model on {slides // 2 * len(NAMES)} unseen slides of all laboratories; {slides} slides a "
        f"laboratory, {rounds} rounds of one pass. {os.cpu_count()} cores that did other work too, one thread, torch "
        f"{torch.__version__}; {seconds / 60:.0f} minutes in all.\n"
    )


def main() -> int:
    """Run the benchmark and print its results; exit code 1 unless the federation beats the mean of the sites alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds")
    parser.add_argument("--rounds", type=int, default=12, help="rounds of one pass over the slides")
    parser.add_argument("--slides", type=int, default=32, help="slides of each laboratory: a site trains on 20 or more")
    parser.add_argument("--dicom", action="store_true", help="write the slides as DICOM")
    parser.add_argument("--out", type=Path, help="also write the results here")
    wanted = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="wardround-slides-") as folder:
        outcomes = run_all(Path(folder), range(wanted.seeds), wanted.rounds, wanted.slides, dicom=wanted.dicom)
    text = report(outcomes, wanted.rounds, wanted.slides, time.monotonic() - started)
    print(text)
    if wanted.out:
        wanted.out.write_text(text, encoding="utf-8")
    alone = np.mean([outcome.metrics["auc"] for outcome in outcomes if outcome.arm.endswith("-alone")])
    together = np.mean([outcome.metrics["auc"] for outcome in outcomes if outcome.arm == "FedAvg"])
    return 0 if together > alone else 1


if __name__ == "__main__":
    sys.exit(main())
