"""A comparison of ways to train on the same hospitals: pooled, each alone, federated, federated with privacy.

Every arm runs through the same site, round loop and registry as a deployment, over `InProcessGrid`, from DICOM files
that the real intake has read. What differs is the job, and which sites it names.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from client.catalog import CATALOG_FILE, Catalog
from client.dataset import open_cases
from client.evaluation import Split, evaluate
from client.intake.importer import ImportOptions, import_folder
from client.site import CACHE_FOLDER, Site
from client.training import pick_device
from common.job import Job, parse_job
from common.networks import build_network, load_tensors
from common.tasks.registry import build_task
from common.update import Tensors
from server.execution import execute, raise_unless_completed
from server.modelfiles import read_model
from server.registry import Registry
from server.submission import submit_job
from simulations.federation import COLLECTION, LocalFederation, create_federation
from simulations.grid import AnswersRequests, InProcessGrid
from simulations.partition import partition
from simulations.radiographs import LABELS_FILE, Scanner, wrap_arrays_as_dicom

POOLED, REFEREE = "pooled", "referee"
FRACTIONS = (0.85, 0.10, 0.05)
"""Training, validation (which model is kept) and test at each hospital. The comparison has a test set of its own."""
SCANNERS = (
    Scanner("A", modality="CR", bits=8),
    Scanner("B", modality="CR", bits=8, inverted=True),
    Scanner("C", modality="CR", bits=8, encoding="rle"),
    Scanner("D", modality="CR", bits=8, inverted=True, encoding="rle"),
)
"""How each hospital's files are encoded, in turn. All keep the grey values exactly."""


@dataclass(frozen=True)
class Images:
    """Images, (N, rows, columns) uint8, and the label of each."""

    pixels: np.ndarray
    labels: tuple[str, ...]

    def at(self, indices: np.ndarray) -> Images:
        """Return those at `indices`."""
        return Images(self.pixels[indices], tuple(self.labels[index] for index in indices))


@dataclass(frozen=True)
class Arm:
    """One way to train: its name, the sites that take part, the job's tables that differ (TOML text), the model kept.

    "best" is that of the round with the best validation metric; "last" makes no use of a validation split.
    """

    name: str
    sites: tuple[str, ...]
    tables: str
    kept: Literal["best", "last"] = "best"


@dataclass(frozen=True)
class Outcome:
    """What an arm came to: metrics of the kept model on the common test set, epsilon at most, and seconds."""

    arm: str
    seed: int
    metrics: Mapping[str, float]
    epsilon: float | None
    seconds: float


def prepare(
    folder: Path, training: Images, test: Images, sizes: Mapping[str, int], *, alpha: float, seed: int
) -> LocalFederation:
    """Split `training` over hospitals of `sizes`, write all as DICOM and import it: kits for each, `POOLED`, `REFEREE`.

    Returns the federation; its folder holds everything. Raises UsageError or DataError as the parts do.
    """
    names = (*sizes, POOLED, REFEREE)
    federation = create_federation(folder, names, collection=COLLECTION, private=False)
    parts = partition(training.labels, list(sizes.values()), alpha=alpha, seed=seed)
    for number, (site, part) in enumerate(zip(sizes, parts, strict=True)):
        _write(training.at(part), federation.data(site), site, SCANNERS[number % len(SCANNERS)])
        for kit in (site, POOLED):
            _import(federation, kit, federation.data(site), FRACTIONS, seed)
    _write(test, federation.data(REFEREE), REFEREE, None)
    _import(federation, REFEREE, federation.data(REFEREE), (1.0, 0.0, 0.0), seed)
    return federation


def run_arm(federation: LocalFederation, arm: Arm, *, seed: int) -> Outcome:
    """Train as `arm` says and evaluate the kept model on the common test set.

    Raises RunError when the run does not complete.
    """
    started = time.monotonic()
    job = job_of(arm, seed)
    registry = Registry(f"sqlite:///{federation.folder.resolve() / arm.name}.sqlite", federation.folder / "models")
    sites = {site: Site.open(federation.site_kit(site), "cpu") for site in arm.sites}
    name = run_in_process(registry, job, sites)
    detail = registry.run_detail(name)
    kept = min(detail.models, key=lambda model: model.kind != arm.kept)
    metrics = judge(federation, job, read_model(registry.folder / kept.path, kept.sha256))
    spent = [row.metrics["privacy.epsilon"] for record in detail.rounds for row in record.sites
             if "privacy.epsilon" in row.metrics]  # fmt: skip
    registry.close()
    return Outcome(arm.name, seed, metrics, max(spent, default=None), time.monotonic() - started)


def run_in_process(registry: Registry, job: Job, sites: Mapping[str, AnswersRequests]) -> str:
    """Run `job` on `sites` in this process to its end; return the run's name. Raises RunError unless it completes."""
    name = submit_job(registry, job)
    registry.claim(name)
    grid, node_ids = InProcessGrid.of_sites(sites)
    status = execute(registry, name, grid, lambda: node_ids)
    raise_unless_completed(name, status, registry.summary(name).reason)
    return name


def judge(federation: LocalFederation, job: Job, model: Tensors) -> dict[str, float]:
    """Return the metrics of `model` on the referee's images, by name without "eval."."""
    kit, task, device = federation.site_kit(REFEREE), build_task(job), pick_device("cpu")
    cases = open_cases(Catalog(kit / CATALOG_FILE), job.data, "train", kit / CACHE_FOLDER)
    network = build_network(job)
    load_tensors(network, model)
    found = evaluate(network, Split(cases, task.targets(cases)), task, device)
    return {name.removeprefix("eval."): value for name, value in found.items()}


def job_of(arm: Arm, seed: int) -> Job:
    """Return the arm's job."""
    sites = ", ".join(f'"{site}"' for site in arm.sites)
    return parse_job(f'name = "{arm.name}"\nsites = [{sites}]\nseed = {seed}\n{arm.tables}', source=f"arm {arm.name}")


def _write(images: Images, folder: Path, site: str, scanner: Scanner | None) -> None:
    wrap_arrays_as_dicom(images.pixels, images.labels, folder, site=site, scanner=scanner)


def _import(
    federation: LocalFederation, kit: str, folder: Path, fractions: tuple[float, float, float], seed: int
) -> None:
    options = ImportOptions(fractions=fractions, seed=seed)
    import_folder(federation.site_kit(kit), COLLECTION, folder, folder / LABELS_FILE, options=options)


def markdown(outcomes: Sequence[Outcome], arms: Sequence[str]) -> str:
    """Return a table: a row an arm, AUC of each seed, its mean and standard deviation, epsilon, mean seconds."""
    seeds = sorted({outcome.seed for outcome in outcomes})
    heading = " | ".join(("", "AUC", *(f"seed {seed}" for seed in seeds), "epsilon", "s"))
    lines = [f"|{heading} |", "|---" * (len(seeds) + 4) + "|"]
    for arm in arms:
        mine = {outcome.seed: outcome for outcome in outcomes if outcome.arm == arm}
        values = np.array([mine[seed].metrics["auc"] for seed in seeds])
        spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
        epsilon = max((outcome.epsilon for outcome in mine.values() if outcome.epsilon is not None), default=None)
        cells = [f"{value:.3f}" for value in values]
        seconds = np.mean([outcome.seconds for outcome in mine.values()])
        lines.append(f"| {arm} | {values.mean():.3f}{spread} | {' | '.join(cells)} | "
                     f"{f'{epsilon:.2f}' if epsilon is not None else '-'} | {seconds:.0f} |")  # fmt: skip
    return "\n".join(lines)
