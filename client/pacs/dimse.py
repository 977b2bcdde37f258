"""A PACS that speaks DIMSE: C-FIND, then C-GET or C-MOVE; C-STORE for what goes back."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from client.pacs.address import Peer, Tls
from client.pacs.archive import BrokenObjectError, Outgoing, Sent, Take
from client.pacs.query import Instance, Level, Series
from client.pacs.receiver import application, receiving, stored, syntaxes
from common.errors import LinkError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pynetdicom.association import Association
    from pynetdicom.presentation import PresentationContext

FIND = "1.2.840.10008.5.1.4.1.2.2.1"
GET = "1.2.840.10008.5.1.4.1.2.2.3"
MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
"""Study Root Query/Retrieve Information Model (PS3.4 C.6.2)."""
VERIFICATION = "1.2.840.10008.1.1"
PENDING = (0xFF00, 0xFF01)
WARNING = 0xB000
DESTINATION_UNKNOWN = 0xA801
MOST_CONTEXTS = 128
"""An association has at most so many presentation contexts: their numbers are odd and one byte (PS3.8 9.3.2.2)."""
_REFUSALS = {
    3: "it does not know the AE title {own}: have it entered there, or give another by --ae-title",
    7: "it is not called {title}: give its own AE title",
}
"""Why an association was rejected by the service user (PS3.8 table 9-21), in words."""


@dataclass(frozen=True)
class Own:
    """This side: its AE title; TLS, if the PACS has it; the port to which C-MOVE has it send (None: C-GET is used)."""

    ae_title: str
    tls: Tls | None = None
    receive_port: int | None = None


class DimsePacs:
    """A PACS by DIMSE (`client.pacs.archive.Archive`). The association for queries is kept, the others are short."""

    def __init__(self, peer: Peer, own: Own) -> None:
        self._peer, self._own = peer, own
        self._context = own.tls.to_pacs() if own.tls else None
        self._receiver_context = own.tls.to_listen() if own.tls and own.receive_port is not None else None
        self._asking: Association | None = None

    @property
    def name(self) -> str:
        """AE@HOST:PORT."""
        return str(self._peer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_asking()

    def echo(self) -> None:
        """Ask whether it is there (C-ECHO). Raises LinkError when it is not."""
        with self._associated([_context(VERIFICATION)]) as association:
            self._require_success(association.send_c_echo(), "C-ECHO")

    def find(self, level: Level, keys: dict[str, str]) -> list[Dataset]:
        """Ask one level by C-FIND."""
        if self._asking is None or not self._asking.is_established:
            self._asking = self._associate([_context(FIND)])
        found = []
        for status, answer in self._asking.send_c_find(_identifier(level, keys), FIND):
            if self._code(status) in PENDING and answer is not None:
                found.append(answer)
            elif self._code(status) not in PENDING:
                self._require_success(status, "C-FIND")
        return found

    def retrieve(self, series: Series, missing: Sequence[Instance], take: Take) -> str:
        """Get instances by C-GET, or by C-MOVE where a port to receive at is given."""
        self._stop_asking()
        whole = len(missing) == len(series.instances)
        keys = {"StudyInstanceUID": series.study, "SeriesInstanceUID": series.uid}
        wanted = [_identifier("SERIES", keys)] if whole else [
            _identifier("IMAGE", keys | {"SOPInstanceUID": instance.uid}) for instance in missing
        ]  # fmt: skip
        held = _Held(take)
        reason = self._move(wanted, held) if self._own.receive_port else self._get(wanted, missing, held)
        held.raise_error()
        return reason or held.reason

    def send(self, files: Sequence[Outgoing]) -> Iterator[Sent]:
        """Send by C-STORE, on one association for as many kinds of objects as fit in one."""
        waiting = list(files)
        while waiting:
            kinds = list(islice(dict.fromkeys((file.sop_class, file.syntax) for file in waiting), MOST_CONTEXTS))
            batch = [file for file in waiting if (file.sop_class, file.syntax) in kinds]
            waiting = [file for file in waiting if (file.sop_class, file.syntax) not in kinds]
            with self._associated([_context(*kind) for kind in kinds]) as association:
                for file in batch:
                    yield Sent(file, self._store(association, file))

    def _store(self, association: Association, file: Outgoing) -> str:
        """Send one file; return why the PACS did not take it, or ""."""
        from pydicom.dataset import Dataset
        from pydicom.uid import UID

        try:
            status = association.send_c_store(file.path) if association.is_established else Dataset()
        except ValueError:  # there is no context for it that the PACS accepted
            return f"it takes no {UID(file.sop_class).name} in {UID(file.syntax).name}"
        code = self._code(status)
        return "" if code == 0 or code & 0xF000 == WARNING else _in_words("C-STORE", status)

    def _get(self, wanted: Sequence[Dataset], missing: Sequence[Instance], held: _Held) -> str:
        from pynetdicom import build_role, evt

        contexts = _storage_contexts(missing)
        roles = [
            build_role(uid, scp_role=True) for uid in dict.fromkeys(str(each.abstract_syntax) for each in contexts)
        ]
        handlers = [(evt.EVT_C_STORE, partial(stored, held))]
        with self._associated([_context(GET), *contexts], handlers, roles) as association:
            return self._ask_for_all(association, wanted, held, lambda one: association.send_c_get(one, GET), "C-GET")

    def _move(self, wanted: Sequence[Dataset], held: _Held) -> str:
        own = self._own
        host = self._own_address()
        with (
            receiving(own.ae_title, host, own.receive_port or 0, held, tls=self._receiver_context),
            self._associated([_context(MOVE)]) as association,
        ):
            return self._ask_for_all(
                association, wanted, held, lambda one: association.send_c_move(one, own.ae_title, MOVE), "C-MOVE"
            )

    def _ask_for_all(
        self,
        association: Association,
        wanted: Sequence[Dataset],
        held: _Held,
        ask: Callable[[Dataset], Iterator[tuple[Dataset, Dataset | None]]],
        what: str,
    ) -> str:
        from pydicom.dataset import Dataset

        reason = ""
        for one in wanted:
            for status, _ in ask(one) if association.is_established else [(Dataset(), None)]:
                held.raise_error()
                code = self._code(status)
                if code == DESTINATION_UNKNOWN:
                    raise LinkError(
                        f'{self.name}: it does not know where "{self._own.ae_title}" is: have this AE title with the '
                        f"machine's address and port {self._own.receive_port} entered there"
                    )
                if code not in PENDING and code != 0:
                    reason = _in_words(what, status)
        return reason

    @contextmanager
    def _associated(
        self,
        contexts: list[PresentationContext],
        handlers: Any = None,
        roles: Any = None,
    ) -> Iterator[Association]:
        association = self._associate(contexts, handlers, roles)
        try:
            yield association
        except BaseException:
            association.abort()
            raise
        association.release()

    def _associate(
        self,
        contexts: list[PresentationContext],
        handlers: Any = None,
        roles: Any = None,
    ) -> Association:
        """Ask for an association. Raises LinkError with the reason why there is none."""
        peer = self._peer
        self._own_address()
        association = application(self._own.ae_title).associate(
            peer.host, peer.port, contexts, peer.ae_title, ext_neg=roles, evt_handlers=handlers,
            tls_args=(self._context, peer.host) if self._context else None,
        )  # fmt: skip
        if not association.is_established:
            raise LinkError(f"{self.name}: {self._why_none(association)}")
        return association

    def _why_none(self, association: Association) -> str:
        answer = association.acceptor.primitive
        if association.is_rejected and answer is not None:
            why = _REFUSALS.get(answer.diagnostic or 0) if answer.result_source == 1 else None
            if why is not None:
                return f"the PACS refused: {why.format(own=self._own.ae_title, title=self._peer.ae_title)}"
            return f"the PACS refused the association: {answer.reason_str}"
        if association.rejected_contexts:
            return "the PACS offers none of the services that this needs"
        tls = "does it want a certificate of this side (--certificate, --key)?" if self._context else "is it for --tls?"
        return f"the PACS ended the connection before it said anything: is this a DICOM port, and {tls}"

    def _own_address(self) -> str:
        """Connect once, to say clearly what is wrong; return the address that this machine has towards the PACS."""
        peer = self._peer
        try:
            with socket.create_connection((peer.host, peer.port), timeout=15) as plain:
                address = str(plain.getsockname()[0])
                if self._context is not None:
                    self._shake_hands(self._context, plain)
                return address
        except OSError as error:
            raise LinkError(f"{self.name}: the PACS can't be reached: {error.strerror or error}") from error

    def _shake_hands(self, context: ssl.SSLContext, plain: socket.socket) -> None:
        try:
            context.wrap_socket(plain, server_hostname=self._peer.host).close()
        except ssl.SSLCertVerificationError as error:
            raise LinkError(
                f"{self.name}: its certificate is not trusted ({error.verify_message}): name who signed it by --ca"
            ) from error
        except OSError as error:
            raise LinkError(
                f"{self.name}: no TLS there ({error.strerror or error}): leave --tls out, or mend the PACS"
            ) from error

    def _require_success(self, status: Dataset, what: str) -> None:
        if self._code(status) != 0:
            raise LinkError(f"{self.name}: {_in_words(what, status)}")

    def _code(self, status: Dataset) -> int:
        """The status of an answer. Raises LinkError when there is none: the association has ended."""
        if "Status" not in status:
            raise LinkError(
                f"{self.name}: the PACS ended the association: it went away, was silent for too long, or does not "
                f"allow {self._own.ae_title} to do this"
            )
        return int(status.Status)

    def _stop_asking(self) -> None:
        """Release the association for queries: a PACS ends an idle one, and may count how many there are."""
        if self._asking is not None and self._asking.is_established:
            self._asking.release()
        self._asking = None


class _Held:
    """Takes objects in another thread, and holds what went wrong for the thread that asked for them."""

    def __init__(self, take: Take) -> None:
        self._take = take
        self._error: OSError | None = None
        self.reason = ""

    def __call__(self, content: bytes, uid: str | None) -> None:
        try:
            self._take(content, uid)
        except BrokenObjectError as error:
            self.reason = str(error)
            raise
        except OSError as error:
            self._error = error
            raise

    def raise_error(self) -> None:
        """Raise the OSError that taking an object met, if it did: nothing more can be taken."""
        if self._error is not None:
            raise self._error


def _context(sop_class: str, *names: str) -> PresentationContext:
    """A context of one class; of an uncompressed file also in the syntax that every peer has (PS3.5 10.1)."""
    from pydicom.uid import UID, ImplicitVRLittleEndian
    from pynetdicom import build_context

    if names == ():
        return build_context(sop_class)
    plain = not UID(names[0]).is_encapsulated
    return build_context(sop_class, list(dict.fromkeys([*names, ImplicitVRLittleEndian] if plain else names)))


def _storage_contexts(instances: Sequence[Instance]) -> list[PresentationContext]:
    """Contexts for what will be sent: one for each class and syntax, so that nothing has to be transcoded.

    Of classes that the PACS does not tell, or that are too many, one for each class: then the PACS chooses the syntax.
    """
    from pynetdicom import StoragePresentationContexts, build_context

    room = MOST_CONTEXTS - 1
    classes = {instance.sop_class for instance in instances}
    if "" in classes:
        classes = {str(context.abstract_syntax) for context in StoragePresentationContexts}
    names = list(syntaxes())
    if len(classes) * len(names) <= room:
        return [build_context(sop_class, name) for sop_class in sorted(classes) for name in names]
    return [build_context(sop_class, names) for sop_class in sorted(classes)[:room]]


def _identifier(level: Level, keys: dict[str, str]) -> Dataset:
    from pydicom.config import IGNORE
    from pydicom.datadict import dictionary_VR, tag_for_keyword
    from pydicom.dataelem import DataElement
    from pydicom.dataset import Dataset

    identifier = Dataset()
    if not all(value.isascii() for value in keys.values()):
        identifier.SpecificCharacterSet = "ISO_IR 192"
    identifier.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        tag = tag_for_keyword(keyword) or 0
        identifier[tag] = DataElement(tag, dictionary_VR(tag), value, validation_mode=IGNORE)  # PACS hold odd ones
    return identifier


def _in_words(what: str, status: Dataset) -> str:
    from pynetdicom.status import code_to_category

    text = f"{what} ended with status 0x{status.Status:04X}, {code_to_category(status.Status).lower()}"
    comment = str(status.get("ErrorComment") or "")
    failed = status.get("NumberOfFailedSuboperations")
    text += f"; {failed} objects failed" if failed else ""
    return f"{text}: {comment}" if comment.isprintable() and comment else text
