"""The coordinator is a witness of each site's audit log: what goes back or changes hands does not pass unseen."""

import dataclasses

import pytest
from playground import HonestSite, PlaygroundGrid, job_of, model_of

from common.audit import AuditLog
from common.errors import UsageError
from common.update import Answer
from server.execution import execute
from server.registry import Registry
from server.witness import see_head


@pytest.fixture
def registry(tmp_path):
    return Registry(f"sqlite:///{tmp_path / 'registry.sqlite'}", tmp_path / "models")


@pytest.fixture
def log(tmp_path):
    return AuditLog(tmp_path / "audit.jsonl", tmp_path / "audit.key", "north")


def test_the_newest_head_is_kept_and_shown_again(registry, log):
    for number in range(3):
        newest = log.append("started", {"number": number}).to_json()
        assert see_head(registry, "north", newest) == ""
    assert registry.witness("north") == newest
    assert see_head(registry, "north", newest) == ""
    assert registry.witness("south") == ""


def test_a_log_that_was_put_back_is_named_and_does_not_become_its_own_witness(registry, log):
    old = log.append("started", {}).to_json()
    copy = log.path.read_bytes()
    newest = log.append("started", {}).to_json()
    assert see_head(registry, "north", newest) == ""
    assert "rolled back" in see_head(registry, "north", old)
    log.path.write_bytes(copy)
    rewritten = log.append("started", {"another": "past"}).to_json()
    assert "rewritten" in see_head(registry, "north", rewritten)
    assert registry.witness("north") == newest


def test_another_key_and_a_wrong_signature_are_named(registry, log, tmp_path):
    head = log.append("started", {})
    other = AuditLog(tmp_path / "other.jsonl", tmp_path / "other.key", "north").append("started", {})
    assert see_head(registry, "north", head.to_json()) == ""
    assert "another key" in see_head(registry, "north", other.to_json())
    forged = dataclasses.replace(head, sequence=99, hash="0" * 64)
    assert "not signed" in see_head(registry, "north", forged.to_json())
    assert "no head" in see_head(registry, "north", "{}")


def test_a_site_that_lost_its_log_may_begin_anew_when_a_person_says_so(registry, log, tmp_path):
    see_head(registry, "north", log.append("started", {}).to_json())
    registry.forget_witness("north")
    other = AuditLog(tmp_path / "other.jsonl", tmp_path / "other.key", "north").append("started", {})
    assert see_head(registry, "north", other.to_json()) == ""
    with pytest.raises(UsageError, match="no head"):
        registry.forget_witness("south")


def test_every_request_carries_the_witness_of_its_own_site_and_a_rollback_is_in_the_runs_record(registry, log):
    honest, heads = HonestSite("north", 2400), []

    def watched(request):
        assert request.witness == (heads[-1] if heads else "")
        heads.append(log.append("release", {"round": request.number}).to_json())
        shown = heads[0] if request.kind == "evaluate" and request.split == "test" else heads[-1]
        return dataclasses.replace(honest(request), head=shown)

    federation = {"north": watched, "south": HonestSite("south", 700)}
    name = registry.submit(job_of(["north", "south"]), model_of())
    registry.claim(name)
    grid = PlaygroundGrid(federation)
    assert execute(registry, name, grid, lambda: grid.node_ids) == "completed"
    assert {request.witness for site, request in grid.asked if site == "south"} == {""}
    (warning,) = registry.run_detail(name).warnings
    assert "north's audit log was rolled back" in warning


def test_a_site_that_says_itself_that_its_log_went_back_is_named_in_the_runs_warnings(registry, log):
    registry.keep_witness("north", log.append("started", {}).to_json())
    reason = "this site's audit log does not hold entry 9 as the coordinator witnessed it"
    federation = {"north": lambda request: Answer("north", "", 0, "refused", reason), "south": HonestSite("south", 700)}
    name = registry.submit(job_of(["north", "south"]), model_of())
    registry.claim(name)
    grid = PlaygroundGrid(federation)
    execute(registry, name, grid, lambda: grid.node_ids)
    assert any("does not show the audit log" in warning for warning in registry.run_detail(name).warnings)
