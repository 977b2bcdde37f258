"""Metrics as tables: all that sites release, of all sites together and of each, of each label and group of patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from common.release import QUALITIES, group_title, metric_title
from common.web import tables, words
from common.web.tables import Column, Heading
from server.views import Group, Interval

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


def by_group(of: str, groups: Mapping[Group, Metrics], criterion: str) -> Markup:
    """Return the tables of a model's metrics by group of patients: of all sites, and `criterion` at each of them."""
    if not groups:
        return Markup("")
    whole = {group: told.get("", {}) for group, told in groups.items()}
    names = [name for name in QUALITIES if any(name in told for told in whole.values())]
    sites = [site for site in dict.fromkeys(site for told in groups.values() for site in told) if site]
    heads: list[Heading] = ["Group", Column("patients", number=True), *(Column(name) for name in names)]
    rows = [
        (group_title(*group), _count(told.get("patients")), *(_interval(told.get(name)) for name in names))
        for group, told in whole.items()
    ]
    each = [
        (group_title(*group), *(_interval(told.get(site, {}).get(criterion)) for site in sites))
        for group, told in groups.items()
    ]
    return tables.table(f"{of} by group of patients, all sites together", heads, rows, tall=True) + tables.table(
        f"{of} by group of patients: {criterion} at each site", _heads("Group", sites), each, tall=True
    )


def _count(found: Interval | None) -> str | None:
    return f"{found.value:,.0f}" if found else None


def _heads(first: str, names: Sequence[str]) -> list[Heading]:
    return [first, *(Column(name) for name in names)]


def _rows(metrics: Metrics, names: Sequence[str]) -> list[Sequence[object]]:
    return [(site or "all sites", *(_interval(told.get(name)) for name in names)) for site, told in metrics.items()]


def _interval(found: Interval | None) -> str | None:
    return words.interval(found.value, found.low, found.high) if found else None
