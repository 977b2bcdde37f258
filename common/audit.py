"""An append-only, hash-chained, signed log of what a node did: what stands in it can't be changed without trace.

The entries' form is in `common/chain.py`, the faults that can be found in `common/tampering.py`. The log is a file of
one entry a line; the key that signs is a file beside it, made when the first entry is written, and never leaves the
node.

Guarantees: when `append` returns, the entry is on the disk; when it raises, there is no entry. A process that is killed
at any point leaves a log that verifies and goes on. Several processes and threads may write at once.

What it can't do by itself: whoever holds the key can write another log. That is why a head of it is kept elsewhere, by
the coordinator and in the ledger.
"""

from __future__ import annotations

import datetime
import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.chain import OPENED, canonical, is_signed, public_text, read_entry, write_entry
from common.chain import Entry as Entry
from common.chain import Head as Head
from common.errors import DataError, KitError
from common.files import write_atomically
from common.tampering import Fault as Fault
from common.tampering import verify_log as verify_log

_BLOCK = 64 * 1024
VERIFY = "`wardround audit verify` says more"


class AuditLog:
    """The log in the file `path`, signed with the key in `key_path`, of the node called `name`.

    Both files are made at the first `append`. Reading needs no key.
    """

    def __init__(self, path: Path, key_path: Path, name: str) -> None:
        self.path = path
        self.key_path = key_path
        self.name = name

    def append(self, kind: str, body: Mapping[str, Any]) -> Head:
        """Write an entry, sync it, and return the log's new head. `body` is anything that JSON has.

        Raises
        ------
        DataError
            The log can't be written, was deleted, or its last entry is not whole or not by this key. Nothing was
            written: what was to be recorded must not be done.
        """
        try:
            with self._locked() as file:
                before, end = self._last(file)
                key = self._key(before)
                if before is None or key is None:
                    key = Ed25519PrivateKey.generate()
                    before, end = self._open(file, key)
                entry, line = write_entry(key, before, at=_now(), kind=kind, body=body)
                _put(file, line, end)
                return entry.head(public_text(key))
        except OSError as error:
            raise DataError(f"{self.path}: the audit log can't be written: {error.strerror or error}") from error

    def head(self) -> Head | None:
        """Return the newest entry's head, or None while there is none. Raises DataError for a damaged log."""
        line = next(self._backwards(), None)
        return None if line is None else self._entry(line).head(self.public_key())

    def entries(self) -> list[Entry]:
        """Return every entry, oldest first; a last line cut short by a crash is none.

        Raises DataError naming the first line that is damaged. Order and signatures are `verify_log`'s.
        """
        found = []
        for number, line in enumerate(self._read().split(b"\n")[:-1], start=1):
            try:
                found.append(read_entry(line))
            except ValueError as error:
                raise DataError(f"{self.path}:{number}: the audit log is damaged: {error}; {VERIFY}") from error
        return found

    def newest(self, kind: str) -> Entry | None:
        """Return the newest entry of a kind, or None. Reads from the end; raises DataError if that line is damaged."""
        mark = b'"kind":' + canonical(kind)
        for line in self._backwards():
            if mark in line and (entry := self._entry(line)).kind == kind:
                return entry
        return None

    def holds(self, head: Head) -> bool:
        """Whether the entry that `head` is of is in this log, where it was. A damaged log holds nothing for certain."""
        return self.holds_entry(head.sequence, head.hash)

    def holds_entry(self, sequence: int, digest: str) -> bool:
        """Whether entry number `sequence` has the hash `digest`; `holds` for one that kept no signature."""
        try:
            for line in self._backwards():
                if (entry := self._entry(line)).sequence <= sequence:
                    return (entry.sequence, entry.hash) == (sequence, digest)
        except DataError:
            return False
        return False

    def public_key(self) -> str:
        """Return the public key (base64) that the log's first entry names. Raises DataError when it can't be read."""
        first = self._read(until_first_line=True)
        try:
            entry = read_entry(first)
            return str(entry.body["public_key"])
        except (ValueError, KeyError) as error:
            raise DataError(f"{self.path}:1: the audit log is damaged: {error}; {VERIFY}") from error

    def own_public_key(self) -> str:
        """Return the public half (base64) of the key file, or "" where there is none. Raises KitError if damaged."""
        return public_text(self._load_key()) if self.key_path.exists() else ""

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Open the file, made if need be, and hold it alone."""
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)

    def _last(self, file: int) -> tuple[Entry | None, int]:
        """The last whole line's entry, and where the next line starts: over what a crash may have left."""
        end = _end_of_last_line(file)
        line = next(_lines_backwards(file, end), None)
        return (None if line is None else self._entry(line)), end

    def _key(self, before: Entry | None) -> Ed25519PrivateKey | None:
        """The key, or None when the log is yet to be opened.

        The first entry is written before the key: a key without an entry means that the log is gone; an entry without a
        key that it was never used, if it is the first, and else that the key is gone.
        """
        if not self.key_path.exists():
            if before is None or (before.sequence == 1 and before.kind == OPENED):
                return None
            raise DataError(f"{self.key_path}: the audit log's key is gone: restore it from a backup")
        if before is None:
            raise DataError(
                f"{self.path}: the audit log was deleted or emptied, but its key, {self.key_path.name}, is here: "
                "restore the log from a backup"
            )
        key = self._load_key()
        if not is_signed(before.hash, before.signature, public_text(key)):
            raise DataError(
                f"{self.path}: the audit log's last entry is not signed with {self.key_path.name}; {VERIFY}"
            )
        return key

    def _load_key(self) -> Ed25519PrivateKey:
        try:
            key = serialization.load_pem_private_key(self.key_path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise KitError(f"{self.key_path}: the audit log's key can't be read: restore it from a backup") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise KitError(f"{self.key_path}: this is no Ed25519 key: restore it from a backup")
        return key

    def _open(self, file: int, key: Ed25519PrivateKey) -> tuple[Entry, int]:
        """Write the first entry, then the key; return the entry and where the next line starts."""
        body = {"name": self.name, "public_key": public_text(key)}
        entry, line = write_entry(key, None, at=_now(), kind=OPENED, body=body)
        _put(file, line, 0)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_atomically(self.key_path, pem, mode=0o600, overwrite=False)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the two files' names, too, must be on the disk
        finally:
            os.close(folder)
        return entry, len(line)

    def _backwards(self) -> Iterator[bytes]:
        """Every whole line, newest first; reads no more than is asked for."""
        try:
            file = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return
        except OSError as error:
            raise DataError(f"{self.path}: the audit log can't be read: {error.strerror}") from error
        try:
            yield from _lines_backwards(file, _end_of_last_line(file))
        except OSError as error:
            raise DataError(f"{self.path}: the audit log can't be read: {error.strerror}") from error
        finally:
            os.close(file)

    def _entry(self, line: bytes) -> Entry:
        try:
            return read_entry(line)
        except ValueError as error:
            raise DataError(f"{self.path}: the audit log is damaged: {error}; {VERIFY}") from error

    def _read(self, *, until_first_line: bool = False) -> bytes:
        try:
            with self.path.open("rb") as file:
                return file.readline().removesuffix(b"\n") if until_first_line else file.read()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise DataError(f"{self.path}: the audit log can't be read: {error.strerror}") from error


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def _put(file: int, line: bytes, end: int) -> None:
    """Write `line` at `end`, over whatever a crash left there, and sync it; on a full disk nothing of it is left."""
    os.truncate(file, end)
    try:
        written = 0
        while written < len(line):
            written += os.pwrite(file, line[written:], end + written)
        os.fsync(file)
    except OSError:
        os.truncate(file, end)
        raise


def _end_of_last_line(file: int) -> int:
    """Where the next line starts: a line cut short by a crash counts for nothing."""
    end = os.lseek(file, 0, os.SEEK_END)
    while end > 0:
        start = max(0, end - _BLOCK)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _lines_backwards(file: int, end: int) -> Iterator[bytes]:
    """Yield the lines before `end`, where one ends, last first, without their newlines."""
    position, tail = end - 1, b""
    while position > 0:
        start = max(0, position - _BLOCK)
        tail = os.pread(file, position - start, start) + tail
        position = start
        tail, *lines = tail.split(b"\n")
        yield from reversed(lines)
    if end > 0:
        yield tail
