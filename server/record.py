"""The coordinator's audit log: everything that a person did on the dashboard, by the API or with `wardround people`.

Each entry is written before what it tells takes effect, and says who (`by`) and from which address (`address`, "" for
the coordinator's own terminal). Kinds of entries, beside the first ("opened"):

    sign-in, sign-out        a session began, or all of a person's sessions were ended
    start, started           a run was asked for: its job's name and digest; then the run's name
    stop, resume             ... of a run
    stage                    a model was put into a stage: its run, kind, round, SHA-256, and the note
    download                 a model's file was fetched
    person                   a person was added or changed: whom, and what of them; never a password
    token                    a token was issued or revoked: whose, its name, scopes and end; never the token
"""

from __future__ import annotations

from common.audit import AuditLog
from common.kit import Kit

LOG_FILE, KEY_FILE = "audit.jsonl", "audit.key"


def coordinator_log(kit: Kit) -> AuditLog:
    """Return the audit log of the coordinator whose kit this is. Its files are made at the first entry."""
    return AuditLog(kit.folder / LOG_FILE, kit.folder / KEY_FILE, kit.name)
