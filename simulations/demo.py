"""The demo: a federation of separate processes on one machine, from certificates to a compared model.

Nothing here is a shortcut: kits, keys, imports, the coordinator, the sites and the run are those of a deployment, and
the demo only types the commands and reads the registry.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from common.errors import RunError
from common.files import write_atomically
from simulations.federation import COLLECTION, LocalFederation, create_federation, free_port
from simulations.hospitals import LABELS, make_hospitals
from simulations.own_data import OwnData, split_folder
from simulations.processes import Crew, ending_on_signals, wardround_command
from simulations.radiographs import LABELS_FILE
from simulations.show import show_rounds, show_table

FEWEST_PHANTOMS = 60
"""Patients of a phantom hospital, at least: fewer leave too small a test split for the policy as installed."""


@dataclass(frozen=True)
class DemoOptions:
    """What the demo is to do; `wardround demo --help` says what each means."""

    sites: int = 3
    rounds: int = 10
    private: bool = True
    data: Path | None = None
    allow_identified: bool = False
    keep: Path | None = None
    patients: float = 1.0
    seed: int = 0
    dashboard: bool = True


@dataclass(frozen=True)
class SiteResult:
    """One hospital's share. `own` and `common` are metrics on its own test split, by name without "eval."."""

    images: int
    patients: int
    own: dict[str, float]
    common: dict[str, float]
    epsilon: float | None
    delta: float | None


@dataclass(frozen=True)
class DemoResult:
    """What came out: the run's name in the registry, the kept model's file, each site, and how long it all took."""

    run: str
    status: str
    folder: Path
    model: Path
    sites: dict[str, SiteResult]
    warnings: tuple[str, ...]
    private: bool
    seconds: float
    steps: dict[str, float] = field(default_factory=dict)

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
        return asdict(self) | {"folder": str(self.folder), "model": str(self.model)}


def run_demo(options: DemoOptions, console: Console) -> DemoResult:
    """Run the demo and show it on `console`.

    Guarantees: however it ends, no process that it started is left. Without `options.keep` the folder is a temporary
    one, which is removed unless the run was completed (then it stays, without images, so that it can be looked at).

    Raises
    ------
    RunError
        A process failed: with the end of its log.
    UsageError, DataError
        The folder or the data can't be used.
    KeyboardInterrupt
        Ctrl-C, or SIGTERM or SIGHUP.
    """
    folder = options.keep or Path(tempfile.mkdtemp(prefix="wardround-demo-"))
    ours = options.keep is None or not options.keep.exists()
    try:
        with ending_on_signals():
            result = _Demo(options, folder, console).run()
    except BaseException:
        if ours:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if options.keep is None:
        _drop_images(folder, result)
    show_table(result, console, kept=options.keep is not None)
    return result


def _drop_images(folder: Path, result: DemoResult) -> None:
    for path in (folder / "data", folder / "intake", *(folder.glob("kits/sites/*/cache"))):
        shutil.rmtree(path, ignore_errors=True)


class _Demo:
    """One demo under way."""

    def __init__(self, options: DemoOptions, folder: Path, console: Console) -> None:
        self._options, self._folder, self._console = options, folder, console
        self._started = time.monotonic()
        self._cores = os.cpu_count() or 1
        self._steps: dict[str, float] = {}

    def run(self) -> DemoResult:
        """Do it all."""
        names = [hospital.name for hospital in make_hospitals(self._options.sites)]
        with self._step("federation") as done:
            federation = create_federation(self._folder, names, collection=COLLECTION, private=self._options.private)
            done(f"an authority, {len(names) + 1} kits; every key made at its own site")
        # Sites and coordinator share the cores: one thread each does more than many that wait for each other.
        threads = str(max(1, self._cores // len(names)))
        environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "COLUMNS": "200"}
        with Crew(federation.logs, federation.environment | environment) as crew, self._saying_when_it_stops():
            data = self._write_images(crew, federation)
            images = self._import(crew, federation)
            write_atomically(federation.job, job_text(self._options, federation.sites, data).encode())
            run = self._start(crew, federation)
            with self._timed("training"):
                ended = show_rounds(federation.registry, run, self._console, crew.check)
            if ended.status not in ("completed", "incomplete"):
                raise RunError(f"run {run} is {ended.status}: {ended.reason}")
            own = self._baselines(crew, federation, data)
        return self._result(federation, run, images, own)

    def _write_images(self, crew: Crew, federation: LocalFederation) -> OwnData:
        options = self._options
        with self._step("images") as done:
            if options.data is not None:
                own = split_folder(
                    options.data, federation, seed=options.seed, allow_identified=options.allow_identified
                )
                done(f"{sum(own.files.values()):,} files of {options.data} by patient")
                return own
            commands = {}
            for index, hospital in enumerate(make_hospitals(options.sites)):
                patients = max(FEWEST_PHANTOMS, round(hospital.patients * options.patients))
                commands[f"images of {hospital.name}"] = [
                    sys.executable, "-m", "simulations.hospitals",
                    str(index), str(federation.data(hospital.name)), str(options.seed), str(patients),
                ]  # fmt: skip
            crew.run_all(commands, at_once=self._cores)
            files = {site: sum(1 for _ in federation.data(site).rglob("*.dcm")) for site in federation.sites}
            done(f"{sum(files.values()):,} DICOM files of phantoms, three kinds of scanner")
        return OwnData(LABELS, False, files)

    def _import(self, crew: Crew, federation: LocalFederation) -> dict[str, dict[str, Any]]:
        command = [*wardround_command(), "site", "import", "--collection", COLLECTION, "--json"]
        identified = ["--allow-identified"] if self._options.allow_identified else []
        with self._step("import") as done:
            reports = crew.run_all({
                f"import at {site}": [
                    *command, *identified, "--kit", str(federation.site_kit(site)),
                    "--labels", str(federation.data(site) / LABELS_FILE), str(federation.data(site)),
                ]
                for site in federation.sites
            }, at_once=self._cores)  # fmt: skip
            summaries = {name.removeprefix("import at "): json.loads(text)["summary"] for name, text in reports.items()}
            patients = sum(summary["patients"] for summary in summaries.values())
            done(f"{patients:,} patients, each site's under its own pseudonyms")
        return summaries

    def _start(self, crew: Crew, federation: LocalFederation) -> str:
        """Start the coordinator and the sites, ask for the run, and return its name once every site is connected."""
        wardround, kit = wardround_command(), str(federation.coordinator_kit)
        with self._step("start") as done:
            pages, entry = self._dashboard(federation)
            crew.start("coordinator", [*wardround, "coordinator", "start", kit, "--listen", federation.address, *pages])
            for site in federation.sites:
                crew.start(f"site {site}", [*wardround, "site", "start", str(federation.site_kit(site))])
            asked = crew.run_all({"run": [*wardround, "run", str(federation.job), "--kit", kit, "--json"]}, at_once=1)
            done(f"a coordinator and {len(federation.sites)} sites: processes that speak TLS gRPC")
        if entry:
            self._console.print(entry, highlight=False, soft_wrap=True)
        return str(json.loads(asked["run"])["run"])

    def _dashboard(self, federation: LocalFederation) -> tuple[list[str], str]:
        """Return the coordinator's options for its dashboard, and how to get in, with a password made for this demo."""
        if not self._options.dashboard:
            return ["--no-dashboard"], ""
        from server.people import People

        password, address, registry = secrets.token_urlsafe(12), f"127.0.0.1:{free_port()}", federation.registry
        People(registry.database).add("demo", "admin", by="wardround demo", password=password)
        registry.close()
        entry = (
            f"  [bold]dashboard[/]   https://{address}  name: demo  password: {password}\n"
            "              (your browser does not know this demo's own authority, and says so)"
        )
        return ["--dashboard", address], entry

    def _baselines(self, crew: Crew, federation: LocalFederation, data: OwnData) -> dict[str, dict[str, float]]:
        # Without privacy: a model that never leaves its hospital needs no noise, and is the one to be compared with.
        job = federation.folder / "own-model.toml"
        write_atomically(job, job_text(replace(self._options, private=False), federation.sites, data).encode())
        command = [*wardround_command(), "site", "baseline", str(job), "--json", "--kit"]
        with self._step("comparison") as done:
            outputs = crew.run_all(
                {f"own model of {site}": [*command, str(federation.site_kit(site))] for site in federation.sites},
                at_once=self._cores,
            )
            done("each hospital's own model, trained there alone")
        return {name.removeprefix("own model of "): _metrics(json.loads(text)) for name, text in outputs.items()}

    def _result(
        self, federation: LocalFederation, run: str, images: dict[str, dict[str, Any]], own: dict[str, dict[str, float]]
    ) -> DemoResult:
        registry = federation.registry
        detail = registry.run_detail(run)
        tested = {row.site: row for record in detail.rounds if record.kind == "test" for row in record.sites}
        trained = {row.site: row.metrics for record in detail.rounds if record.kind == "train" for row in record.sites
                   if row.status == "aggregated"}  # fmt: skip
        sites = {
            site: SiteResult(
                images=images[site]["images"], patients=images[site]["patients"], own=own[site],
                common=_metrics(tested[site].metrics) if site in tested else {},
                epsilon=trained.get(site, {}).get("privacy.epsilon"), delta=trained.get(site, {}).get("privacy.delta"),
            )
            for site in federation.sites
        }  # fmt: skip
        kept = next(model for model in sorted(detail.models, key=lambda model: model.kind))
        return DemoResult(
            run=run, status=detail.summary.status, folder=self._folder, model=registry.folder / kept.path, sites=sites,
            warnings=detail.warnings, private=self._options.private,
            seconds=time.monotonic() - self._started, steps=self._steps,
        )  # fmt: skip

    @contextmanager
    def _saying_when_it_stops(self) -> Iterator[None]:
        """Answer Ctrl-C at once: a process in the middle of a step takes some seconds to end."""
        try:
            yield
        except KeyboardInterrupt:
            self._console.print("\nStopping the processes: some seconds ...", highlight=False)
            raise

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._steps[name] = round(time.monotonic() - started, 1)

    @contextmanager
    def _step(self, name: str) -> Iterator[Any]:
        """Show a spinner while the block works, then a line with what it gave to the yielded function."""
        said: list[str] = []
        with self._timed(name), self._console.status(name):
            yield said.append
        self._console.print(
            f"[green]\u2713[/] [bold]{name:<11}[/] {self._steps[name]:>5.1f} s  {' '.join(said)}", highlight=False
        )


def _metrics(metrics: Any) -> dict[str, float]:
    return {name.removeprefix("eval."): value for name, value in metrics.items() if name.startswith("eval.")}


def job_text(options: DemoOptions, sites: tuple[str, ...], data: OwnData) -> str:
    """Return the demo's job as TOML."""
    size = 64 if options.data else 32
    # With noise, momentum adds up what is mostly noise; and clipping below the usual norm of a gradient (about 5 here)
    # would give a case that is learnt as much weight as one that is not.
    pace = ("learning_rate = 0.1", "momentum = 0.0") if options.private else ("learning_rate = 0.05", "momentum = 0.9")
    lines = [
        'name = "demo"', 'description = "the demo of Ward Round"', f"sites = {json.dumps(list(sites))}",
        f"seed = {options.seed}", "",
        "[task]", f"labels = {json.dumps(list(data.labels), ensure_ascii=False)}",
        f"multilabel = {json.dumps(data.multilabel)}", "",
        "[data]", f'collection = "{COLLECTION}"', f"size = [{size}, {size}]", "",
        "[network]", 'name = "small-cnn"', "",
        "[training]", *pace, "batch_size = 64", "local_epochs = 1", "",
        "[aggregation]", 'strategy = "fedavg"', f"rounds = {options.rounds}", f"min_sites = {len(sites)}", "",
        "[privacy]", f'mechanism = "{"dp-sgd" if options.private else "none"}"', "epsilon = 8.0", "delta = 1e-5",
        "clip_norm = 4.0", "",
    ]  # fmt: skip
    return "\n".join(lines)
