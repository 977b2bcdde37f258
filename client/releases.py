"""Releases: every message that leaves the site is recorded in its audit log, synced, before it is sent."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from client.record import site_log
from common.audit import Entry, Head
from common.errors import DataError

KIND = "release"


@dataclass(frozen=True)
class Release:
    """One message that left: when, to whom, for what, which fields, how many bytes, their SHA-256, and the cost.

    `to` is the coordinator's address as the kit gave it. `epsilon`, at `delta`, is what the run has cost any patient of
    this site so far, this message included, as accounted; None when nothing was spent.
    """

    at: str
    run: str
    job_digest: str
    round: int
    kind: str
    status: str
    fields: tuple[str, ...]
    bytes: int
    sha256: str
    epsilon: float | None
    delta: float | None = None
    to: str = ""


def describe(
    parts: Mapping[str, bytes],
    *,
    run: str,
    job_digest: str,
    round_number: int,
    kind: str,
    status: str,
    epsilon: float | None,
    delta: float | None = None,
    to: str = "",
) -> Release:
    """Describe a message whose content is `parts`, by field name. The SHA-256 is over the parts in name order."""
    digest = hashlib.sha256()
    for name in sorted(parts):
        digest.update(name.encode() + b"\0" + len(parts[name]).to_bytes(8, "big"))
        digest.update(parts[name])
    return Release(
        at=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        run=run,
        job_digest=job_digest,
        round=round_number,
        kind=kind,
        status=status,
        fields=tuple(sorted(parts)),
        bytes=sum(map(len, parts.values())),
        sha256=digest.hexdigest(),
        epsilon=epsilon,
        delta=delta,
        to=to,
    )


def record(kit_folder: Path, release: Release) -> Head:
    """Write `release` to the audit log, synced; return the log's head. Raises DataError: then nothing may be sent."""
    try:
        return site_log(kit_folder).append(KIND, asdict(release))
    except DataError as error:
        raise DataError(f"{error}: nothing is sent") from error


def read(kit_folder: Path) -> list[Release]:
    """Return every recorded release, oldest first. A last line cut short by a crash is left out: it was never sent.

    Raises DataError when the audit log can't be read or is damaged.
    """
    return [release_of(entry) for entry in site_log(kit_folder).entries() if entry.kind == KIND]


def release_of(entry: Entry) -> Release:
    """Return the release that an entry of kind "release" tells of. Raises DataError if it is of another form."""
    try:
        return Release(**{**entry.body, "fields": tuple(entry.body["fields"])})
    except (TypeError, KeyError) as error:
        raise DataError(
            f"entry {entry.sequence} of the audit log tells of no release as this version knows it"
        ) from error
