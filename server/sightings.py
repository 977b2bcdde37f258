"""What was seen of the federation: the sites and their machines, the heads of their audit logs, the coordinator."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy import delete, insert, select, update

from common.errors import UsageError
from server.database import Database
from server.records import CoordinatorSeen, MachineSeen, SiteSeen
from server.schema import coordinators, site_facts, sites, witnesses


class Sightings:
    """The part of the registry that says who was here."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def see_sites(self, seen: Sequence[SiteSeen]) -> None:
        """Keep the sites as they are now; a site that is no longer admitted is forgotten."""
        with self._database.write() as connection:
            connection.execute(delete(sites))
            for site in seen:
                connection.execute(insert(sites).values(asdict(site)))

    def see_coordinator(self, seen: CoordinatorSeen | None) -> None:
        """Keep the coordinator's sign of life, or that it has gone in good order."""
        with self._database.write() as connection:
            connection.execute(delete(coordinators))
            if seen is not None:
                connection.execute(insert(coordinators).values(id=1, **asdict(seen)))

    def list_sites(self) -> list[SiteSeen]:
        """Return the sites as last seen, by name."""
        with self._database.read() as connection:
            rows = connection.execute(select(sites).order_by(sites.c.name))
            return [SiteSeen(row.name, row.certificate_ends, row.online, row.last_seen) for row in rows]

    def witness(self, site: str) -> str:
        """Return the JSON of the newest head seen of the site's audit log, or "" while there is none."""
        with self._database.read() as connection:
            head = connection.execute(select(witnesses.c.head).where(witnesses.c.site == site)).scalar()
            return str(head or "")

    def keep_witness(self, site: str, head: str) -> None:
        """Keep `head` (JSON) as the newest of the site's audit log."""
        with self._database.write() as connection:
            connection.execute(delete(witnesses).where(witnesses.c.site == site))
            connection.execute(insert(witnesses).values(site=site, head=head, seen=time.time()))

    def forget_witness(self, site: str) -> None:
        """Let the site begin a new log. Raises UsageError when no head of it was kept."""
        with self._database.write() as connection:
            if connection.execute(delete(witnesses).where(witnesses.c.site == site)).rowcount == 0:
                raise UsageError(f'no head of an audit log of "{site}" is kept: see `wardround sites --json`')

    def coordinator(self) -> CoordinatorSeen | None:
        """Return the coordinator's last sign of life, or None when it has gone or was never here."""
        with self._database.read() as connection:
            row = connection.execute(select(coordinators)).first()
            return CoordinatorSeen(row.process, row.address, row.started, row.heartbeat) if row else None

    # What the sites' policies let them tell of their machines.

    def see_machine(self, site: str, version: str, device: str) -> None:
        """Keep a site's software version and the name of its GPU, if they are others than before."""
        same = (site_facts.c.site == site, site_facts.c.version == version, site_facts.c.device == device)
        with self._database.read() as connection:
            if connection.execute(select(site_facts.c.site).where(*same)).first():
                return
        with self._database.write() as connection:
            values = {"version": version, "device": device, "seen": time.time()}
            changed = connection.execute(update(site_facts).where(site_facts.c.site == site).values(**values))
            if changed.rowcount == 0:
                connection.execute(insert(site_facts).values(site=site, **values))

    def machines(self) -> dict[str, MachineSeen]:
        """Return what is known of the sites' machines, by site."""
        with self._database.read() as connection:
            rows = connection.execute(select(site_facts))
            return {row.site: MachineSeen(row.version, row.device, row.seen) for row in rows}
