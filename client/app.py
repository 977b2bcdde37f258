"""The Flower ClientApp of a site: message in, reply out, every reply recorded before it is handed over.

`answer` is the whole of it. The resident node calls it directly; `app` makes it available to Flower's stock
`flower-supernode` (node config `kit="..."`) and to its simulation runtime.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.releases import describe, record
from client.site import Site
from common.errors import KitError, WardroundError
from common.install import refuse_mixed_install
from common.kit import ENVIRONMENT_VARIABLE
from common.update import UPDATE, Answer, Request, decode_request, encode_answer

refuse_mixed_install(__file__)


def answer(message: Message, site: Site) -> Message:
    """Return the site's reply to `message`.

    Guarantees: whatever the reply holds is in the release log, synced, before this returns; nothing but an encoded
    `Answer` is ever returned. Raises DataError when the release log can't be written: then nothing leaves.
    """
    try:
        request = decode_request(message.content)
    except WardroundError as error:
        return _release(message, site, None, _not_a_request(site, str(error)))
    return _release(message, site, request, site.answer(request))


def introduce(message: Message, site: Site) -> Message:
    """Return the reply to a query: the site's name and nothing else."""
    return _release(message, site, None, Answer(site=site.name, job_digest="", number=0, status="ok"))


def _not_a_request(site: Site, reason: str) -> Answer:
    return Answer(site=site.name, job_digest="", number=0, status="failed", reason=reason)


def _release(message: Message, site: Site, request: Request | None, given: Answer) -> Message:
    content = encode_answer(given)
    record(
        site.kit_folder,
        describe(
            _parts(content, given),
            run=request.run if request else "",
            job_digest=given.job_digest,
            round_number=given.number,
            kind=request.kind if request else message.metadata.message_type,
            status=given.status,
            epsilon=given.metrics.get("privacy.epsilon"),
        ),
    )
    return Message(content, reply_to=message)


def _parts(content: RecordDict, given: Answer) -> Mapping[str, bytes]:
    """Every field of the reply by name, with its bytes as they are sent."""
    parts = {name: repr(value).encode() for name, value in given.metrics.items()}
    parts |= {
        "status": given.status.encode(),
        "reason": given.reason.encode(),
        "examples": str(given.examples).encode(),
    }
    if UPDATE in content:
        parts |= {f"update/{name}": array.data for name, array in content.array_records[UPDATE].items()}
    return parts


@lru_cache(maxsize=4)
def _open_site(kit_folder: str) -> Site:
    return Site.open(Path(kit_folder))


def _site_of(context: Context) -> Site:
    named = context.node_config.get("kit") or os.environ.get(ENVIRONMENT_VARIABLE)
    if not named:
        raise KitError(f"no kit: start the node with --node-config 'kit=\"FOLDER\"' or set {ENVIRONMENT_VARIABLE}")
    return _open_site(str(named))


app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer a training message."""
    return answer(message, _site_of(context))


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Answer an evaluation message."""
    return answer(message, _site_of(context))


@app.query()
def query(message: Message, context: Context) -> Message:
    """Answer a query with the site's name, by which the coordinator knows its sites."""
    return introduce(message, _site_of(context))
