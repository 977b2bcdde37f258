"""The hospital's page: who gets in, what it shows of the site's own records, and what it never shows."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from client.approvals import decide, require_approval
from client.dashboard.access import COOKIE, hosts_of, new_secret
from client.dashboard.app import make_app
from client.dashboard.readmodel import SiteReadModel
from client.intake.importer import import_folder
from client.policy import Policy
from client.record import note_policy, site_log
from common.errors import WaitingError
from common.job import parse_job
from common.kit import read_kit
from simulations.federation import create_federation
from simulations.hospitals import make_hospitals, write_hospital

JOB = parse_job(
    'name = "study"\nsites = ["north", "south"]\n[task]\nlabels = ["well", "sick"]\n[data]\ncollection = "chest"\n'
    '[privacy]\nmechanism = "dp-sgd"\nepsilon = 4.0\n'
)
HOST = "127.0.0.1:8465"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The kit whose page is served: a process has one page, and so has this module."""
    federation = create_federation(
        tmp_path_factory.mktemp("federation"), ("north", "south"), collection="chest", private=True
    )
    labels = write_hospital(replace(make_hospitals(2)[0], patients=12), federation.data("north"), 0)
    import_folder(federation.site_kit("north"), "chest", federation.data("north"), labels)
    return read_kit(federation.site_kit("north"), "site")


@pytest.fixture
def kit(served, tmp_path):
    shutil.copytree(served.folder, tmp_path / "kit")
    return read_kit(tmp_path / "kit", "site")


@pytest.fixture(scope="module")
def secret():
    return new_secret()


@pytest.fixture(scope="module")
def alive(served, secret):
    app = make_app(served, secret=secret, hosts=hosts_of("127.0.0.1", 8465))
    with TestClient(app, base_url=f"http://{HOST}", follow_redirects=False) as client:
        yield client


@pytest.fixture
def browser(alive):
    alive.cookies.clear()
    return alive


def ask(kit, job=JOB):
    with pytest.raises(WaitingError):
        require_approval(site_log(kit.folder), Policy(collections=("chest",), approval="each-job"), job)


def test_nobody_gets_in_without_the_link(browser):
    for path in ("/", "/jobs", "/releases.csv", "/report.html", f"/jobs/{JOB.digest}"):
        answer = browser.get(path)
        assert answer.status_code == 401
        assert "needs its link" in answer.text
    assert browser.get("/?token=guessed").status_code == 401
    assert browser.get("/", headers={"Cookie": f"{COOKIE}=guessed"}).status_code == 401


def test_the_link_is_exchanged_for_a_cookie_that_scripts_and_other_sites_cant_use(browser, secret):
    answer = browser.get(f"/jobs?token={secret}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/jobs")  # not the secret, nor another host
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert secret.lower() not in cookie
    assert browser.get("/releases.csv").status_code == 200


def test_another_name_for_this_address_is_refused(browser, secret):
    browser.get(f"/?token={secret}")
    assert browser.get("/releases.csv", headers={"Host": "evil.example:8465"}).status_code == 421
    assert browser.get("/releases.csv", headers={"Host": "localhost:8465"}).status_code == 200


def test_a_page_of_another_site_opens_no_socket_here(browser, secret):
    browser.get(f"/?token={secret}")
    with (
        pytest.raises(WebSocketDisconnect) as ended,
        browser.websocket_connect(
            "/_nicegui_ws/socket.io/?EIO=4&transport=websocket",
            headers={"Host": HOST, "Origin": "https://evil.example"},
        ),
    ):
        pass  # it is refused before it opens
    assert ended.value.code == 4403


def test_answers_may_not_be_framed_kept_or_run_scripts_of_others(browser, secret):
    browser.get(f"/?token={secret}")
    headers = browser.get("/").headers
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["cache-control"] == "no-store"


def test_a_job_waits_then_is_decided_and_both_are_seen_at_once(kit):
    read = SiteReadModel(kit)
    assert read.jobs() == ()
    before = read.version()
    ask(kit)
    assert read.version() > before
    (waiting,) = read.jobs()
    assert (waiting.asked.state, waiting.refusal) == ("waiting", "")
    assert "epsilon 4" in waiting.cost
    assert read.overview().waiting == 1
    decide(site_log(kit.folder), JOB, "denied", by="Ada", note="no vote yet")
    assert read.job(JOB.digest).asked.decision.by == "Ada"
    assert read.overview().waiting == 0


def test_a_job_that_the_policy_refuses_anyway_says_so(kit):
    ask(kit, JOB.model_copy(update={"privacy": JOB.privacy.model_copy(update={"epsilon": 9.5})}))
    (waiting,) = SiteReadModel(kit).jobs()
    assert "epsilon 9.5 is over the policy's 8 per run" in waiting.refusal


def test_counts_are_the_catalogs_and_no_pseudonym_is_told(kit):
    (chest,) = SiteReadModel(kit).collections()
    assert chest.summary.patients == 12
    assert sum(split.patients for split in chest.summary.splits.values()) == 12
    assert sum(chest.reasons.values()) == chest.summary.refused


def test_each_collection_has_its_quality_report_and_nothing_else_of_the_kit_can_be_read(browser, secret):
    browser.get(f"/?token={secret}")
    assert "Quality of “chest”" in browser.get("/quality/chest").text
    for other in ("none", "..%2Fkit.toml", "%2e%2e"):
        assert browser.get(f"/quality/{other}").status_code == 404


def test_a_damaged_audit_log_is_one_line_and_no_traceback(served, browser, secret):
    note_policy(site_log(served.folder), served.folder)
    (served.folder / "audit.jsonl").write_bytes(b"{}\n")
    browser.get(f"/?token={secret}")
    answer = browser.get("/releases.csv")
    assert answer.status_code == 503
    assert "the audit log is damaged" in answer.text
    assert "Traceback" not in answer.text
