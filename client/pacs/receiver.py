"""A Storage SCP: who is let in, and what becomes of each object. For `site listen`, and as C-MOVE's destination."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from client.pacs.archive import BrokenObjectError, Take
from common.errors import UsageError

if TYPE_CHECKING:
    from pynetdicom.ae import ApplicationEntity
    from pynetdicom.events import Event

log = logging.getLogger("wardround.pacs")

SUCCESS, OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000
"""Status codes of C-STORE (PS3.4 B.2.3)."""
PATIENCE_SECONDS = 120.0
"""How long a peer may be silent in the middle of an exchange: one that reads from tape is slow."""
MOST_ASSOCIATIONS = 10


@contextmanager
def receiving(
    ae_title: str,
    host: str,
    port: int,
    take: Take,
    *,
    tls: ssl.SSLContext | None = None,
    calling: Sequence[str] = (),
    on_end: Callable[[Event], None] | None = None,
) -> Iterator[tuple[ApplicationEntity, int]]:
    """Answer C-STORE and C-ECHO until the block ends; yield the application entity and its port.

    A peer must call it by `ae_title` and, if there are any, have one of the titles in `calling`. Each object is taken
    in the thread of its association. `on_end` is called when an association has ended, however it did. What is still
    being sent when the block ends is cut off: its sender is told.

    Raises UsageError when the port can't be had.
    """
    from pynetdicom import AllStoragePresentationContexts, evt

    entity = application(ae_title)
    entity.maximum_associations = MOST_ASSOCIATIONS
    entity.require_called_aet = True
    entity.require_calling_aet = list(calling)
    for context in AllStoragePresentationContexts:
        entity.add_supported_context(context.abstract_syntax or "", list(syntaxes()))
    entity.add_supported_context("1.2.840.10008.1.1")  # Verification, which C-ECHO is
    handlers: list[Any] = [
        (evt.EVT_C_STORE, partial(stored, take)),
        (evt.EVT_REJECTED, _tell_of_refusal),
        (evt.EVT_CONN_CLOSE, on_end or (lambda event: None)),
    ]
    try:
        server = entity.start_server((host, port), block=False, ssl_context=tls, evt_handlers=handlers)
    except OSError as error:
        raise UsageError(f"{host}:{port}: can't listen there: {error.strerror or error}") from error
    try:
        yield entity, server.server_address[1]  # type: ignore[union-attr] # a server comes from block=False
    finally:
        entity.shutdown()


def application(ae_title: str) -> ApplicationEntity:
    """Return an application entity of this site's, with the house's deadlines."""
    from pynetdicom.ae import ApplicationEntity

    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # it tells of patients, in many lines
    entity = ApplicationEntity(ae_title=ae_title)
    entity.connection_timeout, entity.acse_timeout = 15, 30
    entity.dimse_timeout = entity.network_timeout = PATIENCE_SECONDS
    return entity


def stored(take: Take, event: Event) -> int:
    """Have an object of a C-STORE request taken, and return the request's status."""
    uid = str(event.request.AffectedSOPInstanceUID)  # type: ignore[union-attr] # a C-STORE request has it
    try:
        take(event.encoded_dataset(), uid)
    except BrokenObjectError as error:
        log.warning("%s: an object was refused: %s", event.assoc.remote["ae_title"], error)
        return CANNOT_UNDERSTAND
    except OSError as error:
        log.error("%s: an object can't be kept: %s", event.assoc.remote["ae_title"], error.strerror)
        return OUT_OF_RESOURCES
    return SUCCESS


def syntaxes() -> tuple[str, ...]:
    """Return the transfer syntaxes in which objects are taken: all that the intake can decode, as they are."""
    from pydicom import uid

    return (
        uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian,
        uid.ExplicitVRBigEndian, uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1,
        uid.JPEGLSLossless, uid.JPEGLSNearLossless, uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless,
        uid.HTJ2KLosslessRPCL, uid.HTJ2K, uid.RLELossless,
    )  # fmt: skip


def _tell_of_refusal(event: Event) -> None:
    peer, request = event.assoc.remote, event.assoc.requestor.primitive
    called = request.called_ae_title if request is not None else ""
    log.warning(
        "refused an association of %s (%s) that called %s: not an AE title that is let in, or not this one's",
        peer["ae_title"], peer["address"], called,
    )  # fmt: skip
