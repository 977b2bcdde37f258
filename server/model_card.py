"""The model card: what a model is for, what it was trained on, how well it does and where, and its limits.

After Mitchell et al., "Model Cards for Model Reporting" (FAccT 2019). What a registry can't know, the card says so.
"""

from __future__ import annotations

import datetime
from collections import Counter

from jinja2 import Environment, PackageLoader, StrictUndefined

from common.release import QUALITIES, group_title, metric_title
from server.views import Interval, ModelView


def model_card(model: ModelView, federation: str) -> str:
    """Return the card in Markdown."""
    named = {name for found in model.metrics.values() for name in found}
    turns = [turn for one in model.run.rounds for turn in one.turns]
    return _ENVIRONMENT.get_template("model_card.md.jinja").render(
        line=model.line,
        run=model.run,
        job=model.run.job,
        federation=federation,
        cases={turn.site: turn.examples for turn in turns if turn.examples},
        rounds=Counter(turn.site for turn in turns if turn.status == "aggregated"),
        metrics=model.metrics,
        judged_on=model.judged_on,
        names=[name for name in QUALITIES if name in named],
        by_label=sorted(named - set(QUALITIES)),
        title=metric_title,
        groups=model.groups,
        of_groups=[name for name in QUALITIES if any(name in told.get("", {}) for told in model.groups.values())],
        group_title=group_title,
        silent=[site for site in model.run.job.sites if site not in model.metrics],
    )


def _interval(found: Interval | None) -> str:
    if found is None:
        return "-"
    if found.low is None or found.high is None:
        return f"{found.value:.3f}"
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _day(seconds: float) -> str:
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M} UTC"


# Markdown, not HTML: whoever shows it as HTML escapes it then.
_ENVIRONMENT = Environment(loader=PackageLoader("server"), undefined=StrictUndefined, autoescape=False)  # noqa: S701
_ENVIRONMENT.filters |= {"interval": _interval, "cell": _cell, "day": _day}
