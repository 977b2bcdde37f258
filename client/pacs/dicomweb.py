"""A PACS that speaks DICOMweb: QIDO-RS, WADO-RS, and STOW-RS for what goes back."""

from __future__ import annotations

import http.client
import logging
import ssl
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from http import HTTPStatus
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from client.pacs.address import SECRET_VARIABLE, Secret, Tls
from client.pacs.archive import BrokenObjectError, Outgoing, Sent, Take
from client.pacs.query import Instance, Level, Series
from common.errors import ForbiddenError, LinkError, SignInError

if TYPE_CHECKING:
    import requests
    from pydicom.dataset import Dataset

CONNECT_SECONDS, PATIENCE_SECONDS = 15, 120
T = TypeVar("T")
_PARENTS: dict[Level, tuple[str, ...]] = {
    "STUDY": (),
    "SERIES": ("StudyInstanceUID",),
    "IMAGE": ("StudyInstanceUID", "SeriesInstanceUID"),
}
"""What stands in a query's path (PS3.18 10.6), level by level; the rest of the keys are its parameters."""
_UID: dict[Level, str] = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}


class WebPacs:
    """A PACS by DICOMweb (`client.pacs.archive.Archive`)."""

    def __init__(self, url: str, tls: Tls, secret: Secret | None) -> None:
        from dicomweb_client.web import DICOMwebClient

        logging.getLogger("dicomweb_client").setLevel(logging.ERROR)  # it tells of patients, and of pages to come
        self.name = url
        self._session = _session(tls, secret)
        self._client = DICOMwebClient(
            url, session=self._session, permissive_uid=True, timeout=(CONNECT_SECONDS, PATIENCE_SECONDS)
        )
        self._client.set_http_retry_params(max_attempts=3, wait_exponential_multiplier=250)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()

    def find(self, level: Level, keys: dict[str, str]) -> list[Dataset]:
        """Ask one level by QIDO-RS, page by page: a server may give a part at a time."""
        from pydicom.dataset import Dataset

        parents = [keys[name] for name in _PARENTS[level]]
        inside = {name: value for name, value in keys.items() if name not in _PARENTS[level]}
        filters = {name: value for name, value in inside.items() if value}
        client = self._client
        search: dict[Level, Callable[..., list[dict[str, Any]]]] = {
            "STUDY": client.search_for_studies, "SERIES": client.search_for_series, "IMAGE": client.search_for_instances
        }  # fmt: skip
        ask = partial(search[level], *parents, fields=list(inside), search_filters=filters)
        found: dict[str, Dataset] = {}
        while True:
            page = self._told(partial(ask, offset=len(found)))
            try:
                answers = [Dataset.from_json(answer) for answer in page]
                new = {str(answer[_UID[level]].value): answer for answer in answers}
            except Exception as error:  # foreign JSON makes pydicom raise nearly anything
                raise LinkError(f"{self.name}: its answer to a query is not DICOM JSON") from error
            if not new.keys() - found.keys():  # nothing more, or a server that does not know "offset"
                return list(found.values())
            found |= new

    def retrieve(self, series: Series, missing: Sequence[Instance], take: Take) -> str:
        """Get instances by WADO-RS, one by one, each in the transfer syntax that it has there."""
        reason = ""
        for instance in missing:
            try:
                content = self._told(partial(self._instance, series, instance.uid), one=True)
                take(content, instance.uid)
            except BrokenObjectError as error:
                reason = str(error)
        return reason

    def send(self, files: Sequence[Outgoing]) -> Iterator[Sent]:
        """Send by STOW-RS, one file a request."""
        for file in files:
            try:
                yield Sent(file, self._told(partial(self._store, file.path), one=True))
            except BrokenObjectError as error:
                yield Sent(file, str(error))

    def _instance(self, series: Series, uid: str) -> bytes:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what an object has in it that the standard would not have
            found = self._client.retrieve_instance(series.study, series.uid, uid)
            buffer = BytesIO()
            found.save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()

    def _store(self, path: Path) -> str:
        """Send one file; return why it was not taken, or ""."""
        import pydicom

        answer = self._client.store_instances([pydicom.dcmread(path)])
        failed = answer.get("FailedSOPSequence") or ()
        return f"it was refused with the reason 0x{failed[0].get('FailureReason') or 0:04X}" if failed else ""

    def _told(self, ask: Callable[[], T], *, one: bool = False) -> T:
        """Return what `ask` gives; what goes wrong becomes one line.

        With `one` it is about one object: what is wrong with that alone is a BrokenObjectError.
        """
        import requests
        import retrying

        try:
            return ask()
        except requests.HTTPError as error:
            raise self._refused(error.response.status_code if error.response is not None else 0, one=one) from error
        except requests.exceptions.SSLError as error:
            raise LinkError(
                f"{self.name}: its certificate is not trusted, or it wants one of this side: name who signed it by "
                "--ca, or give --certificate and --key"
            ) from error
        except requests.Timeout as error:
            raise LinkError(f"{self.name}: the PACS was silent for too long") from error
        except requests.RequestException as error:
            raise LinkError(f"{self.name}: the PACS can't be reached, or went away: {_cause(error)}") from error
        except retrying.RetryError as error:
            raise LinkError(f"{self.name}: the PACS is too busy: try again later") from error
        except OSError:
            raise
        except Exception as error:  # foreign bytes make the libraries raise nearly anything
            if one:
                raise BrokenObjectError("it can't be read as DICOM") from error
            raise LinkError(f"{self.name}: its answer is not DICOMweb's: is the URL right?") from error

    def _refused(self, status: int, *, one: bool) -> Exception:
        if status == HTTPStatus.UNAUTHORIZED:
            return SignInError(
                f"{self.name}: the PACS does not accept the user or the secret: see --user and --secret-file, "
                f"or {SECRET_VARIABLE}"
            )
        if status == HTTPStatus.FORBIDDEN:
            return ForbiddenError(f"{self.name}: the PACS does not allow this user or token to do that")
        if one:
            return BrokenObjectError(f"the PACS answered {status} {_phrase(status)}")
        hint = ": is the URL that of its DICOMweb service?" if status == HTTPStatus.NOT_FOUND else ""
        return LinkError(f"{self.name}: the PACS answered {status} {_phrase(status)}{hint}")


def _session(tls: Tls, secret: Secret | None) -> requests.Session:
    """An HTTP session that takes nothing from the environment: no proxy, no .netrc, no other list of authorities."""
    import requests
    from requests.auth import HTTPBasicAuth

    session = requests.Session()
    session.trust_env = False
    machine = ssl.get_default_verify_paths()
    session.verify = str(tls.ca) if tls.ca else machine.cafile or machine.capath or True
    if tls.certificate and tls.key:
        session.cert = (str(tls.certificate), str(tls.key))
    session.headers["Accept"] = "application/dicom+json"
    if secret is not None and secret.user is not None:
        session.auth = HTTPBasicAuth(secret.user.encode(), secret.text.encode())
    elif secret is not None:
        session.headers["Authorization"] = f"Bearer {secret.text}"
    return session


def _phrase(status: int) -> str:
    return http.client.responses.get(status, "")


def _cause(error: BaseException) -> str:
    """The system's own words at the bottom of a chain of errors: those above repeat the URL, with who was asked for."""
    inner: object = error
    while isinstance(inner, BaseException):
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        inner = inner.__cause__ or inner.__context__ or next(iter(inner.args), None)
    return "the connection was lost"
