"""Metrics as tables: every one that sites release, of all sites together and of each, and of each label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from common.release import QUALITIES, metric_title
from common.web import tables, words
from common.web.tables import Column, Heading
from server.views import Interval

Metrics = Mapping[str, Mapping[str, Interval]]
"""By site ("" for all of them together) and metric."""


def results(split: str, of: str, metrics: Metrics, labels: Sequence[str]) -> Markup:
    """Return the tables of a model's metrics on a split; `of` names the model, `labels` are its job's."""
    found = {name for told in metrics.values() for name in told}
    whole, by_label = [name for name in QUALITIES if name in found], sorted(found - set(QUALITIES))
    title = f"{of} on each site's {split} split, with 95 % intervals"
    shown = tables.table(title, _heads("Site", whole), _rows(metrics, whole), tall=True)
    if not by_label:
        return shown
    sites = list(metrics)
    rows = [(metric_title(name, labels), *(_interval(metrics[site].get(name)) for site in sites)) for name in by_label]
    heads = _heads("Metric of a label", [site or "all sites" for site in sites])
    return shown + tables.table(f"{of}, label by label", heads, rows, tall=True)


def _heads(first: str, names: Sequence[str]) -> list[Heading]:
    return [first, *(Column(name) for name in names)]


def _rows(metrics: Metrics, names: Sequence[str]) -> list[Sequence[object]]:
    return [(site or "all sites", *(_interval(told.get(name)) for name in names)) for site, told in metrics.items()]


def _interval(found: Interval | None) -> str | None:
    return words.interval(found.value, found.low, found.high) if found else None
