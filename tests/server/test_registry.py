"""The registry: what is committed is whole, survives a restart, and is told plainly when it can't be used."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from playground import HonestSite, PlaygroundGrid, Slow, job_of, model_of
from safetensors import safe_open
from sqlalchemy import create_engine, text

from common.errors import DataError, RunError, UpdateError, UsageError
from common.update import Answer
from server.database import MIGRATIONS
from server.execution import execute
from server.modelfiles import read_checkpoint
from server.records import CoordinatorSeen, SiteSeen
from server.registry import Registry
from server.schema import HEAD, metadata


def run(registry, job, sites, **options):
    name = registry.submit(job, model_of())
    assert registry.claim() == name
    grid = PlaygroundGrid(sites)
    status = execute(registry, name, grid, lambda: grid.node_ids, **options)
    return name, status


def test_a_completed_run_tells_everything_that_happened(registry, federation):
    name, status = run(registry, job_of(), federation)
    detail = registry.run_detail(name)
    assert (status, detail.summary.status, detail.summary.done) == ("completed", "completed", 3)
    assert detail.job == job_of()
    assert detail.summary.digest == job_of().digest
    assert detail.examples == {"north": 2400, "south": 700, "west": 400}
    assert [(record.kind, record.number) for record in detail.rounds] == [
        ("consent", 0),
        ("train", 1),
        ("train", 2),
        ("train", 3),
        ("validation", 3),
        ("test", 3),
    ]
    assert detail.rounds[1].sites[0].metrics["eval.auc"] == pytest.approx(0.51)
    assert detail.rounds[1].loss == pytest.approx(1.0)


def test_a_kept_model_says_where_it_comes_from_and_has_its_sha256_in_the_registry(registry, federation):
    name, _ = run(registry, job_of(), federation)
    files = {model.kind: model for model in registry.run_detail(name).models}
    with safe_open(files["last"].path, framework="numpy") as file:
        assert file.metadata()["job_digest"] == job_of().digest
        assert (file.metadata()["run"], file.metadata()["round"]) == (name, "3")
        assert file.metadata()["code_version"] == files["last"].code_version
    digest = subprocess.run(["sha256sum", files["last"].path], capture_output=True, text=True).stdout.split()[0]
    assert digest == files["last"].sha256


def test_only_the_best_and_the_last_model_stay_on_disk(registry, federation):
    for site in federation.values():
        site.auc = lambda request: {2: 0.9}.get(request.number, 0.5)
    name, _ = run(registry, job_of(), federation)
    assert sorted(file.name for file in (registry.folder / name).iterdir()) == [
        "round-00001.safetensors",
        "round-00003.safetensors",
    ]
    assert [(model.kind, model.round) for model in registry.run_detail(name).models] == [("best", 1), ("last", 3)]


@pytest.mark.parametrize("killed_after", [0, 1, 2, 3, 4])
def test_a_run_that_was_cut_off_goes_on_from_its_last_commit_to_the_same_bits(registry, federation, killed_after):
    whole, _ = run(registry, job_of(), federation)

    class Killed(BaseException):
        pass

    name = registry.submit(job_of(), model_of())
    registry.claim(name)

    def kill(request):
        if len(registry.run_detail(name).rounds) == killed_after + 1:  # the first is the sites' consent
            raise Killed
        return federation["west"](request)

    grid = PlaygroundGrid(federation | {"west": kill})
    with pytest.raises(Killed):
        execute(registry, name, grid, lambda: grid.node_ids)
    assert registry.interrupt_running() == [name]
    assert f"wardround run --resume {name}" in registry.summary(name).reason
    registry.resume(name)
    assert registry.claim() == name
    grid = PlaygroundGrid(federation)
    assert execute(registry, name, grid, lambda: grid.node_ids) == "completed"
    assert grid.asked[0][1].number == min(killed_after + 1, 3)
    left, right = registry.run_detail(whole), registry.run_detail(name)
    assert [r.number for r in right.rounds if r.kind != "consent"] == [1, 2, 3, 3, 3]
    for model, other in zip(left.models, right.models, strict=True):
        mine, theirs = (read_checkpoint(Path(m.path), model_of()) for m in (model, other))
        assert all(mine[key].tobytes() == theirs[key].tobytes() for key in mine)


def test_a_run_without_its_largest_site_in_some_round_is_incomplete(registry, federation):
    honest = HonestSite("north", 2400)
    federation["north"] = lambda request: (
        Answer("north", "", 0, "failed", "GPU lost") if request.number == 2 else honest(request)
    )
    name, status = run(registry, job_of(), federation)
    assert status == "incomplete"
    assert "1 rounds lack the site with the most cases" in registry.summary(name).reason
    assert registry.run_detail(name).warnings[0].startswith("round 2: north (failed) is missing")


def test_a_failed_run_can_be_resumed_and_counts_its_attempts_on(registry, federation):
    job = job_of(aggregation="rounds = 1\nmin_sites = 3\nmax_failed_rounds = 2")
    broken = federation | {"west": lambda request: Answer("west", "", 0, "failed", "GPU lost")}
    name, status = run(registry, job, broken)
    assert (status, registry.summary(name).reason[:33]) == ("failed", "round 1 found no quorum 2 times i")
    registry.resume(name)
    registry.claim()
    grid = PlaygroundGrid(federation)
    assert execute(registry, name, grid, lambda: grid.node_ids) == "completed"
    assert [r.attempt for r in registry.run_detail(name).rounds if r.kind == "train"] == [1, 2, 3]


def test_a_late_answer_is_added_to_the_round_that_it_was_for(registry, federation):
    federation["south"] = Slow(HonestSite("south", 700))
    name, _ = run(registry, job_of(aggregation="rounds = 2\ndeadline_seconds = 0.4"), federation)
    first = registry.run_detail(name).rounds[1].sites[1]
    assert first.status == "late"
    assert first.reason.endswith("after the round had closed")


def test_a_stopped_run_says_so_and_can_go_on(registry, federation):
    honest = federation["south"]

    def stop_then_answer(request):
        registry.stop(name)
        return None

    federation["south"] = stop_then_answer
    name = registry.submit(job_of(), model_of())
    registry.claim()
    grid = PlaygroundGrid(federation)
    assert execute(registry, name, grid, lambda: grid.node_ids) == "stopped"
    registry.resume(name)
    registry.claim()
    grid = PlaygroundGrid(federation | {"south": honest})
    assert execute(registry, name, grid, lambda: grid.node_ids) == "completed"


def test_a_completed_run_can_not_be_resumed(registry, federation):
    name, _ = run(registry, job_of(), federation)
    with pytest.raises(RunError, match=f"run {name} is completed"):
        registry.resume(name)


def test_runs_are_taken_in_the_order_in_which_they_were_asked_for(registry):
    names = [registry.submit(job_of(), model_of()) for _ in range(3)]
    assert [registry.claim() for _ in range(4)] == [*names, None]


def test_a_run_is_found_by_the_beginning_of_its_name(registry):
    name = registry.submit(job_of(), model_of())
    assert registry.find(name[:-3]) == name
    with pytest.raises(UsageError, match='there is no run "abdomen"'):
        registry.find("abdomen")
    registry.submit(job_of(), model_of())
    with pytest.raises(UsageError, match="may be any of"):
        registry.find("chest")


def test_a_model_file_that_was_changed_stops_the_run_instead_of_being_trained_on(registry, federation):
    name = registry.submit(job_of(), model_of())
    path = Path(registry.run_detail(name).models[0].path)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    registry.claim()
    grid = PlaygroundGrid(federation)
    assert execute(registry, name, grid, lambda: grid.node_ids) == "failed"
    assert "its SHA-256 differs" in registry.summary(name).reason


def test_a_checkpoint_of_another_architecture_is_refused(registry):
    name = registry.submit(job_of(), {"other": model_of()["a.bias"]})
    with pytest.raises(UpdateError, match="another architecture"):
        read_checkpoint(Path(registry.run_detail(name).models[0].path), model_of())


def test_a_checkpoint_that_is_no_safetensors_is_refused_unread(tmp_path):
    pickled = tmp_path / "model.pt"
    pickled.write_bytes(b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00")
    with pytest.raises(UpdateError, match="no safetensors file"):
        read_checkpoint(pickled, model_of())


def test_a_corrupt_database_is_told_in_one_line(tmp_path):
    path = tmp_path / "registry.sqlite"
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(DataError, match="the file is damaged: restore it from a backup") as caught:
        Registry(f"sqlite:///{path}", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_registry_of_a_newer_version_is_refused(tmp_path):
    url = f"sqlite:///{tmp_path / 'registry.sqlite'}"
    Registry(url, tmp_path).close()
    with create_engine(url).begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UsageError, match="newer Ward Round"):
        Registry(url, tmp_path)


def test_a_database_of_a_kind_that_is_not_there_is_told_in_one_line(tmp_path):
    with pytest.raises(UsageError, match="the registry's URL can't be used"):
        Registry("oracle8://somewhere", tmp_path)


def test_a_folder_that_is_not_there_is_told_in_one_line(tmp_path):
    with pytest.raises(DataError, match="unable to open database file"):
        Registry(f"sqlite:///{tmp_path / 'none' / 'registry.sqlite'}", tmp_path)


def test_the_migrations_make_exactly_the_tables_that_the_code_expects(tmp_path):
    url = f"sqlite:///{tmp_path / 'registry.sqlite'}"
    Registry(url, tmp_path).close()
    with create_engine(url).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


def test_sites_and_coordinator_are_seen_from_another_process(registry, tmp_path):
    registry.see_sites([SiteSeen("north", 2e9, True, 1e9), SiteSeen("south", None, False, None)])
    registry.see_coordinator(CoordinatorSeen(7, "host:1", 1.0, 2.0))
    code = (
        "import json, sys, dataclasses; from pathlib import Path; from server.registry import Registry\n"
        "r = Registry(sys.argv[1], Path('.'))\n"
        "print(json.dumps([[dataclasses.asdict(s) for s in r.list_sites()], dataclasses.asdict(r.coordinator())]))"
    )
    url = f"sqlite:///{tmp_path / 'registry.sqlite'}"
    out = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, check=True).stdout
    sites, coordinator = json.loads(out)
    assert sites == [dataclasses.asdict(site) for site in registry.list_sites()]
    assert coordinator["heartbeat"] == 2.0
    registry.see_coordinator(None)
    assert registry.coordinator() is None


def test_a_full_disk_leaves_the_last_commit_in_force(registry, federation, monkeypatch):
    import server.recorder

    real = server.recorder.write_model

    def full(path, *rest):
        if "00002" in path.name:
            raise RunError(f"{path}: the model can't be written (No space left on device)")
        return real(path, *rest)

    monkeypatch.setattr(server.recorder, "write_model", full)
    name, status = run(registry, job_of(), federation)
    assert (status, registry.summary(name).done) == ("failed", 1)
    assert "No space left" in registry.summary(name).reason
    monkeypatch.undo()
    registry.resume(name)
    registry.claim()
    grid = PlaygroundGrid(federation)
    assert execute(registry, name, grid, lambda: grid.node_ids) == "completed"
