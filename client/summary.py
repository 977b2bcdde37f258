"""A job in plain words, for the person who must decide on it."""

from __future__ import annotations

from common.bins import HISTOGRAMS, LABEL, histogram
from common.job import Job
from common.statistics import counts_only
from common.tasks.parameters import Truth, kind_of

_UNITS = {"patient": "each patient, with all of the patient's images", "image": "each single image, not each patient"}


def in_plain_words(job: Job) -> list[str]:
    """Return sentences: what the job would do here, what would leave, and what it would cost in privacy."""
    lines = [job.description] if job.description else []
    lines += _statistics(job) if counts_only(job) else _training(job)
    privacy = job.privacy
    if privacy.mechanism == "dp-sgd":
        lines.append(
            f"Differential privacy protects {_UNITS[privacy.unit]}: at most epsilon {privacy.epsilon:g} at delta "
            f"{privacy.delta:g} is spent. The noise is added here, so nobody outside has to be trusted with it."
        )
    elif privacy.mechanism == "central":
        lines.append(
            f"Privacy is added by the coordinator (epsilon {privacy.epsilon:g} at delta {privacy.delta:g} for a whole "
            "site): the coordinator itself sees this site's exact model."
        )
    else:
        lines.append("There is NO differential privacy: what leaves may tell of single patients.")
    return lines


def _training(job: Job) -> list[str]:
    kind = "row" if job.data.table else "image"
    return [
        f'It would train the network "{job.network.name}" on the collection "{job.data.collection}" ({_form(job)}) to '
        f"{_aim(job)} ({job.task.kind}).",
        f"Up to {job.aggregation.rounds} rounds with {len(job.sites)} sites ({', '.join(job.sites)}), combined by "
        f'"{job.aggregation.strategy}". After each round the model trained here leaves; no {kind} does.',
        *_groups(job),
    ]


def _groups(job: Job) -> list[str]:
    if not job.task.subgroups:
        return []
    noised = "noised and paid for; or, where the policy lets the split's metrics leave exactly, " if job.private else ""
    return [
        "At the end metrics leave for groups of the test split's patients too, by "
        f"{' and by '.join(job.task.subgroups)}: {noised}none of fewer patients than the policy's smallest count."
    ]


def _aim(job: Job) -> str:
    aims: dict[Truth, str] = {
        "label": "tell apart: {}", "mask": "outline: {}", "boxes": "find: {}", "image": "restore them from a part"
    }  # fmt: skip
    return aims[kind_of(job.task.kind).truth].format(", ".join(job.task.labels))


def _statistics(job: Job) -> list[str]:
    counted = ", ".join(histogram(name, job.task.labels).title for name in (LABEL, *HISTOGRAMS))
    return [
        f'It would count the patients of the collection "{job.data.collection}" by: {counted}. Nothing is trained.',
        f"The counts, in bins that are the same everywhere, leave once, to the coordinator of {len(job.sites)} sites "
        f"({', '.join(job.sites)}); no image does, and no word of a header.",
    ]


def _form(job: Job) -> str:
    if job.data.table:
        return f"a table: of each row {', '.join(job.data.features)}"
    if job.data.bagged:
        images, *size = job.data.size
        what = f"tiles of {job.data.mpp:g} micrometres a pixel" if job.data.bag == "slide" else "images"
        return f"of each {job.data.bag} up to {images} {what}, {' x '.join(map(str, size))} pixels"
    return f"{' x '.join(map(str, job.data.size))} pixels"
