"""The command line's client, over real HTTPS on loopback with the kit's own certificates."""

from __future__ import annotations

import io
import json
import socket
import ssl
import threading
import time

import httpx
import pytest
import uvicorn
from playground import HonestSite, PlaygroundGrid, job_of, model_of
from rich.console import Console
from ward import JOB, SITES

from common.cli import main
from common.errors import ForbiddenError, LinkError, NotFoundError, RunError, SignInError, UsageError
from server.execution import execute
from server.follow import follow
from server.remote import Remote, find_remote
from server.report import run_data


@pytest.fixture(scope="module")
def server(ward):
    listener = socket.create_server(("127.0.0.1", 0))
    keys = {"ssl_keyfile": ward.kit.key, "ssl_certfile": ward.kit.certificate}
    running = uvicorn.Server(uvicorn.Config(ward.app, log_level="error", timeout_graceful_shutdown=1, **keys))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"https://localhost:{listener.getsockname()[1]}"
    running.should_exit = True
    thread.join()


@pytest.fixture
def remote(ward, server):
    made = Remote(server, ward.token("coordinator"), ward.kit.authority_certificate)
    yield made
    made.close()


def test_runs_and_sites_are_told_as_the_registry_has_them(ward, remote):
    assert remote.list_runs() == ward.registry.list_runs()
    assert remote.find(ward.run[:7]) == ward.run
    assert [site.name for site in remote.list_sites()] == list(SITES)
    assert remote.coordinator() is None
    told, kept = (run_data(one.run_detail(ward.run)) for one in (remote, ward.registry))
    assert {**told, "models": []} == {**kept, "models": []}
    assert all(model["path"].startswith("https://") for model in told["models"])


def test_a_run_is_followed_from_afar_until_it_ends(ward, remote):
    name = ward.registry.submit(job_of(SITES), model_of())

    def run():
        ward.registry.claim(name)
        grid = PlaygroundGrid({site: HonestSite(site, 100) for site in SITES})
        execute(ward.registry, name, grid, lambda: grid.node_ids)

    thread = threading.Thread(target=run)
    thread.start()
    written = io.StringIO()
    ended = follow(remote, name, Console(file=written, width=200))
    thread.join()
    assert ended.status == "completed"
    assert "round 3: 3/3 sites" in written.getvalue()


def test_the_commands_ask_a_coordinator_elsewhere_when_a_server_is_named(ward, server, monkeypatch, tmp_path, capsys):
    def said(*words):
        with pytest.raises(SystemExit, match="0"):
            main(words)
        return capsys.readouterr().out

    (tmp_path / "job.toml").write_text(JOB)
    far = ("--server", server, "--ca", str(ward.kit.authority_certificate))
    monkeypatch.setenv("WARDROUND_TOKEN", ward.token("coordinator"))
    run = said("run", str(tmp_path / "job.toml"), *far).strip()
    assert "asked to stop" in said("runs", *far, "stop", run)
    assert (ward.registry.summary(run).status, json.loads(said("runs", *far, "--json"))[0]["name"]) == ("stopped", run)
    assert json.loads(said("runs", "show", run, *far, "--json"))["name"] == run
    monkeypatch.setenv("WARDROUND_SERVER", server)
    monkeypatch.setenv("WARDROUND_CA", str(ward.kit.authority_certificate))
    assert [site["name"] for site in json.loads(said("sites", "--json"))["sites"]] == list(SITES)
    kept = said("runs", "--kit", str(ward.kit.folder), "--json")  # a kit that is named beats the environment
    assert kept == said("runs", "--json")


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("sites", "--witness", "north"), "--kit"),
        (("runs", "--kit", "kit"), "name one of them"),
        (("run", "--resume", "x", "--from-model", "m.safetensors"), "--from-model"),
    ],
)
def test_what_is_possible_on_the_coordinators_machine_only_is_said(server, monkeypatch, capsys, words, fault):
    monkeypatch.setenv("WARDROUND_TOKEN", "wr_x")
    with pytest.raises(SystemExit) as ended:
        main((*words, "--server", server))
    assert ended.value.code == 2
    assert fault in capsys.readouterr().err


@pytest.mark.slow
def test_a_job_is_started_stopped_and_resumed_from_afar(ward, remote):
    run = remote.start(JOB)
    remote.stop(run)
    assert remote.summary(run).status == "stopped"
    remote.resume(run)
    assert ward.registry.summary(run).status == "queued"
    remote.stop(run)


def test_what_goes_wrong_is_told_in_a_line_with_the_commands_own_errors(ward, server, remote):
    with pytest.raises(NotFoundError, match='no run "nothing"'):
        remote.find("nothing")
    with pytest.raises(RunError, match="is completed already"):
        remote.stop(ward.run)
    with pytest.raises(UsageError) as faults:
        remote.start(JOB.replace("labels", "lables").replace('"c"', "3"))
    assert len(str(faults.value).splitlines()) >= 2
    ca = ward.kit.authority_certificate
    with pytest.raises(SignInError, match="WARDROUND_TOKEN"):
        Remote(server, "wr_wrong", ca).list_runs()
    with pytest.raises(ForbiddenError, match='role "coordinator"'):
        Remote(server, ward.token("viewer"), ca).stop(ward.run)
    with pytest.raises(LinkError, match="--ca"):
        Remote(server, "wr_x").list_runs()
    with pytest.raises(LinkError, match="can't be reached"):
        Remote("https://127.0.0.1:1", "wr_x", ca).list_runs()


def test_an_address_a_token_or_an_authority_that_can_not_be_is_told_before_anything_is_asked(monkeypatch, tmp_path):
    for name in ("WARDROUND_SERVER", "WARDROUND_TOKEN", "WARDROUND_CA"):
        monkeypatch.delenv(name, raising=False)
    assert find_remote(None, None) is None
    with pytest.raises(UsageError, match="WARDROUND_TOKEN"):
        find_remote("https://localhost:1", None)
    monkeypatch.setenv("WARDROUND_TOKEN", "wr_x")
    with pytest.raises(UsageError, match="https://HOST:9443"):
        find_remote("http://localhost:1", None)
    with pytest.raises(UsageError, match="can't be read"):
        find_remote("https://localhost:1", tmp_path / "none.crt")


def test_a_stream_tells_of_a_change_as_it_happens_and_ends_with_its_token(ward, server):
    line, secret = ward.people.issue_token("viewer", "stream", ["read"], 1)
    verify = ssl.create_default_context(cafile=ward.kit.authority_certificate)
    with (
        httpx.Client(verify=verify) as client,
        client.stream("GET", f"{server}/api/v1/events", headers={"Authorization": f"Bearer {secret}"}) as stream,
    ):
        lines = stream.iter_lines()
        assert next(lines) == "event: change"
        began = time.monotonic()
        ward.registry.stop(ward.registry.submit(job_of(SITES), model_of()))
        assert any(text == "event: change" for text in lines)
        assert time.monotonic() - began < 5
        ward.people.revoke_token(line.id)
        assert len(list(lines)) < 50  # it ends
