"""By which number the best model is kept: one validation metric, averaged over the sites by cases evaluated."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from common.errors import JobError
from common.release import QUALITIES
from server.records import Kept, SiteRound, weighted_mean

LOWER_IS_BETTER = frozenset({"loss", "brier", "ece", "hd95", "nmse"})


@dataclass(frozen=True)
class Criterion:
    """The job's criterion, e.g. "auc"."""

    name: str

    def score(self, sites: list[SiteRound]) -> float | None:
        """Return the mean of the sites' metric, weighted by cases evaluated; None when no site gave it."""
        return weighted_mean((site.metrics.get(f"eval.{self.name}"), evaluated_cases(site.metrics)) for site in sites)

    def better(self, score: float | None, than: Kept | None) -> bool:
        """Whether `score` beats the best so far. The earlier model wins a tie."""
        if score is None:
            return False
        if than is None or than.score is None:
            return True
        return score < than.score if self.name in LOWER_IS_BETTER else score > than.score


def evaluated_cases(metrics: Mapping[str, float]) -> float:
    """Return the images evaluated, or, where only their noised count left, the patients."""
    return metrics.get("eval.images", metrics.get("eval.patients", 0.0))


def build_criterion(name: str) -> Criterion:
    """Return the criterion that the job names. Raises JobError, with the nearest right name, for no metric."""
    if name in QUALITIES:
        return Criterion(name)
    near = difflib.get_close_matches(name, QUALITIES, n=1, cutoff=0.4)
    hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(QUALITIES)}"
    raise JobError(f'"aggregation.criterion": unknown metric "{name}": {hint}')
