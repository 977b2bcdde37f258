"""The coordinator as a witness of the sites' audit logs: it keeps each site's newest signed head, and shows it again.

A site whose log does not hold the head that it is shown has lost entries or gone back to an older copy, and says so
itself. A head that goes backwards, contradicts the kept one, or is signed with another key is a warning in the run: the
kept head stays, so that the contradiction does not pass away. A site that really has to start a new log, after a disk
was lost, is let to by a person (`wardround sites --forget-witness`), who should know why.
"""

from __future__ import annotations

from typing import Protocol

from common.chain import Head
from common.errors import DataError

FORGET = "if that is known and explained: wardround sites --forget-witness"


class Witnesses(Protocol):
    """Where heads are kept, and what else the sites tell of themselves."""

    def witness(self, site: str) -> str:
        """Return the JSON of the newest head of this site's log, or "" while there is none."""

    def keep_witness(self, site: str, head: str) -> None:
        """Keep `head` as the newest."""

    def see_machine(self, site: str, version: str, device: str) -> None:
        """Keep what the site told of its machine."""


class NoWitnesses:
    """For a run that outlives nothing: no head is kept."""

    def witness(self, site: str) -> str:
        """Return "": there is none."""
        return ""

    def keep_witness(self, site: str, head: str) -> None:
        """Keep nothing."""

    def see_machine(self, site: str, version: str, device: str) -> None:
        """Keep nothing."""


def see_head(witnesses: Witnesses, site: str, text: str) -> str:
    """Compare the head that came with an answer with the kept one; keep it, or return what is wrong with it.

    An answer without a head (of a site that refuses to go on with a log that was rolled back) changes nothing.
    """
    if not text:
        return ""
    try:
        head = Head.from_json(text)
    except DataError:
        return f"{site} sent something that is no head of an audit log"
    if not head.signed:
        return f"{site} sent a head of its audit log that is not signed by the key it names"
    kept_text = witnesses.witness(site)
    if kept_text:
        kept = Head.from_json(kept_text)
        if head.public_key != kept.public_key:
            return f"{site}'s audit log is signed with another key than before; {FORGET} {site}"
        if head.sequence < kept.sequence or (head.sequence == kept.sequence and head.hash != kept.hash):
            return (
                f"{site}'s audit log was rolled back or rewritten: it is at entry {head.sequence}, entry "
                f"{kept.sequence} was seen before; {FORGET} {site}"
            )
    witnesses.keep_witness(site, text)
    return ""
