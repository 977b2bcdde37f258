"""The API: what it tells is what the registry has; what it does is in the audit log; nonsense is answered in a line."""

from __future__ import annotations

import hashlib
import json

import pytest
from playground import job_of, model_of
from safetensors.numpy import load
from ward import JOB, SITES, Ward, hours_later

from common.tampering import verify_log
from server.dashboard.security import CSRF_HEADER
from server.record import coordinator_log


def newest(ward: Ward) -> dict:
    entry = coordinator_log(ward.kit).entries()[-1]
    return {"kind_of_entry": entry.kind, **entry.body}


def test_the_federation_and_its_run_can_be_read(ward):
    client = ward.by_token("viewer", "read")
    federation = client.get("/api/v1/federation").json()
    assert [site["name"] for site in federation["sites"]] == list(SITES)
    listed = client.get("/api/v1/runs", params={"text": "chest", "status": "completed"}).json()
    assert (listed["total"], listed["items"][0]["name"]) == (1, ward.run)
    run = client.get(f"/api/v1/runs/{ward.run}").json()
    assert run["line"]["done"] == 3
    assert run["round_count"] == 6
    assert {model["kind"] for model in run["models"]} == {"best", "last"}
    page = client.get(f"/api/v1/runs/{ward.run}/rounds", params={"offset": 1, "limit": 2}).json()
    assert ([one["title"] for one in page["items"]], page["total"]) == (["round 1", "round 2"], 6)
    assert page["items"][0]["turns"][0]["site"] == "north"
    card = client.get(f"/api/v1/models/{ward.model}/card")
    assert ward.run in card.text


def test_a_run_in_full_is_what_the_command_shows(ward):
    from server.report import run_data

    told = ward.by_token("viewer").get(f"/api/v1/runs/{ward.run}/detail").json()
    kept = json.loads(json.dumps(run_data(ward.registry.run_detail(ward.run))))
    assert [one["sites"] for one in told["rounds"]] == [one["sites"] for one in kept["rounds"]]
    assert told["job"] == kept["job"]
    assert str(ward.kit.folder) not in json.dumps(told)


def test_a_model_is_fetched_as_it_was_kept_and_who_fetched_it_is_recorded(ward):
    answer = ward.by_session("coordinator").get(f"/api/v1/models/{ward.model}/file")
    assert answer.headers["X-Content-SHA256"] == hashlib.sha256(answer.content).hexdigest()
    assert answer.headers["content-disposition"].startswith(f'attachment; filename="{ward.run}-round-0000')
    assert set(load(answer.content)) == {"z.weight", "a.bias"}
    said = newest(ward)
    assert (said["kind_of_entry"], said["by"], said["via"], said["run"]) == (
        "download",
        "coordinator",
        "session",
        ward.run,
    )


def test_a_model_file_that_was_changed_on_disk_is_not_given_out(ward):
    path = next(ward.registry.folder.glob(f"{ward.run}/*.safetensors"))
    content = path.read_bytes()
    numbers = [m["id"] for m in ward.by_token("viewer").get("/api/v1/models").json()["items"]]
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        answers = [ward.by_token("admin").get(f"/api/v1/models/{number}/file") for number in numbers]
    finally:
        path.write_bytes(content)
    assert 409 in [answer.status_code for answer in answers]


def test_a_model_is_promoted_with_who_when_and_why(ward):
    client = ward.by_session("coordinator")
    wish = {"stage": "approved", "note": "looked at by the board"}
    model = client.post(f"/api/v1/models/{ward.model}/stage", json=wish).json()
    assert model["stage"] == "approved"
    assert (model["changes"][0]["by"], model["changes"][0]["note"]) == ("coordinator", wish["note"])
    assert (newest(ward)["kind_of_entry"], newest(ward)["stage"]) == ("stage", "approved")


def test_a_job_is_checked_with_every_fault_in_its_line(ward):
    client = ward.by_token("coordinator")
    assert client.post("/api/v1/jobs/check", json={"toml": JOB}).json()["name"] == "chest"
    wrong = client.post("/api/v1/jobs/check", json={"toml": JOB.replace("labels", "lables").replace('"c"', "3")})
    assert wrong.status_code == 422
    assert wrong.headers["content-type"] == "application/problem+json"
    assert len(wrong.json()["faults"]) >= 2
    assert 'did you mean "task.labels"' in str(wrong.json()["faults"])
    stranger = client.post("/api/v1/jobs/check", json={"toml": JOB.replace("north", "nrth")})
    assert 'did you mean "north"' in stranger.json()["detail"]


@pytest.mark.slow
def test_a_run_is_planned_started_stopped_and_resumed(ward):
    client = ward.by_session("coordinator")
    private = JOB + '[privacy]\nmechanism = "dp-sgd"\nepsilon = 4.0\n'
    plan = client.post("/api/v1/jobs/plan", json={"toml": private}).json()
    assert ([site["site"] for site in plan["sites"]], plan["fits"]) == (["north", "south"], True)
    started = client.post("/api/v1/runs", json={"toml": JOB})
    assert started.status_code == 201
    run = started.json()["run"]
    log = coordinator_log(ward.kit)
    asked, begun = log.entries()[-2:]
    assert (asked.kind, begun.kind, begun.body["run"]) == ("start", "started", run)
    assert asked.body["digest"] == ward.registry.run_detail(run).job.digest
    assert client.post(f"/api/v1/runs/{run}/stop").json() == {"run": run}
    assert client.get(f"/api/v1/runs/{run}").json()["line"]["status"] == "stopped"
    assert client.post(f"/api/v1/runs/{run}/stop").status_code == 409
    assert client.post(f"/api/v1/runs/{run}/resume").status_code == 200
    assert client.post(f"/api/v1/runs/{run}/resume").status_code == 409
    client.post(f"/api/v1/runs/{run}/stop")
    assert [entry.kind for entry in log.entries()[-3:]] == ["stop", "resume", "stop"]


def test_the_audit_log_verifies_and_is_read_by_admins_only_newest_first(ward):
    ward.by_session("admin").post("/api/v1/people/viewer/sign-out")
    page = ward.by_token("admin", "audit").get("/api/v1/audit", params={"limit": 1}).json()
    assert page["items"][0]["body"]["who"] == "viewer"
    log = coordinator_log(ward.kit)
    assert verify_log(log.path) == []
    assert "wr_" not in log.path.read_text()


def test_nothing_is_done_that_the_audit_log_can_not_tell(ward, monkeypatch):
    from common.audit import AuditLog
    from common.errors import DataError

    def full(*_):
        raise DataError("the disk is full")

    client = ward.by_session("admin")
    monkeypatch.setattr(AuditLog, "append", full)
    assert client.post("/api/v1/people", json={"name": "late", "role": "viewer"}).status_code == 503
    assert "late" not in [line.name for line in ward.people.list()]


def test_people_are_managed_and_the_last_admin_stays(ward):
    client = ward.by_session("admin")
    assert (
        client.post("/api/v1/people", json={"name": "Nils", "role": "viewer", "password": "x" * 12}).status_code == 201
    )
    assert client.patch("/api/v1/people/nils", json={"role": "coordinator"}).json()["role"] == "coordinator"
    assert client.patch("/api/v1/people/nils", json={"disabled": True}).json()["disabled"] is True
    refused = client.patch("/api/v1/people/admin", json={"disabled": True})
    assert (refused.status_code, "only admin" in refused.json()["detail"]) == (422, True)
    assert client.get("/api/v1/people").status_code == 200


def test_one_makes_a_token_for_oneself_within_ones_role_and_ends_it(ward):
    client = ward.by_session("viewer")
    beyond = client.post("/api/v1/tokens", json={"name": "x", "scopes": ["run"]})
    assert (beyond.status_code, "beyond that role" in beyond.json()["detail"]) == (422, True)
    issued = client.post("/api/v1/tokens", json={"name": "grafana", "scopes": ["metrics"], "days": 7}).json()
    script = ward.client(Authorization=f"Bearer {issued['secret']}")
    assert script.get("/metrics").status_code == 200
    assert script.get("/api/v1/runs").status_code == 403
    assert client.delete(f"/api/v1/tokens/{issued['token']['id']}").status_code == 204
    assert script.get("/metrics").status_code == 401


def test_a_token_ends_when_its_time_is_over(ward, monkeypatch):
    script = ward.by_token("viewer", "read")
    hours_later(monkeypatch, 23)
    assert script.get("/api/v1/runs").status_code == 200
    hours_later(monkeypatch, 2)
    assert script.get("/api/v1/runs").status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "arguments", "status"),
    [
        ("GET", "/api/v1/runs/no-such-run", {}, 404),
        ("GET", "/api/v1/runs/%00", {}, 400),
        ("GET", "/api/v1/runs/%ff%fe", {}, 404),
        ("GET", "/api/v1/runs/" + "a" * 9000, {}, 414),
        ("GET", "/api/v1/runs", {"params": {"text": "%_\\'\";--"}}, 200),
        ("GET", "/api/v1/runs", {"params": {"limit": "501"}}, 422),
        ("GET", "/api/v1/runs", {"params": {"offset": "1" * 40}}, 422),
        ("GET", "/api/v1/models/99999999999999", {}, 422),
        ("GET", "/api/v1/models/1e3", {}, 422),
        ("GET", "/api/v1/nothing", {}, 404),
        ("PUT", "/api/v1/runs", {}, 405),
        ("POST", "/api/v1/jobs/check", {"json": {"toml": "", "extra": 1}}, 422),
        ("POST", "/api/v1/jobs/check", {"content": b'{"toml": "\\ud800"}'}, 422),
        ("POST", "/api/v1/jobs/check", {"content": b"\xff\xfe{"}, 400),
        ("POST", "/api/v1/jobs/check", {"content": b"[" * 100000}, 400),
        ("POST", "/api/v1/jobs/check", {"content": b'{"toml": "' + b"x" * 1_000_001 + b'"}'}, 413),
    ],
)
def test_nonsense_is_answered_in_one_line(ward, method, path, arguments, status):
    headers = {"content-type": "application/json"} if "content" in arguments else {}
    answer = ward.by_token("admin").request(method, path, headers=headers, **arguments)
    assert answer.status_code == status
    if status >= 400:
        told = answer.json()
        assert (told["status"], answer.headers["content-type"]) == (status, "application/problem+json")
        assert "\n" not in told["detail"]
        assert len(told["detail"]) < 500


def test_a_body_without_a_length_is_cut_off_when_it_is_too_large(ward):
    def pieces():
        yield from (b"x" * 100_000 for _ in range(20))

    answer = ward.by_token("admin").post(
        "/api/v1/jobs/check", content=pieces(), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 413


def test_numbers_that_json_does_not_have_do_not_break_an_answer(ward):
    hopeless = JOB + '[privacy]\nmechanism = "dp-sgd"\nepsilon = 0.0001\n'
    assert ward.by_token("coordinator").post("/api/v1/jobs/plan", json={"toml": hopeless}).status_code in (200, 422)


def test_every_answer_bears_the_headers_that_protect_it(ward):
    for answer in (ward.client().get("/sign-in"), ward.client().get("/api/v1/runs"), ward.client().get("/nothing")):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe-inline" not in policy.split("style-src")[0]
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["strict-transport-security"].startswith("max-age=")
        assert answer.headers["referrer-policy"] == "same-origin"


def test_the_description_is_openapi_3_1_and_its_page_needs_nothing_from_elsewhere(ward):
    client = ward.by_token("viewer")
    described = client.get("/api/v1/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    assert "/api/v1/runs/{run}/stop" in described["paths"]
    page = client.get("/api/v1/docs").text
    assert "POST /api/v1/runs/{run}/stop" in page
    assert "http" not in page.replace("https://wardround", "")


def test_a_run_that_has_ended_tells_so_in_its_stream_and_closes_it(ward):
    with ward.by_token("viewer").stream("GET", f"/api/v1/runs/{ward.run}/events") as stream:
        text = "".join(stream.iter_text())
    assert text.startswith("event: change\n")
    told = json.loads(text.split("data: ")[1].splitlines()[0])
    assert (told["status"], told["done"], told["rounds"], told["end"]) == ("completed", 3, 3, True)


def test_two_runs_jobs_are_compared_key_by_key(ward):
    other = ward.registry.submit(job_of(SITES, "rounds = 5"), model_of())
    found = ward.by_token("viewer").get(f"/api/v1/runs/{ward.run}/diff/{other}").json()
    assert [one["key"] for one in found] == ["aggregation.rounds"]
    ward.registry.stop(other)


def test_a_change_by_cookie_needs_the_sessions_csrf_token(ward):
    client = ward.by_session("admin")
    for wrong in ("", "0" * 64):
        client.headers[CSRF_HEADER] = wrong
        refused = client.post("/api/v1/people/viewer/sign-out")
        assert (refused.status_code, CSRF_HEADER in refused.json()["detail"]) == (403, True)
