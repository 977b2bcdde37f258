"""Whether a site's audit log and ledger are as they were written, and fit each other. Reads only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from client.privacy.ledger import LEDGER_FILE, disagreement, open_database, untold
from client.privacy.rows import VERSION, Row, read_rows
from client.record import site_log
from common.audit import AuditLog, Entry, Fault, Head, verify_log
from common.errors import DataError
from common.tampering import readable


@dataclass(frozen=True)
class Verdict:
    """What was found. `entries` are those that can be read, in the order in which they stand.

    `ledger` says what is wrong with the ledger, or between it and the log; "" if nothing is. `untold` is how many of
    its rows the log has yet to be told of, after a crash: that is no fault.
    """

    name: str
    entries: tuple[Entry, ...]
    faults: tuple[Fault, ...]
    rows: tuple[Row, ...]
    ledger: str
    untold: int
    public_key: str
    witnesses: int

    @property
    def ok(self) -> bool:
        """Whether no fault was found."""
        return not self.faults and not self.ledger

    @property
    def head(self) -> Head | None:
        """The newest entry's head, or None where there is none or where the log has faults."""
        return self.entries[-1].head(self.public_key) if self.entries and not self.faults else None

    def lines(self) -> list[str]:
        """Return the verdict for people: each fault one line, then what was looked at."""
        found = [f"audit log, {fault}" for fault in self.faults]
        found += [f"ledger: {self.ledger}"] if self.ledger else []
        return [*found, self._log_line(), self._ledger_line()]

    def _log_line(self) -> str:
        if not self.entries:
            return f"{self.name}: the audit log has no entry" + ("" if self.faults else " yet")
        span = f"{len(self.entries)} entries from {self.entries[0].at} to {self.entries[-1].at}"
        if self.faults:
            return f"{self.name}: {span}; faults: {len(self.faults)}"
        seen = {0: "no witness was given", 1: "the witness agrees"}.get(self.witnesses, "the witnesses agree")
        return f"{self.name}: {span}: every one as it was written and signed; {seen}"

    def _ledger_line(self) -> str:
        if self.ledger:
            return f"{self.name}: the privacy ledger and the audit log do not agree"
        late = f"; {self.untold} not yet told to the log, after a crash" if self.untold else ""
        return f"{self.name}: the privacy ledger agrees with the audit log: {len(self.rows)} entries{late}"


def verify_site(kit_folder: Path, witnesses: Sequence[Head] = ()) -> Verdict:
    """Check the log (and that it holds what the `witnesses` saw) and the ledger of the site whose kit is here.

    Raises KitError (no kit, or a damaged key) or DataError (the log can't be read).
    """
    log = site_log(kit_folder)
    key = log.own_public_key()
    faults = verify_log(log.path, witnesses=witnesses, public_key=key)
    entries = tuple(readable(log.path))
    if entries and not key:
        faults.append(Fault("missing", len(entries), f"there is no {log.key_path.name}: nothing more can be written"))
    rows, problem, late = _ledger(kit_folder / LEDGER_FILE, log)
    named = key or (str(entries[0].body.get("public_key", "")) if entries else "")
    return Verdict(log.name, entries, tuple(faults), tuple(rows), problem, late, named, len(witnesses))


def _ledger(path: Path, log: AuditLog) -> tuple[list[Row], str, int]:
    try:
        rows = _rows(path)
        return rows, disagreement(path, rows, log), len(untold(rows, log))
    except DataError as error:
        return [], str(error), 0


def _rows(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with open_database(path) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            raise DataError(f"{path}: the privacy ledger is of another version; the next start brings it up to date")
        return read_rows(connection)
