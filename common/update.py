"""What crosses the wire between coordinator and site, and nothing else: the keys, encode, decode, validate.

A request carries the global model, the job and where in the run we are. An answer carries a refusal, or the site's
parameters, and numbers from the allow-list below. Tensors travel as safetensors; everything else is a bool, number or
short text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from safetensors import SafetensorError
from safetensors.numpy import load, save

from common.errors import UpdateError
from common.job import Job, job_from_json

Tensors = dict[str, np.ndarray]
"""A model's parameters and buffers by their names in the network's state dict."""

MODEL, JOB, ROUND, UPDATE, METRICS, REPORT = "model", "job", "round", "update", "metrics", "report"
PACKED, SAFETENSORS = "tensors", "safetensors"
MAX_TEXT = 2000
MAX_EXAMPLES = 10**9

METRIC_FIELDS = {
    "train.loss": "mean loss over the round's training steps",
    "train.seconds": "seconds spent in local training",
    "train.steps": "optimizer steps taken in the round",
    "train.images": "images in the site's training split",
    "train.patients": "patients in the site's training split",
    "privacy.epsilon": "epsilon spent by this run so far, as accounted",
    "privacy.delta": "delta of that epsilon",
    "privacy.noise_multiplier": "noise's standard deviation over the clip norm",
    "privacy.sample_rate": "probability with which a unit is in a step",
    "eval.images": "images evaluated",
    "eval.patients": "patients evaluated",
    "eval.loss": "mean loss",
    "eval.auc": "area under the ROC curve (mean over labels)",
    "eval.auc_low": "lower end of its 95 % interval",
    "eval.auc_high": "upper end of its 95 % interval",
    "eval.accuracy": "share of images whose label is right",
    "eval.accuracy_low": "lower end of its 95 % interval",
    "eval.accuracy_high": "upper end of its 95 % interval",
    "eval.sensitivity": "share of positives found (mean over labels)",
    "eval.sensitivity_low": "lower end of its 95 % interval",
    "eval.sensitivity_high": "upper end of its 95 % interval",
    "eval.specificity": "share of negatives found (mean over labels)",
    "eval.specificity_low": "lower end of its 95 % interval",
    "eval.specificity_high": "upper end of its 95 % interval",
    "eval.seconds": "seconds spent in evaluation",
}
"""Every number that an answer may carry beside the tensors, with its meaning. A field not listed can't be encoded."""


@dataclass(frozen=True)
class Request:
    """What the coordinator asks of a site.

    `kind` "train": evaluate `model` on the validation split, then train one round from it. "evaluate": evaluate it on
    `split` and send numbers only. `number` counts rounds from 1; `run` is the run's name in the coordinator's registry.
    """

    kind: Literal["train", "evaluate"]
    run: str
    number: int
    job: Job
    model: Tensors
    split: Literal["validation", "test"] = "validation"


@dataclass(frozen=True)
class Answer:
    """What a site sends back: a refusal with its reason, or numbers and (after training) its parameters.

    `examples` is the weight of the update: the number of images in the site's training split.
    `metrics` holds only keys of `METRIC_FIELDS`.
    """

    site: str
    job_digest: str
    number: int
    status: Literal["ok", "refused", "failed"]
    reason: str = ""
    examples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    tensors: Tensors | None = None


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
    return RecordDict(
        {
            MODEL: encode_tensors(request.model),
            JOB: ConfigRecord({"json": request.job.canonical_json(), "digest": request.job.digest}),
            ROUND: ConfigRecord(
                {"kind": request.kind, "run": request.run, "number": request.number, "split": request.split}
            ),
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
    except KeyError as error:
        raise UpdateError(f"the coordinator's message lacks {error}: is it of the same Ward Round version?") from error
    if kind not in ("train", "evaluate") or split not in ("validation", "test") or not isinstance(number, int):
        raise UpdateError(f'the coordinator\'s message asks for "{kind}" on "{split}", which this site does not know')
    if digest != job.digest:
        raise UpdateError("the job's digest is not that of its text: is it of the same Ward Round version?")
    return Request(
        kind=cast(Literal["train", "evaluate"], kind),
        split=cast(Literal["validation", "test"], split),
        run=run,
        number=number,
        job=job,
        model=decode_tensors(model, "the coordinator's model"),
    )


def encode_answer(answer: Answer) -> RecordDict:
    """Encode an answer. Raises UpdateError for a metric that is not on the allow-list: it can't leave."""
    unlisted = sorted(set(answer.metrics) - set(METRIC_FIELDS))
    if unlisted:
        raise UpdateError(f"metrics not on the allow-list of releases: {', '.join(unlisted)}")
    content = RecordDict(
        {
            METRICS: MetricRecord({name: float(value) for name, value in answer.metrics.items()}),
            REPORT: ConfigRecord(
                {
                    "site": answer.site,
                    "job": answer.job_digest,
                    "number": answer.number,
                    "status": answer.status,
                    "reason": answer.reason[:MAX_TEXT],
                    "examples": answer.examples,
                }
            ),
        }
    )
    if answer.tensors is not None:
        content[UPDATE] = encode_tensors(answer.tensors)
    return content


def decode_answer(content: RecordDict) -> Answer:
    """Decode an answer and check all that needs no knowledge of the run. Raises UpdateError with the reason."""
    try:
        report, metrics = content.config_records[REPORT], content.metric_records[METRICS]
        site, status, reason = str(report["site"]), str(report["status"]), str(report["reason"])
        number, examples, digest = report["number"], report["examples"], str(report["job"])
    except KeyError as error:
        raise UpdateError(f"the answer lacks {error}") from error
    if status not in ("ok", "refused", "failed"):
        raise UpdateError(f'the answer\'s status is "{status[:40]}", which is none of ok, refused, failed')
    if not isinstance(number, int) or not isinstance(examples, int) or not 0 <= examples <= MAX_EXAMPLES:
        raise UpdateError(f"the answer's count of examples, {examples!r}, is not between 0 and {MAX_EXAMPLES}")
    values: dict[str, float] = {}
    for name, value in metrics.items():
        if name not in METRIC_FIELDS:
            raise UpdateError(f'the answer has a metric "{name[:60]}" that is not on the allow-list')
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UpdateError(f'the answer\'s metric "{name}" is not a finite number')
        values[name] = float(value)
    tensors = decode_tensors(content.array_records[UPDATE], f"site {site}") if UPDATE in content else None
    return Answer(
        site=site,
        job_digest=digest,
        number=number,
        status=cast(Literal["ok", "refused", "failed"], status),
        reason=reason[:MAX_TEXT],
        examples=examples,
        metrics=values,
        tensors=tensors,
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
