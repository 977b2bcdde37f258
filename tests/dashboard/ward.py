"""A coordinator's kit with people of every role and a run of three hospitals in its registry, for tests."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from playground import HonestSite, PlaygroundGrid, job_of, model_of
from starlette.testclient import TestClient

from certs.enrol import enrol
from certs.kits import admit, create_kits
from common.federation import read_federation
from common.kit import Kit, read_kit
from server.dashboard.app import make_app
from server.execution import execute
from server.people import People
from server.registry import Registry, open_registry
from server.roles import ROLES, scopes_of

SITES = ("north", "south", "west")
PASSWORD = "a horse, a battery, a staple"
FEDERATION = """name = "ward"
[coordinator]
address = "localhost:9092"
dns = ["localhost"]
addresses = ["127.0.0.1"]
""" + "".join(f'[[sites]]\nname = "{site}"\n' for site in SITES)
JOB = """name = "chest"
sites = ["north", "south"]
[task]
labels = ["no", "yes"]
[data]
collection = "c"
[network]
name = "small-cnn"
"""


@dataclass
class Ward:
    """The kit, its registry, its people (named as their roles), and the completed run."""

    kit: Kit
    registry: Registry
    people: People
    run: str

    @cached_property
    def app(self):
        return make_app(self.kit, pages=False)

    def client(self, **headers: str) -> TestClient:
        """A browser or script with no cookie yet."""
        return TestClient(self.app, base_url="https://localhost:9443", follow_redirects=False, headers=headers)

    def token(self, role: str, *scopes: str) -> str:
        return self.people.issue_token(role, "test", scopes or scopes_of(role), 1)[1]

    def by_token(self, role: str, *scopes: str) -> TestClient:
        return self.client(Authorization=f"Bearer {self.token(role, *scopes)}")

    def by_session(self, role: str) -> TestClient:
        """A browser in which somebody is signed in; its changes bring the CSRF token."""
        client = self.client()
        client.cookies.set("__Host-wardround", self.people.open_session(role, "testclient"))
        client.headers["X-CSRF-Token"] = client.get("/api/v1/session").json()["csrf"]
        return client

    @cached_property
    def model(self) -> int:
        return self.by_token("viewer").get("/api/v1/models").json()["items"][0]["id"]


def make_kits(folder: Path) -> Kit:
    (folder / "federation.toml").write_text(FEDERATION)
    create_kits(read_federation(folder / "federation.toml"), folder / "kits")
    for site in SITES:
        admit(folder / "kits", enrol(read_kit(folder / "kits" / "sites" / site, "site")))
    return read_kit(folder / "kits" / "coordinator", "coordinator")


def make_ward(folder: Path) -> Ward:
    kit = make_kits(folder)
    registry = open_registry(kit)
    people = People(registry.database)
    for role in ROLES:
        people.add(role, role, by="test", password=PASSWORD)
    return Ward(kit, registry, people, train(registry))


def train(registry: Registry) -> str:
    """A run of three hospitals, at once, in this process."""
    name = registry.submit(job_of(SITES), model_of())
    registry.claim(name)
    grid = PlaygroundGrid({site: HonestSite(site, 100 * number) for number, site in enumerate(SITES, 1)})
    execute(registry, name, grid, lambda: grid.node_ids)
    return name


def hours_later(monkeypatch, hours: float) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + hours * 3600)
