"""What every PACS can do, whichever protocol it speaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from client.pacs.query import Instance, Level, Series
from client.pacs.store import BrokenObjectError as BrokenObjectError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Take = Callable[[bytes, str | None], None]
"""Takes one object: a DICOM file's bytes, and the SOP Instance UID that it is said to have.

Raises BrokenObjectError for one that is not taken, and OSError when nothing can be.
"""


@dataclass(frozen=True)
class Outgoing:
    """A DICOM file that is to be sent: what it is and what it belongs to."""

    path: Path
    study: str
    uid: str
    sop_class: str
    syntax: str
    sha256: str


@dataclass(frozen=True)
class Sent:
    """What became of a file: `problem` is empty when the PACS has it."""

    file: Outgoing
    problem: str = ""


class Archive(Protocol):
    """A PACS. It is used in a `with` block, from one thread. Every method raises LinkError when it can't be reached."""

    @property
    def name(self) -> str:
        """How it is called in messages and in the audit log. No secret is in it."""

    def find(self, level: Level, keys: dict[str, str]) -> list[Dataset]:
        """Ask one level (`client.pacs.query.Find`)."""

    def retrieve(self, series: Series, missing: Sequence[Instance], take: Take) -> str:
        """Get these instances of a series and have each taken; return why some did not come, or ""."""

    def send(self, files: Sequence[Outgoing]) -> Iterator[Sent]:
        """Send files, and tell of each what became of it as soon as it is known."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
