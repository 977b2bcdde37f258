"""The policy in plain words: each setting, its value here, and what it means."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.policy import Policy, read_policy
from common.errors import RefusedError, UsageError


@dataclass(frozen=True)
class Rule:
    """One setting of the policy: its name, its value here in words, and what it means."""

    name: str
    value: str
    meaning: str


def read_rules(kit_folder: Path) -> tuple[Policy | None, tuple[Rule, ...], str]:
    """Return the site's policy and its rules; or no policy, no rules, and the reason in one line."""
    try:
        policy = read_policy(kit_folder)
    except (RefusedError, UsageError) as error:
        return None, (), str(error)
    values, fields = policy.model_dump(mode="json"), Policy.model_fields
    rules = tuple(Rule(name, _words(value), fields[name].description or "") for name, value in values.items())
    return policy, rules, ""


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "none" if not value else "all" if value == ["*"] else ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value) or "not set"
