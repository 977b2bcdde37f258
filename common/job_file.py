"""A job as people read it: the TOML of a job file, and in which keys two jobs differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import tomli_w

from common.job import Job


def job_toml(job: Job) -> str:
    """Return a job file's text that reads back as `job`: what is set, without the defaults."""
    return tomli_w.dumps(_present(job.model_dump(mode="json", exclude_defaults=True, by_alias=True)))


def differences(one: Job, other: Job) -> tuple[tuple[str, str, str], ...]:
    """Return the keys ("section.key") whose values differ, sorted, with both values as JSON."""
    left, right = _flat(one.model_dump(mode="json")), _flat(other.model_dump(mode="json"))
    return tuple(
        (key, json.dumps(left.get(key)), json.dumps(right.get(key)))
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    )


def _present(table: Mapping[str, Any]) -> dict[str, Any]:
    """TOML has no null: what is None is left out."""
    return {
        key: _present(value) if isinstance(value, Mapping) else value
        for key, value in table.items()
        if value is not None
    }


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
