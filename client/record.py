"""The site's audit log: everything that it did which somebody may have to answer for, in the order in which it did it.

Kinds of entries, beside the first ("opened"):

    release    a message left: `client.releases.Release`
    spending   privacy was spent: a row of the ledger, with its hash
    ledger     the ledger was begun
    asked      a job waits for a person: its digest and its canonical JSON
    decision   a person said yes or no to a job: its digest, who, why
    policy     the policy was seen changed: its SHA-256 and text
    import     images were indexed: collection and counts; of a PACS also which, what was asked, and what came
    fetch      objects were asked of a PACS: which, for which collection, and how many it has
    listen     a receiver of objects was started or ended: its collection, AE title, address and counts
    send       results go to the hospital's PACS: which, and of each object its SHA-256, SOP class and study's pseudonym
    sent       ... and how many of them it took
    started    the site's service was started
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.policy import FILE_NAME as POLICY_FILE
from common.audit import AuditLog, Head
from common.errors import DataError
from common.kit import read_kit

if TYPE_CHECKING:
    from client.intake.report import ImportReport

LOG_FILE, KEY_FILE = "audit.jsonl", "audit.key"


def site_log(kit_folder: Path) -> AuditLog:
    """Return the audit log of the site whose kit is in `kit_folder`. Raises KitError if there is no site's kit."""
    return AuditLog(kit_folder / LOG_FILE, kit_folder / KEY_FILE, read_kit(kit_folder, "site").name)


def note_import(log: AuditLog, report: ImportReport, origin: Mapping[str, Any] | None = None) -> Head:
    """Record an import: the collection, the counts, how it was de-identified, and where it came from if no folder."""
    counts = {"indexed": report.indexed, "unchanged": report.unchanged, "removed": report.removed}
    copies = {"deidentified": report.deidentified.counts()} if report.deidentified is not None else {}
    body = {"collection": report.collection, **counts, "refused": len(report.refused), **copies, **(origin or {})}
    return log.append("import", body)


def note_policy(log: AuditLog, kit_folder: Path) -> Head | None:
    """Record the policy's text if it is another than the one recorded last; return the new head, or None if not.

    A policy that is missing is recorded as the empty text: it allows nothing.

    Raises DataError when the policy can't be read or the log can't be written.
    """
    path = kit_folder / POLICY_FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        content = b""
    except OSError as error:
        raise DataError(f"{path}: the policy can't be read: {error.strerror}") from error
    digest = hashlib.sha256(content).hexdigest()
    last = log.newest("policy")
    if last is not None and last.body["sha256"] == digest:
        return None
    return log.append("policy", {"sha256": digest, "text": content.decode("utf-8", errors="replace")})


def rolled_back(log: AuditLog, witness: str) -> str:
    """Say in one line, fit to leave the site, why the log is not the one that `witness` saw; "" if it is.

    `witness` is the JSON of a head of this log that another keeps, or "" if it has none yet.
    """
    if not witness:
        return ""
    try:
        head = Head.from_json(witness)
    except DataError:
        return "the coordinator's witness of this site's audit log can't be read: nothing is done without a right one"
    if log.holds(head):
        return ""
    return (
        f"this site's audit log does not hold entry {head.sequence} as the coordinator witnessed it: it was rolled "
        "back, cut short or replaced; the site's data steward must look into it (wardround audit verify --witness)"
    )
