"""The Flower ClientApp of a site: message in, reply out, every reply recorded before it is handed over.

`answer` is the whole of it. The resident node calls it directly; `app` makes it available to Flower's stock
`flower-supernode` (node config `kit="..."`) and to its simulation runtime.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.record import note_policy, rolled_back
from client.releases import describe, record
from client.site import Site
from common.errors import KitError, WardroundError
from common.install import refuse_mixed_install
from common.kit import ENVIRONMENT_VARIABLE
from common.update import METRICS, REPORT, Answer, Request, attach_head, decode_request, encode_answer

refuse_mixed_install(__file__)
log = logging.getLogger("wardround.site")
SIMULATED_KITS = "WARDROUND_SIMULATED_KITS"
"""The variable that names a folder of sites' kits, for Flower's simulation runtime: node n is the n-th by name."""


def answer(message: Message, site: Site) -> Message:
    """Return the site's reply to `message`.

    Guarantees: whatever the reply holds is in the audit log, synced, before this returns; nothing but an encoded
    `Answer` is ever returned, with the head of the log that holds it. A request whose witness the log does not hold is
    refused, and its reply has no head: a log that was rolled back must not become the witness of itself.

    Raises DataError when the audit log can't be written: then nothing leaves.
    """
    try:
        request = decode_request(message.content)
    except WardroundError as error:
        return _release(message, site, None, _not_a_request(site, str(error)))
    if problem := rolled_back(site.log, request.witness):
        log.error("%s", problem)
        refusal = Answer(site.name, request.job.digest, request.number, "refused", problem)
        return _release(message, site, request, refusal)
    note_policy(site.log, site.kit_folder)
    return _release(message, site, request, site.answer(request), with_head=True)


def introduce(message: Message, site: Site) -> Message:
    """Return the reply to a query: the site's name and nothing else."""
    return _release(message, site, None, Answer(site=site.name, job_digest="", number=0, status="ok"))


def _not_a_request(site: Site, reason: str) -> Answer:
    return Answer(site=site.name, job_digest="", number=0, status="failed", reason=reason)


def _release(
    message: Message, site: Site, request: Request | None, given: Answer, *, with_head: bool = False
) -> Message:
    content = encode_answer(given)
    epsilon = site.cost(request) if request and given.status in ("ok", "refused") else None
    head = record(
        site.kit_folder,
        describe(
            parts_of(content),
            run=request.run if request else "",
            job_digest=given.job_digest,
            round_number=given.number,
            kind=request.kind if request else message.metadata.message_type,
            status=given.status,
            epsilon=epsilon,
            delta=request.job.privacy.delta if request and epsilon is not None else None,
            to=site.coordinator,
        ),
    )
    if with_head:
        attach_head(content, head.to_json())
    return Message(content, reply_to=message)


def parts_of(content: RecordDict) -> Mapping[str, bytes]:
    """Every field of the reply by name, with its bytes as they are sent. The head is not among them: it follows."""
    parts: dict[str, bytes] = {}
    for name, numbers in content.metric_records.items():
        parts |= {_named(name, field): repr(value).encode() for field, value in numbers.items()}
    for name, texts in content.config_records.items():
        parts |= {_named(name, field): str(value).encode() for field, value in texts.items()}
    for name, arrays in content.array_records.items():
        parts |= {f"{name}/{field}": array.data for field, array in arrays.items()}
    return parts


def _named(record_name: str, field: str) -> str:
    return field if record_name in (METRICS, REPORT) else f"{record_name}/{field}"


@lru_cache(maxsize=4)
def _open_site(kit_folder: str) -> Site:
    return Site.open(Path(kit_folder))


def _site_of(context: Context) -> Site:
    named = context.node_config.get("kit") or os.environ.get(ENVIRONMENT_VARIABLE) or _simulated(context)
    if not named:
        raise KitError(f"no kit: start the node with --node-config 'kit=\"FOLDER\"' or set {ENVIRONMENT_VARIABLE}")
    return _open_site(str(named))


def _simulated(context: Context) -> str:
    """The kit of a node of Flower's own simulation, which has a number and nothing else.

    The folder of kits comes from this machine's environment, never from a run: a coordinator must not choose a kit.
    """
    folder, number = os.environ.get(SIMULATED_KITS), context.node_config.get("partition-id")
    if not folder or number is None:
        return ""
    kits = sorted(path.parent for path in Path(folder).glob("*/kit.toml"))
    if not 0 <= int(number) < len(kits):
        raise KitError(f"{folder}: there are {len(kits)} kits, and none for simulated node {number}")
    return str(kits[int(number)])


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
