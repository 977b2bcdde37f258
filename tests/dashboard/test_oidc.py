"""Signing in with an OpenID provider on loopback: whom it vouches for comes in, nobody by a token that is not right."""

from __future__ import annotations

import time
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from joserfc.jwk import ECKey
from openid_provider import SECRET, serving
from starlette.testclient import TestClient

from common.errors import UsageError
from server.dashboard.app import make_app
from server.dashboard.settings import read_settings
from server.record import coordinator_log

SETTINGS = """[openid]
issuer = "{issuer}"
client_id = "ward"
client_secret_file = "openid.secret"
redirect_url = "https://localhost:9443/oidc/return"
title = "Hospital login"
[openid.roles]
round-keepers = "coordinator"
round-readers = "viewer"
"""


@pytest.fixture(scope="module")
def app(ward):
    with serving() as provider:
        (ward.kit.folder / "dashboard.toml").write_text(SETTINGS.format(issuer=provider.issuer))
        (ward.kit.folder / "openid.secret").write_text(SECRET + "\n")
        yield make_app(ward.kit, pages=False), provider


@pytest.fixture
def door(app):
    made, provider = app
    provider.lies, provider.signs_with, provider.answers_with_issuer = {}, provider.key, provider.issuer
    provider.account |= {"sub": "42", "preferred_username": "berg", "roles": ["round-keepers"]}
    return TestClient(made, base_url="https://localhost:9443", follow_redirects=False), provider


def come_back(client, **changed):
    """Begin, sign in at the provider, and come back with its answer."""
    sent = client.get("/oidc/begin", params={"next": "/runs"})
    answer = urlsplit(httpx.get(sent.headers["location"]).headers["location"])
    query = {name: values[0] for name, values in parse_qs(answer.query).items()} | changed
    return client.get("/oidc/return", params=query)


def test_who_the_provider_vouches_for_comes_in_with_the_role_that_its_claim_gives(door, ward):
    client, provider = door
    back = come_back(client)
    assert (back.status_code, back.headers["location"]) == (303, "/runs")
    who = client.get("/api/v1/session").json()
    assert (who["name"], who["display"], who["role"]) == ("berg", "Anna Berg", "coordinator")
    kinds = [(entry.kind, entry.body["by"]) for entry in coordinator_log(ward.kit).entries()[-2:]]
    assert kinds == [("person", "openid:ward"), ("sign-in", "berg")]
    provider.account["roles"] = ["round-readers"]
    come_back(client)
    assert client.get("/api/v1/session").json()["role"] == "viewer"


@pytest.mark.parametrize(
    ("lies", "said"),
    [
        ({"nonce": "another"}, "another question"),
        ({"nonce": None}, "another question"),
        ({"iss": "http://127.0.0.1:1"}, "another issuer"),
        ({"aud": "someone-else"}, "another client"),
        ({"aud": ["ward", "x"], "azp": "x"}, "another client"),
        ({"exp": time.time() - 120}, "has ended"),
        ({"exp": None}, "has ended"),
        ({"iat": time.time() + 3600}, "from the future"),
        ({"sub": ""}, "names nobody"),
    ],
)
def test_a_token_that_is_not_the_answer_to_this_question_lets_nobody_in(door, lies, said):
    client, provider = door
    provider.lies = lies
    back = come_back(client)
    assert (back.status_code, said in back.text) == (401, True)
    assert client.get("/api/v1/session").status_code == 401


def test_a_token_signed_by_another_key_lets_nobody_in(door):
    client, provider = door
    provider.signs_with = ECKey.generate_key("P-256", {"kid": "1"})
    back = come_back(client)
    assert (back.status_code, "not signed by it" in back.text) == (401, True)


def test_an_answer_with_another_state_or_in_another_browser_lets_nobody_in(door, app):
    client, _ = door
    assert "no answer to a question of this browser" in come_back(client, state="x").text
    other = TestClient(app[0], base_url="https://localhost:9443", follow_redirects=False)
    sent = client.get("/oidc/begin")
    answer = urlsplit(httpx.get(sent.headers["location"]).headers["location"]).query
    assert other.get(f"/oidc/return?{answer}").status_code == 401
    assert client.get(f"/oidc/return?{answer}").status_code == 303


def test_an_answer_of_another_provider_or_a_wrong_code_lets_nobody_in(door):
    client, _ = door
    assert "from another provider" in come_back(client, iss="http://127.0.0.1:1").text
    assert "did not take the code" in come_back(client, code="x").text
    assert "no thanks" in come_back(client, error="access_denied", error_description="no thanks").text


def test_an_account_without_a_role_here_or_that_was_shut_out_is_turned_away(door, ward):
    client, provider = door
    provider.account |= {"sub": "43", "preferred_username": "olsen", "roles": ["cooks"]}
    assert come_back(client).status_code == 403
    provider.account |= {"roles": ["round-readers"]}
    assert come_back(client).status_code == 303
    ward.people.set_disabled("olsen", True)
    assert come_back(client).status_code == 403


def test_an_account_can_not_take_over_a_person_of_the_same_name(door):
    client, provider = door
    provider.account |= {"sub": "44", "preferred_username": "admin"}
    back = come_back(client)
    assert (back.status_code, "there is a person" in back.text) == (422, True)


def test_a_provider_that_is_away_is_told_in_a_line_on_the_sign_in_page(ward, app):
    (ward.kit.folder / "dashboard.toml").write_text(SETTINGS.format(issuer="http://127.0.0.1:9"))
    client = TestClient(make_app(ward.kit, pages=False), base_url="https://localhost:9443", follow_redirects=False)
    answer = client.get("/oidc/begin")
    assert (answer.status_code, "can&#39;t be asked at" in answer.text) == (503, True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("issuer = ", "issure = "), 'unknown key "openid.issure"; did you mean "openid.issuer"'),
        (("https://localhost", "http://elsewhere"), "an https:// address is needed"),
        (('"viewer"', '"boss"'), "openid.roles"),
        (("[openid]", "[openid"), "not valid TOML"),
    ],
)
def test_a_wrong_file_is_told_by_line_and_key(ward, change, said):
    text = SETTINGS.format(issuer="https://login.example").replace(*change)
    (ward.kit.folder / "dashboard.toml").write_text(text)
    with pytest.raises(UsageError) as told:
        read_settings(ward.kit)
    assert said in str(told.value)
    assert "dashboard.toml" in str(told.value)
