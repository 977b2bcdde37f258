"""One run of a scenario, from its hospitals to what is kept of it.

ready = Preparation(file, scratch).ready(cell)      # checks everything; nothing is trained yet
outcome = run(ready, ...)
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from client.dataset import CaseSet
from client.methods import judged
from client.training import pick_device
from common.errors import JobError, RunError, UpdateError, UsageError
from common.files import write_atomically
from common.job import Job
from common.networks import initial_model, local_names
from common.strategies import Ditto
from common.update import Tensors
from server.criterion import build_criterion
from server.records import RoundRecord
from server.strategies.registry import build_strategy
from simulations.arms import Cell, alone, job_of, sites_of
from simulations.engine import GridName, History, simulate
from simulations.faults import Fault
from simulations.judge import Judge, Row, Said, Values
from simulations.members import Hospital, Population
from simulations.populations import POOLED, pool, populate, populate_each
from simulations.public_sets import draw_phantoms
from simulations.scenario import ScenarioFile
from simulations.sources import Source, Wanted, open_source

VERSION = 1
"""Of what a run's numbers depend on besides its tables and data: raised when code changes them."""
CURVE, CHECKPOINT = "curve.json", "checkpoint.safetensors"


@dataclass(frozen=True)
class Ready:
    """A run with all it needs. `digest` is that of everything that decides what comes out."""

    cell: Cell
    job: Job
    population: Population
    unseen: CaseSet | None
    faults: tuple[Fault, ...]
    joins: Mapping[str, int]
    digest: str

    @property
    def rounds(self) -> int:
        """How many rounds it has, for a progress bar: an arm of hospitals alone has them at each."""
        times = len(self.population) if self.cell.kind == "local" else 1
        return self.job.aggregation.rounds * times


@dataclass(frozen=True)
class Round:
    """What a round took: bytes over all sites, seconds, sites whose update counts, the mean training loss."""

    number: int
    sent: int
    received: int
    seconds: float
    sites: int
    loss: float | None


@dataclass(frozen=True)
class Outcome:
    """What a run came to. `status` "failed": its model ran away, or no round found its quorum; `reason` says it."""

    status: str
    reason: str = ""
    rows: tuple[Row, ...] = ()
    rounds: tuple[Round, ...] = ()
    epsilon: float | None = None
    clock: float = 0.0
    seconds: float = 0.0
    kept_round: int = 0
    model: Tensors = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """How runs are carried out. Nothing here changes what comes out."""

    grid: GridName = "process"
    workers: int | None = None
    device: str = "auto"
    tell: Callable[[RoundRecord], None] = lambda record: None


class Preparation:
    """Makes runs ready. Sources and hospitals that runs share are opened once."""

    def __init__(self, file: ScenarioFile, scratch: Path) -> None:
        """Take the scenario and the folder where imported folders are kept."""
        self._file, self._scratch = file, scratch
        self._sources: OrderedDict[str, tuple[Source, str]] = OrderedDict()
        self._populations: OrderedDict[str, tuple[Population, CaseSet | None]] = OrderedDict()
        self._checked: set[str] = set()

    def ready(self, cell: Cell) -> Ready:
        """Make a run ready.

        Raises
        ------
        UsageError, DataError
            A table is wrong, or there is no such data. The message names the file and the arm.
        """
        where = f'{self._file.path}: arm "{cell.title}"'
        try:
            return self._ready(cell)
        except UsageError as error:
            text = str(error)
            raise UsageError(text if text.startswith(str(self._file.path)) else f"{where}: {text}") from error

    def _ready(self, cell: Cell) -> Ready:
        # The form of the data must be known before the hospitals are, and the job needs the hospitals' names.
        form = job_of(self._file, cell, ("site",) if cell.kind != "federated" else _placeholders(cell))
        population, unseen, data_digest = self._population(cell, form)
        job = job_of(self._file, cell, sites_of(cell, tuple(population)))
        self._check(cell, job)
        names = tuple(population)
        faults = _faults_of(cell, names) if cell.kind == "federated" else ()
        joins = _joins_of(cell, names) if cell.kind == "federated" else {}
        return Ready(cell, job, population, unseen, faults, joins, _digest(cell, job, data_digest, faults, joins))

    def _check(self, cell: Cell, job: Job) -> None:
        """Build what would else fail only when its turn comes."""
        if (key := job.model_copy(update={"seed": 0, "sites": ()}).canonical_json()) in self._checked:
            return
        initial_model(job)
        build_strategy(job)
        build_criterion(job.aggregation.criterion)
        best = cell.judge.model == "best"
        if best and personal(job):
            raise JobError(
                'judge.model = "best" is for one common model: with models of the hospitals\' own use "last"'
            )
        if best and not cell.source.validation:
            raise UsageError('judge.model = "best" needs patients to choose by: set source.validation, as 0.1')
        self._checked.add(key)

    def _population(self, cell: Cell, form: Job) -> tuple[Population, CaseSet | None, str]:
        seed = cell.seed if cell.source.seed is None else cell.source.seed
        if cell.partition.kind == "each":
            made = populate_each(cell.source, cell.partition, cell.scanners, form.data, cell.seed)
            test = draw_phantoms(max(200, cell.source.patients), 0.5, form.data, (seed, 4))
            return made, test, f"phantoms {form.data.size} {seed}"
        drawn = seed if cell.source.kind == "phantoms" else cell.source.seed or 0
        wanted = Wanted(cell.source, form.data, form.task.labels, self._file.path.parent, self._scratch, drawn)
        source_key = repr((cell.source, form.data.model_dump(exclude={"augment", "scale"}), form.task.labels, drawn))
        source, digest = self._opened(source_key, wanted)
        key = repr((source_key, cell.partition, cell.scanners, cell.seed))
        if key not in self._populations:
            made_ = populate(source, cell.source, cell.partition, cell.scanners, cell.seed)
            self._populations[key] = made_, source.unseen
            if len(self._populations) > 4:
                self._populations.popitem(last=False)
        population, unseen = self._populations[key]
        return population, unseen, digest

    def _opened(self, key: str, wanted: Wanted) -> tuple[Source, str]:
        if key not in self._sources:
            source = open_source(wanted)
            self._sources[key] = source, source.digest
            if len(self._sources) > 2:
                self._sources.popitem(last=False)
        return self._sources[key]


def run(ready: Ready, settings: Settings, folder: Path) -> Outcome:
    """Train and judge. `folder` takes what an interrupted run goes on from; it is emptied by nobody else.

    A run that fails by itself (its model runs away, no quorum) is an outcome, too. Raises what is not its own doing.
    """
    try:
        found = _alone_each(ready, settings, folder) if ready.cell.kind == "local" else _one(ready, settings, folder)
    except (RunError, UpdateError) as error:
        return Outcome("failed", str(error))
    wanted = ready.cell.judge
    if not any(row.final and row.metric == wanted.metric and row.scope == wanted.scope for row in found.rows):
        return replace(found, status="failed", reason=f"{wanted.metric} ({wanted.scope}) is undefined at the end")
    return found


def personal(job: Job) -> bool:
    """Return whether hospitals predict by models that are not the same."""
    return bool(local_names(job)) or isinstance(job.aggregation.known_parameters, Ditto)


def _one(ready: Ready, settings: Settings, folder: Path) -> Outcome:
    """A federation, or all cases in one place."""
    job, cell = ready.job, ready.cell
    population = pool(ready.population) if cell.kind == "pooled" else ready.population
    together = cell.kind == "pooled" and cell.judge.scale == "model"
    everyone = population[POOLED].splits["train"] if together else None
    judge = Judge(job, ready.population, ready.unseen, cell.judge, pick_device(settings.device), everyone)
    own, local = personal(job), local_names(job)
    curve = _read_curve(folder)

    def rows(number: int, model: Tensors, memories: Mapping[str, Tensors], *, final: bool) -> list[Row]:
        if not own:
            return judge.common(number, model, final=final)
        return judge.own(number, lambda site: judged(model, memories.get(site, {}), local), final=final)

    def watch(record: RoundRecord, model: Tensors | None, memories: Callable[[], Mapping[str, Tensors]]) -> None:
        settings.tell(record)
        if model is not None and record.number % cell.judge.every == 0 and record.number < job.aggregation.rounds:
            curve[record.number] = rows(record.number, model, memories() if own else {}, final=False)
            _write_curve(folder, curve)

    history = _train(ready, job, population, settings, watch, folder / CHECKPOINT)
    best = cell.judge.model == "best"
    number, model = (history.kept_round, history.kept) if best else (job.aggregation.rounds, history.model)
    # The curve's last point is that of the last model, whichever one is kept.
    last = rows(job.aggregation.rounds, history.model, history.memories, final=not best)
    chosen = rows(number, model, history.memories, final=True) if best else []
    every = [row for points in curve.values() for row in points] + last + chosen
    return Outcome(
        "completed",
        "",
        tuple(every),
        _rounds([history]),
        _epsilon([history]),
        history.clock,
        history.seconds,
        number,
        model,
    )


def _alone_each(ready: Ready, settings: Settings, folder: Path) -> Outcome:
    """Every hospital by itself, judged by its own model."""
    cell, job = ready.cell, ready.job
    judge = Judge(job, ready.population, ready.unseen, cell.judge, pick_device(settings.device))
    said: dict[tuple[int, bool], dict[str, Said]] = {}
    outside: dict[tuple[int, bool], list[Values]] = {}
    histories = []

    def note(site: str, number: int, model: Tensors, *, final: bool) -> None:
        said.setdefault((number, final), {})[site] = judge.at(site, model)
        outside.setdefault((number, final), []).append(judge.outside(model))

    for site in judge.sites:
        mine = alone(job, site)

        def watch(record: RoundRecord, model: Tensors | None, _: object, site: str = site) -> None:
            settings.tell(record)
            if model is not None and record.number % cell.judge.every == 0 and record.number < job.aggregation.rounds:
                note(site, record.number, model, final=False)

        hospital = {site: ready.population[site]}
        history = _train(ready, mine, hospital, settings, watch, None)
        best = cell.judge.model == "best"
        note(site, job.aggregation.rounds, history.kept if best else history.model, final=True)
        histories.append(history)
    rows: list[Row] = []
    for (number, final), found in sorted(said.items()):
        rows += judge.together(number, found, final=final)
        rows += judge.mean_outside(number, outside[number, final], final=final)
    seconds, rounds = sum(history.seconds for history in histories), job.aggregation.rounds
    return Outcome("completed", "", tuple(rows), _rounds(histories), _epsilon(histories), 0.0, seconds, rounds)


def _train(
    ready: Ready, job: Job, population: Mapping[str, Hospital], settings: Settings, watch: Any, checkpoint: Path | None
) -> History:
    # Only who chooses a model by validation, and q-FedAvg with privacy, need the hospitals' own evaluations.
    needed = ready.cell.judge.model == "best" or (job.private and job.aggregation.strategy == "qfedavg")
    return simulate(
        job, population, grid=settings.grid, workers=settings.workers, faults=ready.faults, joins=ready.joins,
        watch=watch, device=settings.device, checkpoint=checkpoint, evaluate=needed,
    )  # fmt: skip


def _rounds(histories: Sequence[History]) -> tuple[Round, ...]:
    """The training rounds that made a model; of several hospitals alone, their sums."""
    found: dict[int, Round] = {}
    for record in (record for history in histories for record in history.records if record.kind == "train"):
        before = found.get(record.number, Round(record.number, 0, 0, 0.0, 0, None))
        found[record.number] = Round(
            record.number,
            before.sent + sum(site.sent for site in record.sites),
            before.received + sum(site.received for site in record.sites),
            before.seconds + record.seconds,
            before.sites + len(record.named("aggregated")),
            record.loss,
        )
    return tuple(found[number] for number in sorted(found))


def _epsilon(histories: Sequence[History]) -> float | None:
    """The largest that any hospital has spent (of central privacy: the run's)."""
    said = [
        site.metrics["privacy.epsilon"]
        for history in histories
        for record in history.records
        for site in record.sites
        if "privacy.epsilon" in site.metrics
    ]
    central = [record.central.epsilon for history in histories for record in history.records if record.central]
    return max([*said, *central], default=None)


def _placeholders(cell: Cell) -> tuple[str, ...]:
    """Names for a job whose hospitals are not known yet: as many as may be."""
    wanted = cell.job.get("aggregation", {}).get("min_sites", 1)
    return tuple(f"site-{number}" for number in range(max(1, wanted if isinstance(wanted, int) else 1)))


def _faults_of(cell: Cell, names: tuple[str, ...]) -> tuple[Fault, ...]:
    made = []
    for place, (kind, section) in enumerate(cell.faults.items()):
        sites = _drawn(cell, f"faults.{kind}", names, section.share, section.sites, place + 1)
        if sites:
            made.append(Fault(kind, sites, section.strength))
    return tuple(made)


def _joins_of(cell: Cell, names: tuple[str, ...]) -> dict[str, int]:
    late = cell.late
    if late is None:
        return {}
    return dict.fromkeys(_drawn(cell, "late", names, late.share, late.sites, 0), late.round)


def _drawn(
    cell: Cell, table: str, names: tuple[str, ...], share: float | None, given: tuple[str, ...], number: int
) -> tuple[str, ...]:
    if unknown := next((site for site in given if site not in names), None):
        some = ", ".join(names[:8])
        raise UsageError(f'{table}.sites: there is no hospital "{unknown}": there are {some}')
    if share is None:
        return given
    order = np.random.default_rng([cell.seed, 29, number]).permutation(len(names))
    return tuple(names[place] for place in sorted(order[: round(share * len(names))]))


def _digest(cell: Cell, job: Job, data: str, faults: Sequence[Fault], joins: Mapping[str, int]) -> str:
    made_of = {
        "version": VERSION,
        "kind": cell.kind,
        "job": job.model_dump(mode="json", exclude={"description"}),
        "data": data,
        "source": cell.source.model_dump(mode="json", exclude={"path"}),
        "partition": cell.partition.model_dump(mode="json"),
        "scanners": cell.scanners.model_dump(mode="json"),
        "judge": cell.judge.model_dump(mode="json", exclude={"metric", "scope"}),
        "faults": [asdict(fault) for fault in faults],
        "joins": dict(joins),
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def _read_curve(folder: Path) -> dict[int, list[Row]]:
    """The points of a run that was interrupted; none where it has no checkpoint to go on from."""
    try:
        found = json.loads((folder / CURVE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {int(number): [Row(**row) for row in rows] for number, rows in found.items()}


def _write_curve(folder: Path, curve: Mapping[int, Sequence[Row]]) -> None:
    text = json.dumps({number: [asdict(row) for row in rows] for number, rows in curve.items()})
    write_atomically(folder / CURVE, text.encode())
