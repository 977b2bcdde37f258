"""How requests and answers become the content of Flower's messages: over a wire as bytes, in one process as they are.

A grid says which by its attribute `carrier`; without one it is the wire's. Nothing else knows the difference.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any, Protocol

from flwr.app import ConfigRecord, RecordDict

from common.update import WITNESS, Answer, Request, Tensors, decode_answer, encode_request


class Carrier(Protocol):
    """Turns requests into contents and contents into answers, at the coordinator's end."""

    def pack(self, request: Request) -> RecordDict:
        """Return the request as a message's content: one for all sites."""

    def address(self, content: RecordDict, witness: str) -> RecordDict:
        """Return the content as one site gets it, with the witness of its own audit log."""

    def unpack(self, content: RecordDict) -> Answer:
        """Return the answer that a reply holds. Raises UpdateError."""

    def size(self, content: RecordDict) -> int:
        """Return the size of the tensors in bytes."""

    def drop(self, content: RecordDict) -> None:
        """Let go of the tensors that a content holds."""

    def collect(self) -> None:
        """Free what contents that nobody needs any more still hold in memory."""


class Wire:
    """Safetensors, and Flower's own records for the rest."""

    def collect(self) -> None:
        """Flower's records refer to themselves: only a collection frees the request's encoded model."""
        gc.collect()

    def pack(self, request: Request) -> RecordDict:
        """Return the encoded request."""
        return encode_request(request)

    def address(self, content: RecordDict, witness: str) -> RecordDict:
        """Return the same encoded model for every site, with the site's own witness."""
        return RecordDict(dict(content.items()) | {WITNESS: ConfigRecord({"head": witness})})

    def unpack(self, content: RecordDict) -> Answer:
        """Return the decoded and checked answer. Raises UpdateError."""
        return decode_answer(content)

    def size(self, content: RecordDict) -> int:
        """Return the size of all tensors, as they are sent."""
        return sum(len(array.data) for record in content.array_records.values() for array in record.values())

    def drop(self, content: RecordDict) -> None:
        """Let go now: Flower's records refer to themselves, and would stay until a collection."""
        for record in content.array_records.values():
            record.clear()


WIRE = Wire()


class Carried(RecordDict):
    """A content that holds a request or an answer itself, within one process."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


class ByReference:
    """Requests and answers as they are: nothing is copied or turned into bytes. For sites in the same process.

    Whoever gets tensors this way must not write into them.
    """

    def collect(self) -> None:
        """Nothing refers to itself here."""

    def pack(self, request: Request) -> RecordDict:
        """Return the request itself."""
        return Carried(request)

    def address(self, content: RecordDict, witness: str) -> RecordDict:
        """Return the content: it is the same for every site that has no audit log."""
        return Carried(replace(self.request_in(content), witness=witness)) if witness else content

    def unpack(self, content: RecordDict) -> Answer:
        """Return the answer itself."""
        answer = _carried(content)
        if not isinstance(answer, Answer):
            raise TypeError("the reply of a site in this process holds no answer")
        return answer

    def request_in(self, content: RecordDict) -> Request:
        """Return the request itself, at the site's end."""
        request = _carried(content)
        if not isinstance(request, Request):
            raise TypeError("the message to a site in this process holds no request")
        return request

    def size(self, content: RecordDict) -> int:
        """Return the size of the tensors' values in bytes: what a wire would carry, but for a short header."""
        value = _carried(content)
        if isinstance(value, Request):
            return _bytes(value.model) + _bytes(value.control)
        return _bytes(value.tensors or {}) if isinstance(value, Answer) else 0

    def drop(self, content: RecordDict) -> None:
        """Let go of what is carried."""
        if isinstance(content, Carried):
            content.value = None


def _carried(content: RecordDict) -> Any:
    return content.value if isinstance(content, Carried) else None


def _bytes(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
