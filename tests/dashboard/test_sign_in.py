"""Signing in with a password: what a browser is given, what ends it, and what does not get in."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import text
from ward import PASSWORD, hours_later

from server.dashboard.sign_in import local
from server.passwords import LIMITS
from server.record import coordinator_log

COOKIE = "__Host-wardround"


@pytest.fixture(autouse=True)
def forgiven(ward):
    with ward.registry.database.write() as connection:
        connection.execute(text("DELETE FROM attempts"))


def form(client, **changed):
    csrf = re.search(r'name="csrf" value="(\w+)"', client.get("/sign-in").text)[1]
    return {"name": "viewer", "password": PASSWORD, "csrf": csrf, "next": "/runs"} | changed


def enter(client, **changed):
    return client.post("/sign-in", data=form(client, **changed))


def test_a_page_asks_who_is_there_and_goes_on_where_one_wanted_to_go(ward):
    client = ward.client()
    sent = client.get("/runs?text=a%20b")
    assert (sent.status_code, sent.headers["location"]) == (303, "/sign-in?next=%2Fruns%3Ftext%3Da%2520b")
    assert 'value="/runs?text=a%20b"' in client.get(sent.headers["location"]).text
    done = enter(client)
    assert (done.status_code, done.headers["location"]) == (303, "/runs")
    assert client.get("/api/v1/session").json()["name"] == "viewer"
    entry = coordinator_log(ward.kit).entries()[-1]
    assert (entry.kind, entry.body) == ("sign-in", {"by": "viewer", "address": "testclient", "means": "password"})


def test_the_cookie_is_out_of_reach_of_scripts_other_sites_and_plain_http(ward):
    cookies = [value for name, value in enter(ward.client()).headers.multi_items() if name == "set-cookie"]
    session = next(cookie for cookie in cookies if cookie.startswith(f"{COOKIE}="))
    flags = {part.strip().lower() for part in session.split(";")[1:]}
    assert {"httponly", "secure", "samesite=lax", "path=/"} <= flags
    assert not any(flag.startswith("domain") for flag in flags)


@pytest.mark.parametrize("name", ["viewer", "nobody", "", "\x00", "x" * 150, "ﬀ'--"])
def test_a_wrong_name_or_password_is_told_in_the_same_words(ward, name):
    answer = enter(ward.client(), name=name, password="not this one")
    assert (answer.status_code, "the name or the password is wrong" in answer.text) == (401, True)
    assert COOKIE not in answer.cookies


def test_after_five_wrong_passwords_not_even_the_right_one_gets_in_until_one_has_waited(ward, monkeypatch):
    client = ward.client()
    assert [enter(client, password="wrong").status_code for _ in range(6)] == [401] * 5 + [429]
    stopped = enter(client)
    assert (stopped.status_code, 200 < int(stopped.headers["retry-after"]) <= 300) == (429, True)
    hours_later(monkeypatch, 0.1)
    assert enter(client).status_code == 303


def test_an_address_that_tries_many_names_is_stopped_too(ward, monkeypatch):
    monkeypatch.setitem(LIMITS, "address", 3)
    client = ward.client()
    answers = [enter(client, name=f"name{number}").status_code for number in range(4)]
    assert answers == [401] * 3 + [429]


def test_a_session_ends_when_nothing_is_done_in_it_and_after_half_a_day_in_any_case(ward, monkeypatch):
    client = ward.client()
    enter(client)
    for minutes in range(20, 12 * 60, 20):
        hours_later(monkeypatch, 20 / 60)
        assert client.get("/api/v1/session").status_code == 200, minutes
    hours_later(monkeypatch, 21 / 60)
    assert client.get("/api/v1/session").status_code == 401
    enter(client)
    hours_later(monkeypatch, 31 / 60)
    assert client.get("/runs").headers["location"].startswith("/sign-in")


def test_what_an_open_page_asks_by_itself_does_not_keep_a_session_alive(ward, monkeypatch):
    client = ward.client()
    enter(client)
    for _ in range(2):
        hours_later(monkeypatch, 20 / 60)
        last = client.get("/api/v1/session", headers={"Sec-Fetch-Mode": "cors"})
    assert last.status_code == 401


def test_signing_out_ends_the_session_at_once_for_whoever_has_the_cookie(ward):
    client = ward.client()
    enter(client)
    stolen = ward.client()
    stolen.cookies.set(COOKIE, client.cookies[COOKIE])
    csrf = client.get("/api/v1/session").json()["csrf"]
    assert client.post("/sign-out", data={"csrf": "wrong"}).status_code == 403
    assert stolen.get("/api/v1/session").status_code == 200
    assert client.post("/sign-out", data={"csrf": csrf}).headers["location"] == "/sign-in"
    assert stolen.get("/api/v1/session").status_code == 401


def test_a_session_ends_at_once_when_its_person_is_shut_out_or_gets_another_password(ward):
    ward.people.add("brief", "viewer", by="test", password=PASSWORD)
    client = ward.client()
    enter(client, name="Brief")
    ward.people.set_disabled("brief", True)
    assert client.get("/api/v1/session").status_code == 401
    assert enter(client, name="brief").status_code == 401
    ward.people.set_disabled("brief", False)
    assert enter(client, name="brief").status_code == 303
    ward.people.set_password("brief", "another long password")
    assert client.get("/api/v1/session").status_code == 401


def test_a_session_that_was_planted_before_signing_in_is_not_the_one_signed_in(ward):
    client = ward.client()
    planted = ward.people.open_session("viewer", "elsewhere")
    client.cookies.set(COOKIE, planted)
    client.cookies.set(COOKIE, "x" * 43)
    data = form(client)
    client.cookies.set(COOKIE, planted)
    assert client.post("/sign-in", data=data).status_code == 303
    assert client.cookies.get(COOKIE, domain="localhost.local") != planted
    attacker = ward.client()
    attacker.cookies.set(COOKIE, planted)
    assert attacker.get("/api/v1/session").status_code == 401


@pytest.mark.parametrize("csrf", ["", "0" * 64, "ü"])
def test_a_form_that_this_browser_was_not_given_is_refused(ward, csrf):
    answer = enter(ward.client(), csrf=csrf)
    assert (answer.status_code, "out of date" in answer.text) == (403, True)


@pytest.mark.parametrize(
    "headers", [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}]
)
def test_what_another_sites_page_sends_is_refused(ward, headers):
    client = ward.by_session("admin")
    assert client.post("/sign-in", data=form(ward.client()), headers=headers).status_code == 403
    assert client.post("/api/v1/people/viewer/sign-out", headers=headers).status_code == 403


@pytest.mark.parametrize(
    "target", ["//evil.example", "https://evil.example", "/\\evil.example", "evil", "/a\r\nb", "/ü", "javascript:x", ""]
)
def test_nobody_is_sent_to_another_server_after_signing_in(target):
    assert local(target) == "/"
    assert local("/runs?text=a") == "/runs?text=a"


def test_what_is_typed_is_shown_as_text(ward):
    page = enter(ward.client(), name='"><script>alert(1)</script>', password="wrong").text
    assert "<script>alert" not in page


def test_ones_own_password_is_changed_with_the_old_one_only(ward):
    ward.people.add("own", "viewer", by="test", password=PASSWORD)
    client = ward.by_session("own")
    wish = {"password": "yet another password"}
    assert client.put("/api/v1/people/own/password", json=wish | {"old": "wrong"}).status_code == 401
    assert client.put("/api/v1/people/own/password", json=wish | {"old": PASSWORD}).status_code == 204
    assert enter(ward.client(), name="own", password=wish["password"]).status_code == 303
    assert client.get("/api/v1/session").status_code == 401
