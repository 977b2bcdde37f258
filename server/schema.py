"""The registry's tables. A change here needs a migration in `server/migrations/versions` and the new HEAD below."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

HEAD = "0004"
"""The newest migration: what this version reads and writes."""

metadata = MetaData()

# Times are seconds since 1970 UTC, which SQLite and PostgreSQL keep alike.
runs = Table(
    "runs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(120), nullable=False, unique=True),
    Column("status", String(20), nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("stop_wanted", Boolean, nullable=False, default=False),
    Column("job_name", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("job", Text, nullable=False),
    Column("rounds", Integer, nullable=False),
    Column("code_version", String(64), nullable=False),
    Column("created", Float, nullable=False),
    Column("started", Float),
    Column("finished", Float),
    Column("progress", JSON),
)

run_sites = Table(
    "run_sites",
    metadata,
    Column("run_id", ForeignKey("runs.id"), primary_key=True),
    Column("site", String(64), primary_key=True),
    Column("position", Integer, nullable=False),
    Column("examples", BigInteger),
)

rounds = Table(
    "rounds",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("run_id", ForeignKey("runs.id"), nullable=False),
    Column("kind", String(20), nullable=False),
    Column("number", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("status", String(20), nullable=False),
    Column("reason", Text, nullable=False),
    Column("started", Float, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("share", Float),
    Column("score", Float),
    Column("whole", Boolean, nullable=False),
    Column("warnings", JSON, nullable=False),
    Column("central", JSON),
    Column("aggregating", Float),
    UniqueConstraint("run_id", "kind", "number", "attempt"),
)

site_rounds = Table(
    "site_rounds",
    metadata,
    Column("round_id", ForeignKey("rounds.id"), primary_key=True),
    Column("site", String(64), primary_key=True),
    Column("position", Integer, nullable=False),
    Column("status", String(20), nullable=False),
    Column("reason", Text, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("sent", BigInteger, nullable=False),
    Column("received", BigInteger, nullable=False),
    Column("examples", BigInteger, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("norm", Float),
)

models = Table(
    "models",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("run_id", ForeignKey("runs.id"), nullable=False),
    Column("kind", String(10), nullable=False),
    Column("round", Integer, nullable=False),
    Column("path", Text, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("code_version", String(64), nullable=False),
    Column("score", Float),
    Column("created", Float, nullable=False),
    UniqueConstraint("run_id", "kind"),
)

sites = Table(
    "sites",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("certificate_ends", Float),
    Column("online", Boolean, nullable=False),
    Column("last_seen", Float),
)

witnesses = Table(
    "witnesses",
    metadata,
    Column("site", String(64), primary_key=True),
    Column("head", Text, nullable=False),
    Column("seen", Float, nullable=False),
)

site_facts = Table(
    "site_facts",
    metadata,
    Column("site", String(64), primary_key=True),
    Column("version", String(100), nullable=False),
    Column("device", String(100), nullable=False),
    Column("seen", Float, nullable=False),
)

log_lines = Table(
    "log_lines",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("run_id", ForeignKey("runs.id")),
    Column("at", Float, nullable=False),
    Column("level", String(10), nullable=False),
    Column("text", Text, nullable=False),
    Index("log_lines_of_run", "run_id", "id"),
)

model_stages = Table(
    "model_stages",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("run_id", ForeignKey("runs.id"), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("stage", String(20), nullable=False),
    Column("by", String(120), nullable=False),
    Column("at", Float, nullable=False),
    Column("note", Text, nullable=False),
    Index("model_stages_of_run", "run_id", "sha256"),
)

people = Table(
    "people",
    metadata,
    Column("name", String(120), primary_key=True),
    Column("display", String(200), nullable=False),
    Column("role", String(20), nullable=False),
    Column("password", Text),
    Column("subject", Text, unique=True),
    Column("disabled", Boolean, nullable=False, default=False),
    Column("created", Float, nullable=False),
    Column("by", String(120), nullable=False),
)

sessions = Table(
    "sessions",
    metadata,
    Column("token_hash", String(64), primary_key=True),
    Column("person", ForeignKey("people.name"), nullable=False),
    Column("created", Float, nullable=False),
    Column("seen", Float, nullable=False),
    Column("ends", Float, nullable=False),
    Column("address", String(100), nullable=False),
    Column("agent", String(200), nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("hash", String(64), nullable=False, unique=True),
    Column("person", ForeignKey("people.name"), nullable=False),
    Column("name", String(120), nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("created", Float, nullable=False),
    Column("ends", Float, nullable=False),
    Column("used", Float),
    Column("revoked", Boolean, nullable=False, default=False),
)

attempts = Table(
    "attempts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("key", String(200), nullable=False, index=True),
    Column("at", Float, nullable=False),
)

coordinators = Table(
    "coordinators",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("process", Integer, nullable=False),
    Column("address", String(255), nullable=False),
    Column("started", Float, nullable=False),
    Column("heartbeat", Float, nullable=False),
)
