"""Each role and each token scope by each endpoint. They are read from the app: one without a row here fails."""

from __future__ import annotations

import pytest
from fastapi.routing import APIRoute, iter_route_contexts
from ward import JOB, PASSWORD

from server.dashboard.security import OPEN, Needs, NeedsSession, signed_in
from server.roles import NEEDS, ROLES, SCOPES, scopes_of

READ, RUN, MODELS, PEOPLE, AUDIT, METRICS = ("read", "run", "models", "people", "audit", "metrics")
ANYBODY, SESSION, NOBODY = "who is signed in", "a session", "nobody need be signed in"
MATRIX = {
    "GET /api/v1/federation": READ,
    "GET /api/v1/session": ANYBODY,
    "GET /api/v1/openapi.json": ANYBODY,
    "GET /api/v1/docs": ANYBODY,
    "GET /api/v1/runs": READ,
    "POST /api/v1/runs": RUN,
    "POST /api/v1/jobs/check": RUN,
    "POST /api/v1/jobs/plan": RUN,
    "GET /api/v1/runs/{run}": READ,
    "GET /api/v1/runs/{run}/rounds": READ,
    "GET /api/v1/runs/{run}/detail": READ,
    "GET /api/v1/runs/{run}/log": READ,
    "GET /api/v1/runs/{run}/diff/{other}": READ,
    "GET /api/v1/runs/{run}/events": READ,
    "POST /api/v1/runs/{run}/stop": RUN,
    "POST /api/v1/runs/{run}/resume": RUN,
    "GET /api/v1/log": READ,
    "GET /api/v1/participation": READ,
    "GET /api/v1/events": READ,
    "GET /api/v1/models": READ,
    "GET /api/v1/models/{number}": READ,
    "GET /api/v1/models/{number}/card": READ,
    "GET /api/v1/models/{number}/file": MODELS,
    "POST /api/v1/models/{number}/stage": MODELS,
    "GET /api/v1/people": PEOPLE,
    "POST /api/v1/people": PEOPLE,
    "PATCH /api/v1/people/{name}": PEOPLE,
    "PUT /api/v1/people/{name}/password": SESSION,
    "POST /api/v1/people/{name}/sign-out": ANYBODY,
    "GET /api/v1/tokens": ANYBODY,
    "POST /api/v1/tokens": SESSION,
    "DELETE /api/v1/tokens/{number}": ANYBODY,
    "GET /api/v1/audit": AUDIT,
    "GET /metrics": METRICS,
    "GET /health": NOBODY,
    "GET /sign-in": NOBODY,
    "POST /sign-in": NOBODY,
    "POST /sign-out": NOBODY,
}
ENDLESS = ("GET /api/v1/events",)
BODIES = {
    "POST /api/v1/runs": {"toml": "name = 1"},
    "POST /api/v1/jobs/check": {"toml": JOB},
    "POST /api/v1/jobs/plan": {"toml": "name = 1"},
    "POST /api/v1/models/{number}/stage": {"stage": "candidate"},
    "POST /api/v1/people": {"name": "!", "role": "viewer"},
    "PATCH /api/v1/people/{name}": {"role": "viewer"},
    "PUT /api/v1/people/{name}/password": {"password": PASSWORD, "old": "wrong"},
    "POST /api/v1/tokens": {"name": "x", "scopes": ["read"], "days": 1},
}


def endpoints(app):
    """Every endpoint with its method; what is mounted serves files."""
    found = [one for one in iter_route_contexts(app.routes) if isinstance(one.original_route, APIRoute)]
    return {f"{method} {one.path}": one.original_route for one in found for method in one.original_route.methods}


def dependencies(dependant):
    return [one.call for one in dependant.dependencies] + [c for d in dependant.dependencies for c in dependencies(d)]


def ask(client, endpoint, ward):
    method, path = endpoint.split(" ")
    path = path.format(run=ward.run, other=ward.run, number=ward.model if "models" in path else 999999, name="nobody")
    return client.request(method, path, json=BODIES.get(endpoint)).status_code


def test_every_endpoint_has_a_row_here_and_none_is_without_its_check(ward):
    found = endpoints(ward.app)
    assert {name for name in found if not name.split(" ")[1].startswith("/oidc/")} == set(MATRIX)
    for name, needed in MATRIX.items():
        calls = dependencies(found[name].dependant)
        scopes = [call.scope for call in calls if isinstance(call, Needs)]
        checks = {
            ANYBODY: signed_in in calls,
            SESSION: any(isinstance(call, NeedsSession) for call in calls),
            NOBODY: name.split(" ")[1].startswith(OPEN) or name == "POST /sign-out",
        }
        assert checks.get(needed, scopes == [needed]), name


def test_nobody_gets_anything_without_signing_in(ward):
    client = ward.client()
    for endpoint, needed in MATRIX.items():
        if needed is not NOBODY:
            assert ask(client, endpoint, ward) == 401, endpoint


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("way", ["session", "token"])
def test_a_role_may_do_what_its_row_says_and_nothing_else(ward, role, way):
    client = ward.by_session(role) if way == "session" else ward.by_token(role)
    for endpoint, needed in MATRIX.items():
        if needed is NOBODY or endpoint in ENDLESS:
            continue
        allowed = way == "session" if needed is SESSION else needed is ANYBODY or needed in scopes_of(role)
        status = ask(client, endpoint, ward)
        others = endpoint in ("POST /api/v1/people/{name}/sign-out", "PUT /api/v1/people/{name}/password")
        if others and role != "admin":
            assert status == 403, endpoint  # somebody else's: their own are in other tests
        else:
            assert (status not in (401, 403)) == allowed, (endpoint, status)
            assert status < 500, endpoint


@pytest.mark.parametrize("scope", SCOPES)
def test_a_token_may_do_what_its_scope_says_and_nothing_else(ward, scope):
    client = ward.by_token("admin", scope)
    for endpoint, needed in MATRIX.items():
        if needed in NEEDS and endpoint not in ENDLESS:
            status = ask(client, endpoint, ward)
            assert (status == 403) == (needed != scope), (endpoint, status)


def test_a_token_does_not_outlive_the_role_that_it_was_made_in(ward):
    ward.people.add("passing", "admin", by="test")
    client = ward.by_token("passing", "people", "read")
    assert client.get("/api/v1/people").status_code == 200
    ward.people.set_role("passing", "viewer")
    assert client.get("/api/v1/people").status_code == 403
    ward.people.set_disabled("passing", True)
    assert client.get("/api/v1/runs").status_code == 401
