"""What people decided on jobs. The decisions stand in the site's audit log, and nowhere else.

A job is approved or denied by its digest: another epsilon, another round, and it is another job, which needs another
decision. The newest decision counts, so an approval can be taken back, also while a run is under way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from client.policy import Policy
from common.audit import AuditLog
from common.errors import RefusedError, UsageError, WaitingError
from common.job import Job, job_from_json

ASKED, DECISION = "asked", "decision"
Verdict = Literal["approved", "denied"]
SHORTEST_PREFIX = 4


@dataclass(frozen=True)
class Decision:
    """Who said what about a job, when (ISO 8601, UTC), and why."""

    verdict: Verdict
    at: str
    by: str
    note: str


@dataclass(frozen=True)
class AskedJob:
    """A job that this site was asked to take part in, since when, and the newest decision on it, if any."""

    job: Job
    asked: str
    decision: Decision | None

    @property
    def state(self) -> str:
        """Return "waiting", "approved" or "denied"."""
        return self.decision.verdict if self.decision else "waiting"


def asked_jobs(log: AuditLog) -> list[AskedJob]:
    """Return the jobs that wait for a person or had a decision, in the order in which they came."""
    asked: dict[str, AskedJob] = {}
    for entry in log.entries():
        if entry.kind == ASKED and entry.body["job"] not in asked:
            job = job_from_json(str(entry.body["json"]), source=f"{log.path}: the job of entry {entry.sequence}")
            asked[job.digest] = AskedJob(job, entry.at, None)
        elif entry.kind == DECISION and (known := asked.get(str(entry.body["job"]))):
            asked[known.job.digest] = AskedJob(known.job, known.asked, _decision(entry.at, entry.body))
    return list(asked.values())


def require_approval(log: AuditLog, policy: Policy, job: Job) -> None:
    """Check that a person has approved the job, where the policy wants one; a job not seen before is put down as asked.

    Raises
    ------
    RefusedError
        A person denied it, whatever the policy says now.
    WaitingError
        Nobody has decided yet.
    """
    decision, known = None, False
    for entry in log.entries():
        if entry.kind in (ASKED, DECISION) and entry.body["job"] == job.digest:
            known = True
            if entry.kind == DECISION:
                decision = _decision(entry.at, entry.body)
    if decision is not None and decision.verdict == "denied":
        raise RefusedError("a person at this site denied the job" + (f": {decision.note}" if decision.note else ""))
    if policy.approval == "none" or decision is not None:
        return
    if not known:
        log.append(ASKED, {"job": job.digest, "json": job.canonical_json()})
    raise WaitingError("a person at this site must approve the job")


def find_asked(log: AuditLog, prefix: str) -> AskedJob:
    """Return the job whose digest or name begins with `prefix`.

    Raises UsageError: none, or more than one, begins so.
    """
    jobs = asked_jobs(log)
    if len(prefix) < SHORTEST_PREFIX:
        raise UsageError(f'"{prefix}" is too short to name a job: give {SHORTEST_PREFIX} letters of its digest or more')
    found = [one for one in jobs if one.job.digest.startswith(prefix) or one.job.name == prefix]
    if not found:
        raise UsageError(f'no job here begins with "{prefix}": `wardround site jobs` lists those that were asked for')
    if len(found) > 1:
        names = ", ".join(f"{one.job.digest[:12]} ({one.job.name}, {one.state})" for one in found)
        raise UsageError(f'"{prefix}" may be any of {names}: give more of the digest')
    return found[0]


def decide(log: AuditLog, job: Job, verdict: Verdict, *, by: str, note: str = "") -> None:
    """Record a person's decision; it takes effect with the next message. Raises DataError if it can't be recorded."""
    log.append(DECISION, {"job": job.digest, "name": job.name, "verdict": verdict, "by": by, "note": note})


def _decision(at: str, body: Mapping[str, Any]) -> Decision:
    verdict: Verdict = "approved" if body["verdict"] == "approved" else "denied"
    return Decision(verdict, at, str(body["by"]), str(body["note"]))
