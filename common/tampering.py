"""Look for what was done to a log: every fault has a name and a line.

    tampered      a line is not what was written: a byte was changed, or a line put in
    forged        an entry's signature is not by the log's key, or the log is signed with another key than was witnessed
    removed       entries are missing before this line
    repeated      an entry stands here once more
    reordered     an entry stands where another belongs
    rewritten     an entry, signed by the log's key, does not continue the one before
    truncated     the log ends before an entry that a witness has seen
    rolled back   where a witness has seen an entry stands another: an old copy was put back, and written on
    missing       there is no log where one should be
    false witness a witness' head is not signed by the key that it names: it proves nothing

What needs no witness is found without one. A tail that was cut off cleanly leaves a log that is whole in itself: only
a head kept elsewhere shows it. A last line without its end is no fault: a crash leaves such lines behind, nothing had
been done on the strength of it yet, and the next entry is written over it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from common.chain import OPENED, Entry, Head, is_signed, read_entry
from common.errors import DataError

_START = b'{"at":"'


@dataclass(frozen=True)
class Fault:
    """What is wrong with a log: the fault's name, the line of the file where it shows (from 1), and more words."""

    name: str
    line: int
    detail: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.name}: {self.detail}"


@dataclass(frozen=True)
class Placed:
    """An entry and the line on which it stands."""

    line: int
    entry: Entry


def verify_log(path: Path, *, witnesses: Sequence[Head] = (), public_key: str = "") -> list[Fault]:
    """Return every fault of the log in `path`, by line; none if it is whole and holds what the `witnesses` saw.

    `public_key`, if the verifier knows it from elsewhere, is the key (base64) that must have signed.

    Raises DataError when the file is there but can't be read.
    """
    try:
        *lines, rest = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [Fault("missing", 1, f"there is no {path.name}")] if witnesses or public_key else []
    except OSError as error:
        raise DataError(f"{path}: the audit log can't be read: {error.strerror}") from error
    placed, faults = _read(lines)
    if rest and not is_cut_short(rest):
        faults.append(Fault("tampered", len(lines) + 1, "it has no end, and is no entry that a crash cut short"))
    damaged = [fault.line for fault in faults]
    key = _key_of(placed) or public_key or next((head.public_key for head in witnesses if head.signed), "")
    forged = list(_signatures(placed, key))
    faults += forged
    faults += (fault for fault in _order(placed, damaged) if not _follows_from(fault, forged))
    if public_key and key != public_key:
        faults.append(Fault("forged", 1, "the log is signed with another key than that of this node"))
    if not placed and not damaged and (witnesses or public_key):
        faults.append(Fault("missing", 1, f"{path.name} holds no entry"))
    else:
        for witness in witnesses:
            faults += _against(witness, placed, key, damaged)
    return sorted(set(faults), key=lambda fault: (fault.line, fault.name))


def readable(path: Path) -> list[Entry]:
    """Return the entries whose lines are as they were written, in the order in which they stand.

    Raises DataError when the file is there but can't be read.
    """
    try:
        placed, _ = _read(path.read_bytes().split(b"\n")[:-1])
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{path}: the audit log can't be read: {error.strerror}") from error
    return [found.entry for found in placed]


def is_cut_short(rest: bytes) -> bool:
    """Whether what follows the last whole line can be what a crash left of an entry."""
    if _is_whole_entry(rest):
        return True  # only the newline is missing
    written = rest.rstrip(b"\0")  # a file system may have made room for a line and not have filled it
    # A whole entry with something else after it is no crash's work.
    return written[: len(_START)] == _START[: len(written)] and not _is_whole_entry(written[: written.rfind(b'"}') + 2])


def _is_whole_entry(text: bytes) -> bool:
    try:
        read_entry(text)
    except ValueError:
        return False
    return True


def _read(lines: Iterable[bytes]) -> tuple[list[Placed], list[Fault]]:
    placed, faults = [], []
    for number, line in enumerate(lines, start=1):
        try:
            placed.append(Placed(number, read_entry(line)))
        except ValueError as error:
            faults.append(Fault("tampered", number, str(error)))
    return placed, faults


def _key_of(placed: Iterable[Placed]) -> str:
    """The public key that the log's first entry names, or ""."""
    for found in placed:
        if found.entry.sequence == 1 and found.entry.kind == OPENED:
            return str(found.entry.body.get("public_key", ""))
    return ""


def _signatures(placed: Iterable[Placed], key: str) -> Iterator[Fault]:
    for found in placed:
        if key and not is_signed(found.entry.hash, found.entry.signature, key):
            yield Fault("forged", found.line, f"entry {found.entry.sequence} is not signed by the log's key")


def _order(placed: Sequence[Placed], damaged: Sequence[int]) -> Iterator[Fault]:
    """Compare the order in which the entries stand with that of their numbers, and follow the chain along these."""
    once: dict[str, Placed] = {}
    for found in placed:
        if found.entry.hash in once:
            first = once[found.entry.hash].line
            yield Fault("repeated", found.line, f"entry {found.entry.sequence} stands on line {first} already")
        else:
            once[found.entry.hash] = found
    standing = list(once.values())
    ordered = sorted(standing, key=lambda found: (found.entry.sequence, found.line))
    for here, expected in zip(standing, ordered, strict=True):
        if here is not expected:
            detail = f"entry {here.entry.sequence} stands where entry {expected.entry.sequence} belongs"
            yield Fault("reordered", here.line, detail)
    if ordered:
        yield from _beginning(ordered[0], damaged)
    for before, after in pairwise(ordered):
        yield from _continues(before, after, damaged)


def _beginning(first: Placed, damaged: Sequence[int]) -> Iterator[Fault]:
    entry = first.entry
    if entry.sequence > 1 and not any(line < first.line for line in damaged):
        yield Fault("removed", first.line, f"the log begins with entry {entry.sequence}")
    elif entry.sequence < 1 or (entry.sequence == 1 and (entry.previous or entry.kind != OPENED)):
        yield Fault("rewritten", first.line, "this is not how a log is opened")


def _continues(before: Placed, after: Placed, damaged: Sequence[int]) -> Iterator[Fault]:
    gap = after.entry.sequence - before.entry.sequence - 1
    if gap == 0 and after.entry.previous == before.entry.hash:
        return
    low, high = sorted((before.line, after.line))
    if gap > 0:
        if not any(low < line < high for line in damaged):  # a damaged line is one that should be here, and was named
            detail = f"{_entries(gap)} {before.entry.sequence + 1} to {after.entry.sequence - 1}"
            yield Fault("removed", after.line, f"missing before entry {after.entry.sequence}: {detail}")
        return
    yield Fault(
        "rewritten",
        after.line,
        f"entry {after.entry.sequence} does not continue entry {before.entry.sequence} of line {before.line}",
    )


def _entries(count: int) -> str:
    return "1 entry," if count == 1 else f"{count} entries,"


def _follows_from(fault: Fault, forged: Iterable[Fault]) -> bool:
    """Whether a break of the chain is the trace of a forged entry, here or on the line before, that was named."""
    return fault.name == "rewritten" and any(fault.line - found.line in (0, 1) for found in forged)


def _against(witness: Head, placed: Sequence[Placed], key: str, damaged: Sequence[int]) -> Iterator[Fault]:
    if not witness.signed:
        yield Fault("false witness", 1, f"the head of entry {witness.sequence} is not signed by the key it names")
        return
    if key and witness.public_key != key:
        yield Fault("forged", 1, "the log is signed with another key than the one that was witnessed")
        return
    last = max((found.entry.sequence for found in placed), default=0)
    end = max((found.line for found in placed), default=0)
    if witness.sequence > last:
        if not any(line > end for line in damaged):  # damaged lines are what is left of the tail, and were named
            detail = f"the log ends with entry {last}, but entry {witness.sequence} was witnessed"
            yield Fault("truncated", end + 1, detail)
        return
    there = [found for found in placed if found.entry.sequence == witness.sequence]
    if there and all(found.entry.hash != witness.hash for found in there):
        yield Fault("rolled back", there[0].line, f"entry {witness.sequence} is not the one that was witnessed")
