"""Opening the registry's database: SQLite or PostgreSQL, migrated to this version's schema, errors in one line."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError

from common.errors import DataError, UsageError
from server.schema import HEAD

MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 0x57415244  # "WARD", the key of PostgreSQL's advisory lock for migrations


class Database:
    """A database that several processes may use at once: reads see one moment, writes are all or nothing."""

    def __init__(self, url: str) -> None:
        """Open the database at `url` (SQLAlchemy's form), creating and migrating it as needed.

        Raises
        ------
        UsageError
            No such kind of database, its driver is not installed, or a newer Ward Round made it.
        DataError
            It can't be reached or is damaged.
        """
        try:
            self._engine = _engine(url)
        except ModuleNotFoundError as error:
            raise UsageError(f"the registry's database needs a driver that is not installed: {error.name}") from error
        except (ArgumentError, NoSuchModuleError) as error:
            raise UsageError(f"the registry's URL can't be used: {str(error).splitlines()[0]}") from error
        here = self._engine.url.get_backend_name() == "sqlite" and self._engine.url.database
        self.file = Path(here) if here else None
        """SQLite's file, or None for a database of another kind."""
        self.name = self._engine.url.render_as_string(hide_password=True)
        self._writer = self._engine.execution_options(writes=True)
        self._migrate()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Yield a connection for reading. Raises DataError when the database fails."""
        with self._explained(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Yield a connection whose changes are committed at the end, or undone on any error.

        Raises DataError when the database fails (damaged, disk full, not reachable).
        """
        with self._explained(), self._writer.begin() as connection:
            yield connection

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except DatabaseError as error:
            cause = (str(error.orig).strip() or type(error.orig).__name__).splitlines()[0]
            raise DataError(f"{self.name}: the registry can't be used: {cause}; {_remedy(cause)}") from error

    def _migrate(self) -> None:
        with self.read() as connection:
            version = _version(connection)
        if version == HEAD:
            return
        with self.write() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            version = _version(connection)  # another process may have been faster
            if version is not None and version > HEAD:
                raise UsageError(
                    f"{self.name}: the registry was written by a newer Ward Round (schema {version}, this one knows "
                    f"{HEAD}): install that version"
                )
            if version != HEAD:
                _upgrade(connection)


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(parsed, pool_pre_ping=True)
    engine = create_engine(parsed, connect_args={"timeout": 30.0})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _: Any) -> None:
    connection.isolation_level = None  # Python's own late BEGIN would leave the migration outside a transaction
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _upgrade(connection: Connection) -> None:
    from alembic import command  # a fifth of a second, and only ever needed once
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _remedy(cause: str) -> str:
    if "not a database" in cause or "malformed" in cause:
        return "the file is damaged: restore it from a backup, or move it away to begin a new one"
    if "full" in cause:
        return "free disk space; nothing was half-written"
    return "check that it is there and that this user may write to it"
