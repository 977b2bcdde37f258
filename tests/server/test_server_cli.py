"""What the coordinator's commands print: for people, for scripts, and when something is wrong."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from playground import HonestSite, PlaygroundGrid, exact, job_of, model_of
from typer.testing import CliRunner

from certs.admission import admit
from certs.enrol import enrol
from certs.kits import create_kits
from common.errors import RunError, UsageError
from common.federation import read_federation
from common.kit import read_kit
from common.update import Answer
from server import cli, plan_cli
from server.execution import execute, raise_unless_completed
from server.records import CoordinatorSeen
from server.registry import Registry
from server.report import HEARTBEAT_SECONDS

KIT = """role = "coordinator"
name = "coordinator"
federation = "study"
federation_id = "00"
address = "127.0.0.1:1"
"""
FEDERATION = """name = "study"
[coordinator]
address = "127.0.0.1:9"
addresses = ["127.0.0.1"]
[[sites]]
name = "north"
[[sites]]
name = "south"
"""
JOB = 'name = "j"\nsites = ["north"]\n[task]\nlabels = ["no", "yes"]\n[data]\ncollection = "c"\n'
COMMANDS = (
    (cli.coordinator, ["start"]),
    (cli.run, []),
    (cli.runs, []),
    (cli.runs, ["show"]),
    (cli.runs, ["stop"]),
    (cli.sites, []),
)


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    (tmp_path / "kit.toml").write_text(KIT)
    (tmp_path / "roster").mkdir()
    return tmp_path


def call(app, *arguments: str):
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def private(site):
    def behave(request):
        answer = site(request)
        if request.kind == "evaluate":
            numbers = {"eval.auc_low": 0.41, "eval.auc_high": 0.83}
        else:
            numbers = {"privacy.epsilon": 1.25 * request.number, "privacy.delta": 1e-5}
        return dataclasses.replace(answer, numbers=exact(answer.metrics | numbers))

    return behave


def finished_run(registry: Registry, sites) -> str:
    name = registry.submit(job_of(), model_of())
    registry.claim(name)
    grid = PlaygroundGrid(sites)
    execute(registry, name, grid, lambda: grid.node_ids)
    return name


def test_a_run_is_shown_with_who_trained_who_did_not_epsilon_intervals_and_model_files(kit, registry, federation):
    sites = {name: private(site) for name, site in federation.items()}
    sites["west"] = lambda request: Answer("west", "", 0, "refused", "the ledger is spent")
    name = finished_run(registry, sites)
    shown = call(cli.runs, "show", name, "--kit", str(kit)).output
    for expected in (
        "INCOMPLETE",
        job_of().digest,
        "north, south",
        "west refused: the ledger is spent",
        "west excluded",
        "3.750",
        "0.540 (0.410 to 0.830)",
        "1e-05",
        "may be the largest",
        "best model: after round 3",
        "last model: after round 3",
        "2,400",
    ):
        assert expected in shown, expected
    models = registry.run_detail(name).models
    assert all(model.path in shown.replace("\n", "") and model.sha256 in shown for model in models)


def test_a_script_gets_a_run_as_json_with_every_number(kit, registry, federation):
    name = finished_run(registry, federation)
    data = json.loads(call(cli.runs, "show", name, "--json", "--kit", str(kit)).output)
    assert (data["status"], data["digest"], data["job"]["name"]) == ("completed", job_of().digest, "chest")
    assert data["rounds"][1]["sites"][0]["metrics"]["train.images"] == 2400
    assert {model["kind"] for model in data["models"]} == {"best", "last"}


def test_runs_are_listed_for_people_and_for_scripts(kit, registry, federation):
    assert "No run yet" in call(cli.runs, "--kit", str(kit)).output
    name = finished_run(registry, federation)
    assert name in call(cli.runs, "--kit", str(kit)).output
    assert json.loads(call(cli.runs, "--json", "--kit", str(kit)).output)[0]["done"] == 3


def test_the_list_of_runs_fits_80_columns_with_whole_names_and_says_why_one_failed(registry, federation):
    from rich.console import Console

    from server.report import runs_table

    federation |= dict.fromkeys(federation, lambda request: Answer("north", "", 0, "failed", "no GPU"))
    name = finished_run(registry, federation)
    console = Console(record=True, width=80, force_terminal=False)
    console.print(runs_table(registry.list_runs()))
    table, reason = console.export_text().split(f"{name}: ")
    assert name in table
    assert "FAILED" in table
    assert "0 of 3 sites trained, 1 needed" in " ".join(reason.split())


def test_following_a_run_says_when_the_coordinator_dies_and_how_to_go_on(registry):
    from rich.console import Console

    from server.follow import follow

    name, now = registry.submit(job_of(), model_of()), time.time()
    registry.see_coordinator(CoordinatorSeen(1, "127.0.0.1:9", now, now - HEARTBEAT_SECONDS + 1))  # of its last second
    stopping = threading.Timer(3.0, registry.stop, [name])
    stopping.start()
    console = Console(record=True, width=200, force_terminal=False)
    follow(registry, name, console)
    stopping.join()
    text = console.export_text()
    assert text.count("the coordinator is not running") == 1
    assert f"wardround run --resume {name}" in text


def test_following_a_run_shows_a_line_a_round_and_ends_with_its_report(kit, registry, federation):
    name = finished_run(registry, federation)
    result = CliRunner().invoke(cli.run, ["--resume", name, "--kit", str(kit)])
    assert isinstance(result.exception, RunError)
    from rich.console import Console

    from server.follow import follow

    console = Console(record=True, width=200, force_terminal=False)
    ended = follow(registry, name, console)
    text = console.export_text()
    assert ended.status == "completed"
    assert "round 2: 3/3 sites, loss 0.500, auc 0.520, " in text


def test_a_run_that_lost_its_largest_site_is_no_success_to_a_script(registry, federation):
    honest = HonestSite("north", 2400)
    federation["north"] = lambda request: (
        Answer("north", "", 0, "failed", "GPU lost") if request.number == 2 else honest(request)
    )
    summary = registry.summary(finished_run(registry, federation))
    with pytest.raises(RunError, match="is incomplete"):
        raise_unless_completed(summary.name, summary.status, summary.reason)


def test_run_wants_a_job_or_a_run_to_resume(kit):
    with pytest.raises(UsageError, match="one of the two"):
        call(cli.run, "--kit", str(kit))


def test_a_queued_run_can_be_stopped(kit, registry):
    name = registry.submit(job_of(), model_of())
    call(cli.runs, "stop", name[:-2], "--kit", str(kit))
    assert registry.summary(name).status == "stopped"


def test_sites_are_not_called_online_when_no_coordinator_runs(tmp_path):
    (tmp_path / "federation.toml").write_text(FEDERATION)
    kits = create_kits(read_federation(tmp_path / "federation.toml"), tmp_path / "kits")
    admit(kits, enrol(read_kit(kits / "sites" / "north", "site")))
    listed = json.loads(call(cli.sites, "--json", "--kit", str(kits / "coordinator")).stdout)
    assert not listed["coordinator_running"]
    assert [(site["name"], site["online"], site["last_seen"]) for site in listed["sites"]] == [("north", None, None)]
    assert listed["sites"][0]["certificate_ends"] > 1.7e9


def test_the_help_of_every_command_has_an_example():
    for app, arguments in COMMANDS:
        assert "Example: wardround" in call(app, *arguments, "--help").output


def test_the_commands_load_neither_torch_nor_flower_until_they_are_used():
    code = "import server.cli, sys; print([m for m in ('torch', 'monai', 'flwr', 'sqlalchemy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("option", ["--patients", "--left"])
@pytest.mark.parametrize("number", ["nan", "inf", "many", "-1"])
def test_a_plan_for_what_is_no_number_of_patients_or_epsilon_is_refused(tmp_path, option, number):
    (tmp_path / "job.toml").write_text(JOB)
    result = CliRunner().invoke(plan_cli.app, [str(tmp_path / "job.toml"), option, f"north={number}"])
    assert isinstance(result.exception, UsageError)
    assert f"{option} north={number}" in str(result.exception)
