"""People: what is kept of their secrets, who may do what, and `wardround people` on the coordinator's machine."""

from __future__ import annotations

import json
import time

import pytest
from argon2 import PasswordHasher
from sqlalchemy import text, update
from typer.testing import CliRunner

from common.errors import ForbiddenError, NotFoundError, SignInError, SlowDownError, UsageError
from server.people import People
from server.people_cli import app
from server.record import coordinator_log
from server.registry import Registry, open_registry
from server.roles import NEEDS, Person, scopes_of
from server.schema import people as table

PASSWORD = "a horse, a battery, a staple"


@pytest.fixture
def people(registry):
    found = People(registry.database)
    found.add("Anna", "admin", by="test", password=PASSWORD)
    return found


def test_nothing_that_lets_one_in_is_in_the_database(people, registry, tmp_path):
    session = people.open_session("anna", "10.0.0.1")
    _, token = people.issue_token("anna", "script", ["read"], 1)
    people.verify("anna", PASSWORD, "10.0.0.1")
    with pytest.raises(SignInError):
        people.verify("a password typed as a name", "x", "10.0.0.1")
    registry.close()
    content = b"".join(path.read_bytes() for path in tmp_path.glob("registry.sqlite*"))
    for secret in (PASSWORD, session, token, "typed as a name"):
        assert secret.encode() not in content
    assert b"$argon2id$" in content


def test_an_unknown_name_takes_as_long_as_a_wrong_password(people, monkeypatch):
    hashed = []
    verify = PasswordHasher.verify
    monkeypatch.setattr(PasswordHasher, "verify", lambda *given: hashed.append(1) or verify(*given))
    for name in ("anna", "nobody", "no name at all!"):
        with pytest.raises(SignInError, match="the name or the password is wrong"):
            people.verify(name, "wrong", "10.0.0.1")
    assert len(hashed) == 3


def test_a_password_of_weaker_parameters_is_hashed_anew_when_it_is_next_right(people, registry):
    weak = PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash(PASSWORD)
    with registry.database.write() as connection:
        connection.execute(update(table).values(password=weak))
    assert people.verify("anna", PASSWORD, "10.0.0.1") == "anna"
    with registry.database.read() as connection:
        kept = connection.execute(text("SELECT password FROM people")).scalar_one()
    assert kept != weak
    assert people.verify("anna", PASSWORD, "10.0.0.1") == "anna"


def test_failed_attempts_are_remembered_by_a_new_process_and_forgiven_with_time(
    people, registry, tmp_path, monkeypatch
):
    for _ in range(5):
        with pytest.raises(SignInError):
            people.verify("anna", "wrong", "10.0.0.1")
    again = People(Registry(f"sqlite:///{tmp_path / 'registry.sqlite'}", tmp_path / "models").database)
    with pytest.raises(SlowDownError, match="wait") as told:
        again.verify("anna", PASSWORD, "10.9.9.9")
    assert 0 < told.value.wait <= 300
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 301)
    assert again.verify("ANNA ", PASSWORD, "10.0.0.1") == "anna"


def test_a_role_has_every_scope_of_those_below_it(people):
    assert scopes_of("viewer") < scopes_of("coordinator") < scopes_of("admin") == set(NEEDS)
    vera = Person("vera", "Vera", "viewer", scopes_of("viewer"), "session")
    with pytest.raises(ForbiddenError, match='vera is a viewer: this needs the role "coordinator"'):
        vera.require("run")
    with pytest.raises(ForbiddenError, match='this token has no scope "read"'):
        Person("vera", "Vera", "viewer", frozenset({"metrics"}), "token").require("read")


@pytest.mark.parametrize("name", ["", "a b", "-x", "x" * 65, "a\0", "terminal:root", "å"])
def test_a_name_that_could_be_taken_for_something_else_is_refused(people, name):
    with pytest.raises(UsageError, match="a person's name"):
        people.add(name, "viewer", by="test")


def test_the_only_admin_can_not_be_lost(people):
    for change in (lambda: people.set_role("anna", "viewer"), lambda: people.set_disabled("anna", True)):
        with pytest.raises(UsageError, match="only admin"):
            change()
    people.add("berta", "admin", by="test")
    people.set_role("anna", "viewer")
    assert people.get("anna").role == "viewer"


def test_a_token_ends_with_its_person_and_can_not_have_more_than_they_have(people):
    people.add("vera", "viewer", by="test")
    with pytest.raises(UsageError, match="beyond that role"):
        people.issue_token("vera", "x", ["read", "run"], 1)
    for scopes, days in (([], 1), (["everything"], 1), (["read"], 0), (["read"], 400)):
        with pytest.raises(UsageError):
            people.issue_token("vera", "x", scopes, days)
    _, secret = people.issue_token("vera", "x", ["read"], 1)
    assert people.token(secret).scopes == {"read"}
    people.set_disabled("vera", True)
    people.set_disabled("vera", False)
    assert people.token(secret) is None
    assert people.token("") is people.token("wr_x") is None


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


def wardround_people(kit, *words, typed=""):
    done = CliRunner().invoke(app, [*words, "--kit", str(kit.folder)], input=typed)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_the_first_admin_is_made_on_the_coordinators_machine_and_it_is_recorded(kit):
    assert json.loads(wardround_people(kit, "list", "--json")) == []
    said = wardround_people(kit, "add", "Anna", "--role", "admin", "--password-stdin", typed=PASSWORD + "\n")
    assert "anna may sign in as admin" in said
    assert People(open_registry(kit).database).verify("anna", PASSWORD, "") == "anna"
    entry = coordinator_log(kit).entries()[-1]
    assert (entry.kind, entry.body["who"], entry.body["role"]) == ("person", "anna", "admin")
    assert entry.body["by"].startswith("terminal:")
    assert PASSWORD not in coordinator_log(kit).path.read_text()


def test_a_short_password_and_an_unknown_role_or_person_change_nothing(kit):
    with pytest.raises(UsageError, match="12 to 500 characters"):
        wardround_people(kit, "add", "anna", "--password-stdin", typed="short\n")
    with pytest.raises(UsageError, match='no role "boss"'):
        wardround_people(kit, "add", "anna", "--role", "boss", "--password-stdin", typed=PASSWORD + "\n")
    with pytest.raises(UsageError, match="--password-stdin"):
        wardround_people(kit, "add", "anna")
    for words in (("role", "anna", "admin"), ("disable", "anna"), ("password", "anna"), ("sign-out", "anna")):
        with pytest.raises(NotFoundError, match='no person "anna"'):
            wardround_people(kit, *words)
    assert json.loads(wardround_people(kit, "list", "--json")) == []


def test_tokens_are_made_listed_and_ended_on_the_coordinators_machine(kit):
    wardround_people(kit, "add", "anna", "--role", "admin", "--password-stdin", typed=PASSWORD + "\n")
    secret = wardround_people(kit, "token", "anna", "--for", "prometheus", "--scope", "metrics").splitlines()[0]
    people = People(open_registry(kit).database)
    assert people.token(secret).scopes == {"metrics"}
    listed = json.loads(wardround_people(kit, "tokens", "anna", "--json"))
    assert [one["name"] for one in listed] == ["prometheus"]
    assert secret not in json.dumps(listed)
    wardround_people(kit, "tokens", "--revoke", str(listed[0]["id"]))
    assert people.token(secret) is None
