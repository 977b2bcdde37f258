"""The ways to train that the study of privacy's cost compares, each through sites, ledger and round loop.

Chest X-rays: pooled at one site, in a federation, and by plain Opacus on what the pooled site has. Hippocampus slices:
one hospital, with the image or the patient as the unit. All are judged on the model after the last round: to choose the
best round by validation would use, with privacy, numbers that cost privacy too.
"""

from __future__ import annotations

import math
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from client.catalog import CATALOG_FILE, Catalog
from client.dataset import open_cases
from client.policy import FILE_NAME
from client.site import CACHE_FOLDER
from common.files import write_atomically
from simulations.federation import LocalFederation
from simulations.slices import HOSPITAL
from simulations.study import POOLED, REFEREE, Arm, job_of, judge, run_arm
from simulations.utility import Cell, Result
from simulations.utility_opacus import train_with_opacus

CHEST, SLICES = "chest X-rays", "hippocampus slices"
FEDERATION, OPACUS, IMAGE, PATIENT = "federation", "pooled, plain Opacus", "image as unit", "patient as unit"
DELTA = 1e-5
READY = "ready"
LIMIT = 1000.0
"""What the study's own sites may spend: their data are public, and each stands for many sites that run one job each."""
Prepare = Callable[[Path, int], LocalFederation]
"""Makes the kits and imports the data of a seed in a new folder."""


@dataclass(frozen=True)
class Recipe:
    """How an arm trains: the job's tables without privacy, and those with it, at the epsilons that it has a recipe for.

    `private` holds the largest epsilon that each recipe is for.
    """

    plain: str
    private: Mapping[float, str]

    def tables(self, cell: Cell) -> str:
        """Return the job's tables for a cell."""
        if not cell.private:
            return self.plain
        for_most = min(level for level in self.private if level >= cell.epsilon)
        return self.private[for_most] + f"epsilon = {cell.epsilon}\ndelta = {DELTA}\n"


class Bench:
    """Runs cells in `folder`. What a seed needs is prepared when its first cell is run, and kept."""

    def __init__(
        self,
        folder: Path,
        prepare: Mapping[str, Prepare],
        recipes: Mapping[tuple[str, str], Recipe],
        hospitals: tuple[str, ...],
    ) -> None:
        """Take `prepare` by data, `recipes` by data and arm, and the names of the sites that make the federation."""
        self._folder, self._prepare, self._recipes, self._hospitals = folder, prepare, recipes, hospitals

    def run(self, cell: Cell) -> Result:
        """Run a cell. Raises RunError when a run does not complete, DataError or UsageError as the parts do."""
        federation = self.federation(cell.data, cell.seed)
        arm = Arm(_name(cell), self._sites(cell), self._recipes[cell.data, cell.arm].tables(cell), kept="last")
        if cell.arm == OPACUS:
            metrics, spent, seconds = _opacus(federation, arm, cell.seed)
        else:
            outcome = run_arm(federation, arm, seed=cell.seed)
            metrics, spent, seconds = outcome.metrics, outcome.epsilon or math.inf, outcome.seconds
        return Result(
            cell.data, cell.arm, cell.epsilon, cell.seed,
            metrics["auc"], metrics["auc_low"], metrics["auc_high"], spent, seconds,
        )  # fmt: skip

    def federation(self, data: str, seed: int) -> LocalFederation:
        """Return the kits and data of a seed, made on the first call."""
        folder = self._folder / f"{data.replace(' ', '-').lower()}-{seed}"
        if not (folder / READY).exists():
            shutil.rmtree(folder, ignore_errors=True)  # what an interrupted study left half made
            made = self._prepare[data](folder, seed)
            for site in made.sites:
                _allow(made.site_kit(site))
            (folder / READY).touch()
        names = (HOSPITAL, REFEREE) if data == SLICES else (*self._hospitals, POOLED, REFEREE)
        return LocalFederation(folder, names, "")

    def _sites(self, cell: Cell) -> tuple[str, ...]:
        if cell.data == SLICES:
            return (HOSPITAL,)
        return self._hospitals if cell.arm == FEDERATION else (POOLED,)


def _opacus(federation: LocalFederation, arm: Arm, seed: int) -> tuple[Mapping[str, float], float, float]:
    started = time.monotonic()
    job, kit = job_of(arm, seed), federation.site_kit(POOLED)
    cases = open_cases(Catalog(kit / CATALOG_FILE), job.data, "train", kit / CACHE_FOLDER)
    tensors, epsilon = train_with_opacus(job, cases)
    return judge(federation, job, tensors), epsilon, time.monotonic() - started


def _name(cell: Cell) -> str:
    level = f"{cell.epsilon:g}" if cell.private else "none"
    return re.sub(r"[^a-z0-9]+", "-", f"{cell.arm} {level}".lower())


def _allow(kit: Path) -> None:
    """Let the study's own site take all of its jobs: many in a row, and some with the image as the unit."""
    path = kit / FILE_NAME
    text = path.read_text(encoding="utf-8")
    for key, value in {"max_epsilon_for_life": LIMIT, "image_unit": "true"}.items():
        text = re.sub(rf"^{key} = \S+", f"{key} = {value}", text, flags=re.MULTILINE)
    write_atomically(path, text.encode())
