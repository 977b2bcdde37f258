"""Who must be trusted with what, for each privacy mechanism: the same sentences in every report."""

from __future__ import annotations

from common.job import Job

NOBODY_IS_PROTECTED = (
    "No differential privacy: the coordinator sees each site's exact model, and whoever gets the final model may learn "
    "of single patients from it. Everybody must be trusted."
)


def who_is_trusted(job: Job) -> str:
    """Return, in a sentence or two, whose honesty the job's privacy needs."""
    privacy = job.privacy
    if privacy.mechanism == "dp-sgd":
        whom = "each patient, with all images," if privacy.unit == "patient" else "each single image (not each patient)"
        return (
            f"Noise is added at each hospital, before anything leaves: {whom} is protected against everybody outside. "
            "Only the hospital's own machine and this code must be trusted; not the coordinator, and not other sites."
        )
    if privacy.mechanism == "central":
        return (
            "Noise is added by the coordinator, which sees each site's exact model and metrics: it must be trusted. "
            "The models that it publishes protect each site as a whole against everybody else; the metrics in its "
            "reports are exact."
        )
    return NOBODY_IS_PROTECTED
