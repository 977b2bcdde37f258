"""What privacy costs in accuracy, on real chest X-rays and on MRI slices: AUC at epsilon 1, 3, 8 and without privacy.

    python tests/benchmarks/privacy_utility.py [--out privacy-utility] [--seeds 3] [--docs simulations/docs]

Chest X-rays (PneumoniaMNIST; see chest_xray.py for data, hospitals and test set): pooled, pooled by plain Opacus, and
in the federation of four. Hippocampus slices: one hospital with 140 patients, judged on the slices of 60 others; the
image against the patient as the unit. Every cell's result is kept in --out/results.csv as it is done; the same command
goes on where it was stopped. --docs also writes the table and the figure there. Recipes are the same for all seeds, and
were tuned without the test set (simulations/docs/privacy-utility.md). Ends with exit code 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from common.errors import WardroundError
from common.files import write_atomically
from simulations.federation import LocalFederation
from simulations.slices import prepare_slices
from simulations.study import POOLED, prepare
from simulations.utility import Cell, Result, run_missing
from simulations.utility_arms import CHEST, FEDERATION, IMAGE, OPACUS, PATIENT, SLICES, Bench, Recipe
from simulations.utility_report import aucs, draw, fill, table
from tests.benchmarks.chest_xray import ALPHA, COMMON, SIZES, load

EPSILONS = (8.0, 3.0, 1.0)
PAGE, FIGURE = "privacy-utility.md", "privacy-utility.svg"
TRAINING_SHARE = 0.7
STANDARD = 'scale = "standard"\n'
STANDARDISED = "[network]\nparameters = { weight_standardisation = true }\n"
RADIOGRAPHS = COMMON
SLICE_TASK = '[task]\nlabels = ["absent", "present"]\n[data]\ncollection = "slices"\nsize = [28, 28]\n' + STANDARD


def training(rate: float, batch: int, passes: float, *, averaging: float = 0.0, rounds: int = 1) -> str:
    """Return the tables [training] and [aggregation]: `passes` over the data in each of `rounds`, with momentum 0.9."""
    return (
        f"[training]\nlearning_rate = {rate}\nbatch_size = {batch}\nlocal_epochs = {passes}\naveraging = {averaging}\n"
        f"[aggregation]\nrounds = {rounds}\n"
    )


def privacy(unit: str, most_images: int = 16) -> str:
    """Return the start of the table [privacy]: clip norm 1, whatever the engine that is fastest here."""
    return f'[privacy]\nmechanism = "dp-sgd"\nunit = "{unit}"\nmax_images_per_patient = {most_images}\n'


def recipes() -> dict[tuple[str, str], Recipe]:
    """Return how each arm trains: everything that was tuned stands here."""
    pictures, by_image, by_patient = RADIOGRAPHS + STANDARD, privacy("image"), privacy("patient", 8)
    pooled = Recipe(
        plain=pictures + training(0.05, 32, 8),
        private={
            8.0: pictures + STANDARDISED + training(0.5, 128, 8, averaging=0.98) + by_patient,
            3.0: pictures + training(0.25, 64, 8, averaging=0.98) + by_patient,
            1.0: pictures + training(0.125, 64, 8, averaging=0.98) + by_patient,
        },
    )
    federated = Recipe(
        plain=pictures + training(0.05, 32, 1, rounds=16),
        private={
            8.0: pictures + training(0.3, 64, 1, averaging=0.9, rounds=16) + by_patient,
            3.0: pictures + training(0.2, 64, 1, averaging=0.9, rounds=16) + by_patient,
            1.0: pictures + training(0.2, 128, 1, averaging=0.9, rounds=16) + by_patient,
        },
    )
    opacus = Recipe(
        plain=pooled.plain,
        private={
            8.0: RADIOGRAPHS + training(0.5, 128, 8) + by_patient,
            1.0: RADIOGRAPHS + training(0.5, 256, 8) + by_patient,
        },
    )
    slices = Recipe(
        plain=SLICE_TASK + training(0.1, 64, 6),
        private={
            8.0: SLICE_TASK + training(0.5, 128, 6) + by_image,
            1.0: SLICE_TASK + training(0.25, 128, 6) + by_image,
        },
    )
    patients = Recipe(
        plain=slices.plain,
        private={
            8.0: SLICE_TASK + training(0.1, 14, 20, averaging=0.95) + by_patient,
            3.0: SLICE_TASK + training(0.1, 28, 20, averaging=0.95) + by_patient,
            1.0: SLICE_TASK + training(0.05, 56, 20) + by_patient,
        },
    )
    return {
        (CHEST, FEDERATION): federated,
        (CHEST, POOLED): pooled,
        (CHEST, OPACUS): opacus,
        (SLICES, IMAGE): slices,
        (SLICES, PATIENT): patients,
    }


def cells(seeds: Sequence[int]) -> list[Cell]:
    """Return the cells of the study. Opacus has none without privacy, and there the unit makes no difference."""
    every = (*EPSILONS, math.inf)
    return [
        Cell(data, arm, epsilon, seed)
        for seed in seeds
        for data, arm, wanted in (
            (CHEST, FEDERATION, every),
            (CHEST, POOLED, every),
            (CHEST, OPACUS, EPSILONS),
            (SLICES, IMAGE, every),
            (SLICES, PATIENT, EPSILONS),
        )
        for epsilon in wanted
    ]


def goals(results: Sequence[Result]) -> dict[str, bool]:
    """Return each goal with whether the means over the seeds meet it."""

    def mean(arm: str, epsilon: float) -> float:
        return float(aucs(results, (CHEST, arm), epsilon).mean())

    cost = mean(FEDERATION, math.inf) - mean(FEDERATION, 8.0)
    ahead = {epsilon: mean(POOLED, epsilon) - mean(OPACUS, epsilon) for epsilon in EPSILONS}
    return {
        f"in the federation, epsilon 8 costs at most 0.02 AUC ({cost:+.3f})": cost <= 0.02,
        **{
            f"better than plain Opacus at epsilon {epsilon:g} ({gain:+.3f})": gain > 0
            for epsilon, gain in ahead.items()
        },
    }


def bench(folder: Path, data: Path) -> Bench:
    """Return what runs the cells, with its kits and copies of the data in `folder`."""

    def radiographs(into: Path, seed: int) -> LocalFederation:
        return prepare(into, *load(data), SIZES, alpha=ALPHA, seed=seed)

    def slices(into: Path, seed: int) -> LocalFederation:
        return prepare_slices(into, data, share=TRAINING_SHARE, seed=seed)

    return Bench(folder, {CHEST: radiographs, SLICES: slices}, recipes(), tuple(SIZES))


def main() -> int:
    """Run the cells that are missing, and write table and figure."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("WARDROUND_DATA") or Path(__file__).resolve().parents[2].parent / "shared" / "data"
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds")
    parser.add_argument("--data", type=Path, default=Path(default), help="holds chest_xray/ and hippocampus_mri/")
    parser.add_argument("--out", type=Path, default=Path("privacy-utility"), help="results and what they need")
    parser.add_argument("--docs", type=Path, help="also write table and figure here")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    try:
        runner = bench(wanted.out / "federations", wanted.data)
        study = cells(range(wanted.seeds))
        results = run_missing(
            study, wanted.out / "results.csv", runner.run, lambda line: print(line, file=sys.stderr, flush=True)
        )
    except WardroundError as error:
        sys.exit(f"privacy_utility: {error}")
    reached = goals(results)
    said = (f"- {'met' if met else 'MISSED'}: {goal}" for goal, met in reached.items())
    text = "\n".join((table(results), "", *said))
    print(text)
    draw(results, wanted.out / FIGURE)
    write_atomically(wanted.out / "results.md", f"{text}\n".encode())
    if wanted.docs:
        draw(results, wanted.docs / FIGURE)
        fill(wanted.docs / PAGE, text)
    return 0 if all(reached.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
