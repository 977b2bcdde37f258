"""Everything that a person can do, from a page, by the API or the command line: each checks that they may, then records
it in the coordinator's audit log, and only then does it.

Guarantees: nothing takes effect that the log does not tell; if the log can't be written, nothing is done.
"""

from __future__ import annotations

import threading
from typing import Any

from certs.roster import read_roster
from common.errors import ForbiddenError, RunError, UsageError
from common.job import Job, parse_job
from common.kit import Kit
from common.plan import PrivacyPlan
from common.statistics import counts_only
from server.people import People, check_role, checked_name
from server.record import coordinator_log
from server.records import RESUMABLE, ModelFile, Stage
from server.registry import Registry
from server.report import is_alive
from server.roles import Person, Role
from server.tokens import TokenLine

LONGEST_JOB = 200_000
"""Characters of a job's TOML."""
LONGEST_NOTE = 2000
_ONE_AT_A_TIME = threading.Lock()
"""Making a first model seeds torch's generator, which is the process's."""


class Actions:
    """What can be done with the federation whose coordinator's kit and registry these are."""

    def __init__(self, registry: Registry, kit: Kit, people: People) -> None:
        self._registry, self._kit, self._people = registry, kit, people
        self._log = coordinator_log(kit)

    # Runs.

    def check(self, toml: str) -> Job:
        """Return the job that `toml` holds, if it could be started here. Raises JobError, a line for each fault."""
        from server.criterion import build_criterion
        from server.strategies.registry import build_strategy
        from server.submission import check_sites

        if len(toml) > LONGEST_JOB:
            raise UsageError(f"a job has at most {LONGEST_JOB:,} characters")
        job = parse_job(toml)
        build_strategy(job)
        build_criterion(job.aggregation.criterion)
        check_sites(job, read_roster(self._kit.folder / "roster"))
        if counts_only(job):
            return job
        with _ONE_AT_A_TIME:
            from common.networks import check_network  # torch, at the first job only

            check_network(job)
        return job

    def plan(self, person: Person, toml: str) -> PrivacyPlan:
        """Return what the job's privacy would cost; counts come from earlier runs. Nothing is sent, nothing spent."""
        person.require("run")
        job = self.check(toml)
        from server.planning import counts_of_earlier_runs, plan_job

        with _ONE_AT_A_TIME:
            return plan_job(job, counts_of_earlier_runs(self._registry, job))

    def start(self, person: Person, toml: str) -> str:
        """Queue a run of the job; return its name. Raises JobError."""
        person.require("run")
        job = self.check(toml)
        from server.submission import submit_job

        self._record("start", person, job=job.name, digest=job.digest)
        with _ONE_AT_A_TIME:
            name = submit_job(self._registry, job, admitted=read_roster(self._kit.folder / "roster"))
        self._record("started", person, run=name, digest=job.digest)
        return name

    def stop(self, person: Person, run: str) -> None:
        """Ask for a run to stop. Raises NotFoundError, or RunError when it has ended."""
        person.require("run")
        status = self._registry.summary(run).status
        if status not in ("queued", "running"):
            raise RunError(f"run {run} is {status} already")
        self._record("stop", person, run=run)
        self._registry.stop(run)

    def resume(self, person: Person, run: str) -> None:
        """Let a run go on after its last committed round. Raises NotFoundError, or RunError when it can't."""
        person.require("run")
        status, alive = self._registry.summary(run).status, is_alive(self._registry.coordinator())
        if status not in RESUMABLE and (alive or status != "running"):
            raise RunError(f"run {run} is {status}: only one that is {', '.join(RESUMABLE)} can be resumed")
        self._record("resume", person, run=run)
        if not alive:
            self._registry.interrupt_running()  # whatever "runs" without a coordinator was cut off
        self._registry.resume(run)

    # Models.

    def stage(self, person: Person, model: int, stage: Stage, note: str = "") -> None:
        """Put a model into a stage. Raises NotFoundError, or RunError while its run may replace it."""
        person.require("models")
        if len(note) > LONGEST_NOTE:
            raise UsageError(f"a note has at most {LONGEST_NOTE:,} characters")
        run, file = self._registry.model_file(model)
        status = self._registry.summary(run).status
        if status in ("queued", "running"):
            raise RunError(f"run {run} is {status}: its models have stages once it has ended")
        self._record("stage", person, **_model(run, file), stage=stage, note=note)
        self._registry.set_stage(model, stage, by=person.name, note=note)

    def download(self, person: Person, model: int) -> tuple[str, ModelFile]:
        """Return the run and the file of a model that is about to be fetched. Raises NotFoundError."""
        person.require("models")
        run, file = self._registry.model_file(model)
        self._record("download", person, **_model(run, file))
        return run, file

    # Sessions.

    def sign_in(self, name: str, password: str, address: str, agent: str = "") -> str:
        """Return the secret of a new session. Raises SignInError for a wrong name or password, or SlowDownError."""
        return self.open_session(self._people.verify(name, password, address), address, agent, by="password")

    def open_session(self, name: str, address: str, agent: str = "", *, by: str) -> str:
        """Return the secret of a new session of a person whom somebody else has verified, `by` what means."""
        self._log.append("sign-in", {"by": name, "address": address, "means": by})
        return self._people.open_session(name, address, agent)

    def sign_out(self, person: Person) -> None:
        """End this session, at once."""
        person.require_session()
        self._record("sign-out", person, who=person.name)
        self._people.end_session(person.session)

    def sign_out_everywhere(self, person: Person, name: str) -> int:
        """End all sessions of a person, one's own or (an admin) another's; return how many there were."""
        self._own_or_admin(person, name)
        self._people.get(name)
        self._record("sign-out", person, who=name, everywhere=True)
        return self._people.end_sessions(name)

    # People.

    def add_person(
        self,
        person: Person,
        name: str,
        role: Role,
        *,
        display: str = "",
        password: str | None = None,
        subject: str | None = None,
    ) -> str:
        """Add a person; return the name as it is kept. Raises UsageError."""
        person.require("people")
        self._people.check_new(name, role, password)
        self._record("person", person, who=checked_name(name), added=True, role=role)
        return self._people.add(name, role, by=person.name, display=display, password=password, subject=subject)

    def set_role(self, person: Person, name: str, role: Role) -> None:
        """Give a person another role, at once. Raises NotFoundError, or UsageError for the last admin."""
        person.require("people")
        check_role(role)
        self._record("person", person, who=self._people.get(name).name, role=role)
        self._people.set_role(name, role)

    def disable_person(self, person: Person, name: str, disabled: bool = True) -> None:
        """Shut a person out at once, or let them in again. Raises NotFoundError, or UsageError for the last admin."""
        person.require("people")
        self._record("person", person, who=self._people.get(name).name, disabled=disabled)
        self._people.set_disabled(name, disabled)

    def set_password(self, person: Person, name: str, password: str, *, old: str = "") -> None:
        """Give a person another password and end their sessions. For one's own, the `old` one is asked for.

        Raises NotFoundError, UsageError, or SignInError when `old` is wrong.
        """
        self._own_or_admin(person, name)
        if name == person.name:
            person.require_session()
            self._people.verify(name, old, person.address)
        self._record("person", person, who=self._people.get(name).name, password="changed")  # noqa: S106 - a word
        self._people.set_password(name, password)

    # Tokens.

    def issue_token(
        self, person: Person, name: str, scopes: list[str], days: float, *, whose: str = ""
    ) -> tuple[TokenLine, str]:
        """Make a token for one's own scripts, or (an admin) another's; return it and its secret."""
        owner = whose or person.name
        self._own_or_admin(person, owner)
        person.require_session()
        self._people.check_token(owner, scopes, days)
        self._record("token", person, who=owner, issued=name, scopes=sorted(scopes), days=days)
        return self._people.issue_token(owner, name, scopes, days)

    def revoke_token(self, person: Person, number: int) -> None:
        """End a token, one's own or (an admin) another's. Raises NotFoundError."""
        line = self._people.token_line(number)
        self._own_or_admin(person, line.person)
        self._record("token", person, who=line.person, revoked=line.name, id=number)
        self._people.revoke_token(number)

    def _own_or_admin(self, person: Person, name: str) -> None:
        if name == person.name and person.via == "session":
            return
        if not person.may("people"):
            raise ForbiddenError(f"{person.name} may do this only for themselves, signed in: ask an admin")

    def _record(self, kind: str, person: Person, /, **what: Any) -> None:
        self._log.append(kind, {"by": person.name, "address": person.address, "via": person.via, **what})


def _model(run: str, file: ModelFile) -> dict[str, Any]:
    return {"run": run, "kind": file.kind, "round": file.round, "sha256": file.sha256}
