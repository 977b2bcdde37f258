"""What crosses the wire between coordinator and site, and nothing else: the keys, encode, decode, validate.

A request carries the global model, the job and where in the run we are. An answer carries a refusal, or the site's
parameters, and numbers from the allow-list below. Tensors travel as safetensors; everything else is a bool, number or
short text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from safetensors import SafetensorError
from safetensors.numpy import load, save

from common.errors import UpdateError
from common.job import Job, job_from_json
from common.release import Numbers, numbers_of

Tensors = dict[str, np.ndarray]
"""A model's parameters and buffers by their names in the network's state dict."""

MODEL, JOB, ROUND, UPDATE, METRICS, REPORT = "model", "job", "round", "update", "metrics", "report"
CONTROL = "control"
COUNTED = "rounds/counted"
"""In a request's `control`, int64 by the job's sites: the round of each site whose update was the last that counted."""
WITNESS, HEAD, BASIS = "witness", "head", "basis"
PACKED, SAFETENSORS = "tensors", "safetensors"
MAX_TEXT, MAX_WORD = 2000, 100
MAX_EXAMPLES = 10**9
Kind = Literal["consent", "train", "evaluate", "statistics"]
Split = Literal["validation", "test"]
Status = Literal["ok", "refused", "failed", "waiting"]


@dataclass(frozen=True)
class Request:
    """What the coordinator asks of a site.

    `kind` "consent": say whether this job may run here; there is no model yet. "train": evaluate `model` on the
    validation split, then train one round from it. "evaluate": evaluate it on `split` and send numbers only.
    "statistics": count, as a job for statistics says; there is no model. `number`
    counts rounds from 1; `run` is the run's name in the coordinator's registry. `witness` is the newest signed head of
    this site's audit log that the coordinator holds, as JSON: a log that does not hold it has been rolled back.
    `control` is what the strategy sends beside the model (SCAFFOLD's control variate); nothing for most.
    """

    kind: Kind
    run: str
    number: int
    job: Job
    model: Tensors
    split: Split = "validation"
    witness: str = ""
    control: Tensors = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What a site sends back: a refusal with its reason, or numbers and (after training) its parameters.

    `status` "waiting": nothing was done, because a person must approve or the hour is wrong; ask again. `examples` is
    the weight of the update: the images in the site's training split, or, with privacy, its released count of units.
    `head` is the signed head of the site's audit log with this answer recorded, as JSON. `version` is that
    of the site's software and `device` what it trains on; "" where its policy does not tell.
    """

    site: str
    job_digest: str
    number: int
    status: Status
    reason: str = ""
    examples: int = 0
    numbers: Numbers = field(default_factory=Numbers)
    tensors: Tensors | None = None
    head: str = ""
    version: str = ""
    device: str = ""

    @property
    def metrics(self) -> dict[str, float]:
        """The single numbers by their names in `METRIC_FIELDS`."""
        return self.numbers.flat()


def round_before(request: Request, site: str) -> int:
    """Return the round under which `site` finds what it kept after its last update that counted.

    Where the strategy says which that was, the one after it; else the round that is asked for. Raises UpdateError when
    what it says does not fit the job.
    """
    counted = request.control.get(COUNTED)
    if counted is None:
        return request.number
    if counted.shape != (len(request.job.sites),) or counted.dtype != np.int64:
        raise UpdateError("the coordinator's control does not fit the job's sites")
    return min(int(counted[request.job.sites.index(site)]) + 1, request.number)


def encode_tensors(tensors: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Encode tensors as one array of safetensors bytes.

    One, because Flower stores, signs and fetches every array of a record by itself: a network of 600 tensors would
    take two thousand calls a round instead of a handful.
    """
    packed = save({name: np.asarray(tensor, order="C") for name, tensor in tensors.items()})
    return ArrayRecord({PACKED: Array(dtype="uint8", shape=(len(packed),), stype=SAFETENSORS, data=packed)})


def decode_tensors(record: ArrayRecord, where: str) -> Tensors:
    """Decode tensors, in no promised order. Raises UpdateError, naming `where`, if they are not safetensors."""
    if list(record) != [PACKED] or record[PACKED].stype != SAFETENSORS:
        kinds = ", ".join(sorted({array.stype[:20] for array in record.values()})) or "nothing"
        raise UpdateError(f"{where}: the tensors are serialised as {kinds}; only safetensors is accepted")
    try:
        tensors: Tensors = load(record[PACKED].data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UpdateError(f"{where}: the tensors can't be decoded: {error}") from error
    for name, tensor in tensors.items():
        if tensor.dtype.kind not in "fiub":
            raise UpdateError(f'{where}: tensor "{name}" has dtype {tensor.dtype}; only numbers are accepted')
    return tensors


def encode_request(request: Request) -> RecordDict:
    """Encode a request as a message's content."""
    control = {CONTROL: encode_tensors(request.control)} if request.control else {}
    return RecordDict(
        {
            **control,
            MODEL: encode_tensors(request.model),
            JOB: ConfigRecord({"json": request.job.canonical_json(), "digest": request.job.digest}),
            ROUND: ConfigRecord(
                {"kind": request.kind, "run": request.run, "number": request.number, "split": request.split}
            ),
            WITNESS: ConfigRecord({"head": request.witness}),
        }
    )


def decode_request(content: RecordDict) -> Request:
    """Decode a request. Raises UpdateError or JobError when it is not one, or when the job's digest is not its own."""
    try:
        job_record, where = content.config_records[JOB], content.config_records[ROUND]
        model = content.array_records[MODEL]
        job = job_from_json(str(job_record["json"]), source="the coordinator's job")
        kind, split = str(where["kind"]), str(where["split"])
        number = where["number"]
        run, digest = str(where["run"]), job_record["digest"]
        witness = str(content.config_records[WITNESS]["head"])
    except KeyError as error:
        raise UpdateError(f"the coordinator's message lacks {error}: is it of the same Ward Round version?") from error
    if kind not in get_args(Kind) or split not in get_args(Split) or not isinstance(number, int):
        raise UpdateError(f'the coordinator\'s message asks for "{kind}" on "{split}", which this site does not know')
    if digest != job.digest:
        raise UpdateError("the job's digest is not that of its text: is it of the same Ward Round version?")
    return Request(
        kind=cast(Kind, kind),
        split=cast(Split, split),
        run=run,
        number=number,
        job=job,
        model=decode_tensors(model, "the coordinator's model"),
        witness=witness[:MAX_TEXT],
        control=_control(content),
    )


def _control(content: RecordDict) -> Tensors:
    if CONTROL not in content.array_records:
        return {}
    return decode_tensors(content.array_records[CONTROL], "the coordinator's control")


def encode_answer(answer: Answer) -> RecordDict:
    """Encode an answer. `Numbers` has a field for all that may leave, and nothing else is taken from the answer."""
    content = RecordDict(
        {
            METRICS: MetricRecord({**answer.numbers.flat(), **answer.numbers.lists()}),
            BASIS: ConfigRecord(dict(answer.numbers.bases())),
            REPORT: ConfigRecord(
                {
                    "site": answer.site,
                    "job": answer.job_digest,
                    "number": answer.number,
                    "status": answer.status,
                    "reason": answer.reason[:MAX_TEXT],
                    "examples": answer.examples,
                    **_machine(answer),
                }
            ),
        }
    )
    if answer.tensors is not None:
        content[UPDATE] = encode_tensors(answer.tensors)
    if answer.head:
        attach_head(content, answer.head)
    return content


def _machine(answer: Answer) -> dict[str, str]:
    told = {"version": answer.version[:MAX_WORD], "device": answer.device[:MAX_WORD]}
    return {name: text for name, text in told.items() if text}


def attach_head(content: RecordDict, head: str) -> None:
    """Attach the audit log's head to an encoded answer: it is known only once the answer is recorded."""
    content[HEAD] = ConfigRecord({"head": head})


def decode_answer(content: RecordDict) -> Answer:
    """Decode an answer and check all that needs no knowledge of the run. Raises UpdateError with the reason."""
    try:
        report, metrics = content.config_records[REPORT], content.metric_records[METRICS]
        site, status, reason = str(report["site"]), str(report["status"]), str(report["reason"])
        number, examples, digest = report["number"], report["examples"], str(report["job"])
        bases = content.config_records[BASIS]
    except KeyError as error:
        raise UpdateError(f"the answer lacks {error}") from error
    if status not in get_args(Status):
        raise UpdateError(f'the answer\'s status is "{status[:40]}", which is none of {", ".join(get_args(Status))}')
    if not isinstance(number, int) or not isinstance(examples, int) or not 0 <= examples <= MAX_EXAMPLES:
        raise UpdateError(f"the answer's count of examples, {examples!r}, is not between 0 and {MAX_EXAMPLES}")
    head = str(content.config_records[HEAD].get("head", ""))[:MAX_TEXT] if HEAD in content.config_records else ""
    tensors = decode_tensors(content.array_records[UPDATE], f"site {site}") if UPDATE in content else None
    return Answer(
        site=site,
        job_digest=digest,
        number=number,
        status=cast(Status, status),
        reason=reason[:MAX_TEXT],
        examples=examples,
        numbers=numbers_of(metrics, bases),
        tensors=tensors,
        head=head,
        version=str(report.get("version", ""))[:MAX_WORD],
        device=str(report.get("device", ""))[:MAX_WORD],
    )


def check_tensors(tensors: Mapping[str, np.ndarray], like: Mapping[str, np.ndarray], where: str) -> None:
    """Check that `tensors` fit the model `like`: same names, shapes, dtypes, all finite.

    Raises
    ------
    UpdateError
        Naming `where` and the first tensor that does not fit.
    """
    missing, extra = sorted(set(like) - set(tensors)), sorted(set(tensors) - set(like))
    if missing or extra:
        parts = [
            f"{word} {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
            for word, names in (("lacks", missing), ("has unknown", extra))
            if names
        ]
        raise UpdateError(f"{where}: {' and '.join(parts)}: it is of another architecture")
    for name, expected in like.items():
        tensor = tensors[name]
        if tensor.shape != expected.shape:
            raise UpdateError(f'{where}: tensor "{name}" has shape {tensor.shape}, expected {expected.shape}')
        if tensor.dtype != expected.dtype:
            raise UpdateError(f'{where}: tensor "{name}" has dtype {tensor.dtype}, expected {expected.dtype}')
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            raise UpdateError(f'{where}: tensor "{name}" has values that are not finite (NaN or infinity)')
