"""Actions: refused ones leave no trace in the log of what was done, and done ones are told before they take effect."""

from __future__ import annotations

import pytest
from playground import HonestSite, PlaygroundGrid, job_of, model_of

from common.audit import AuditLog
from common.errors import DataError, ForbiddenError, JobError, NotFoundError, RunError, UsageError
from common.kit import Kit
from server.actions import LONGEST_JOB, Actions
from server.execution import execute
from server.people import People
from server.roles import Person, scopes_of


@pytest.fixture
def kit(tmp_path):
    from certs.kits import create_kits
    from common.federation import read_federation
    from common.kit import read_kit

    (tmp_path / "federation.toml").write_text(
        'name = "ward"\n[coordinator]\naddress = "localhost:9092"\ndns = ["localhost"]\n[[sites]]\nname = "north"\n'
    )
    create_kits(read_federation(tmp_path / "federation.toml"), tmp_path / "kits")
    return read_kit(tmp_path / "kits" / "coordinator", "coordinator")


@pytest.fixture
def actions(registry, kit: Kit):
    return Actions(registry, kit, People(registry.database))


@pytest.fixture
def log(kit):
    path = kit.folder / "audit.jsonl"
    return lambda: AuditLog(path, kit.folder / "audit.key", "").entries() if path.exists() else []


def somebody(role):
    return Person(role, role, role, scopes_of(role), "session", "", "10.0.0.7")


def trained(registry):
    name = registry.submit(job_of(), model_of())
    registry.claim(name)
    grid = PlaygroundGrid({site: HonestSite(site, 100) for site in ("north", "south", "west")})
    execute(registry, name, grid, lambda: grid.node_ids)
    return name


def test_a_viewer_can_do_nothing_and_nothing_is_recorded_as_done(actions, registry, log):
    run, viewer = trained(registry), somebody("viewer")
    tries = [
        lambda: actions.start(viewer, "name = 1"),
        lambda: actions.plan(viewer, "name = 1"),
        lambda: actions.stop(viewer, run),
        lambda: actions.resume(viewer, run),
        lambda: actions.stage(viewer, 1, "approved"),
        lambda: actions.download(viewer, 1),
        lambda: actions.add_person(viewer, "eve", "admin"),
        lambda: actions.set_role(viewer, "viewer", "admin"),
        lambda: actions.disable_person(viewer, "viewer"),
        lambda: actions.set_password(viewer, "admin", "a new long password"),
        lambda: actions.sign_out_everywhere(viewer, "admin"),
        lambda: actions.issue_token(viewer, "x", ["read"], 1, whose="admin"),
    ]
    for attempt in tries:
        with pytest.raises(ForbiddenError):
            attempt()
    assert log() == []


def test_what_can_not_be_done_as_things_are_is_not_recorded_as_done(actions, registry, log):
    run, keeper = trained(registry), somebody("coordinator")
    waiting = registry.submit(job_of(), model_of())
    with pytest.raises(JobError, match='no site "south" is admitted'):
        actions.start(keeper, job_toml(sites='["south"]'))
    with pytest.raises(UsageError, match="at most"):
        actions.start(keeper, "#" * (LONGEST_JOB + 1))
    with pytest.raises(RunError, match="completed already"):
        actions.stop(keeper, run)
    with pytest.raises(RunError, match="is completed: only one that is"):
        actions.resume(keeper, run)
    with pytest.raises(NotFoundError):
        actions.stop(keeper, "no-such-run")
    with pytest.raises(RunError, match="once it has ended"):
        actions.stage(keeper, registry_model(registry, waiting), "approved")
    assert log() == []


def test_who_from_where_and_what_is_recorded_before_it_takes_effect(actions, registry, log, monkeypatch):
    run, keeper = registry.submit(job_of(), model_of()), somebody("coordinator")
    seen = []
    monkeypatch.setattr(registry, "stop", lambda name: seen.extend(entry.kind for entry in log()))
    actions.stop(keeper, run)
    assert seen == ["opened", "stop"]
    assert log()[-1].body == {"by": "coordinator", "address": "10.0.0.7", "via": "session", "run": run}


def test_when_the_log_can_not_be_written_nothing_is_done(actions, registry, kit):
    run = registry.submit(job_of(), model_of())
    (kit.folder / "audit.jsonl").mkdir()
    with pytest.raises(DataError, match="audit log can't be written"):
        actions.stop(somebody("admin"), run)
    assert registry.summary(run).status == "queued"


def test_a_run_that_a_killed_coordinator_left_running_can_be_resumed(actions, registry):
    run = registry.submit(job_of(), model_of())
    registry.claim(run)
    actions.resume(somebody("coordinator"), run)
    assert registry.summary(run).status == "queued"


def job_toml(sites):
    return f'name = "x"\nsites = {sites}\n[task]\nlabels = ["no", "yes"]\n[data]\ncollection = "c"\n'


def registry_model(registry, run):
    from sqlalchemy import text

    with registry.database.read() as connection:
        query = text("SELECT models.id FROM models JOIN runs ON runs.id = run_id WHERE runs.name = :run")
        return connection.execute(query, {"run": run}).scalar_one()
