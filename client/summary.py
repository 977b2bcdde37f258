"""A job in plain words, for the person who must decide on it."""

from __future__ import annotations

from common.job import Job

_UNITS = {"patient": "each patient, with all of the patient's images", "image": "each single image, not each patient"}


def in_plain_words(job: Job) -> list[str]:
    """Return sentences: what the job would do here, what would leave, and what it would cost in privacy."""
    kind = "row" if job.data.table else "image"
    lines = [job.description] if job.description else []
    lines += [
        f'It would train the network "{job.network.name}" on the collection "{job.data.collection}" ({_form(job)}) to '
        f"tell apart: {', '.join(job.task.labels)} ({job.task.kind}).",
        f"Up to {job.aggregation.rounds} rounds with {len(job.sites)} sites ({', '.join(job.sites)}), combined by "
        f'"{job.aggregation.strategy}". After each round the model trained here leaves; no {kind} does.',
    ]
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


def _form(job: Job) -> str:
    if job.data.table:
        return f"a table: of each row {', '.join(job.data.features)}"
    return f"{' x '.join(map(str, job.data.size))} pixels"
