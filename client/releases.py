"""The release log: every message that leaves the site, recorded and synced before it is sent."""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from common.errors import DataError

FILE_NAME = "releases.jsonl"


@dataclass(frozen=True)
class Release:
    """One message that left: when, for what, which fields, how many bytes of content, their SHA-256, and the cost.

    `epsilon` is what the run has spent so far at this site, as accounted, or None when nothing private was used.
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


def describe(
    parts: Mapping[str, bytes],
    *,
    run: str,
    job_digest: str,
    round_number: int,
    kind: str,
    status: str,
    epsilon: float | None,
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
    )


def record(kit_folder: Path, release: Release) -> None:
    """Append `release` to the log and sync it. Raises DataError: then nothing may be sent."""
    line = (json.dumps(asdict(release), sort_keys=True) + "\n").encode()
    path = kit_folder / FILE_NAME
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # the service and a command may write at once
            os.lseek(handle, _end_of_last_line(handle), os.SEEK_SET)
            os.truncate(handle, os.lseek(handle, 0, os.SEEK_CUR))
            os.write(handle, line)
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise DataError(f"{path}: the release log can't be written ({error.strerror}): nothing is sent") from error


def _end_of_last_line(handle: int) -> int:
    """Where the next line starts: a line cut short by a crash or a full disk was never sent, and is written over."""
    end = os.lseek(handle, 0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 4096)
        newline = os.pread(handle, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def read(kit_folder: Path) -> list[Release]:
    """Return every recorded release, oldest first. A last line cut short by a crash is left out: it was never sent.

    Raises DataError when the log can't be read or is damaged.
    """
    path = kit_folder / FILE_NAME
    try:
        *lines, rest = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{path}: the release log can't be read: {error.strerror}") from error
    del rest  # empty, or cut short
    releases = []
    for number, line in enumerate(lines, start=1):
        try:
            fields = json.loads(line)
            releases.append(Release(**{**fields, "fields": tuple(fields["fields"])}))
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path}:{number}: the release log is damaged: {error}") from error
    return releases
