"""The policy in plain words: each setting, its value here, and what it means."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.policy import DEFAULT_POLICY, Policy, read_policy
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
    meanings = _meanings()
    values = policy.model_dump(mode="json")
    return policy, tuple(Rule(name, _words(value), meanings.get(name, "")) for name, value in values.items()), ""


def _meanings() -> dict[str, str]:
    """What each setting means: the words beside it in the policy that `wardround site enrol` writes."""
    lines = [line for line in DEFAULT_POLICY.splitlines() if " = " in line and "#" in line]
    known = set(tomllib.loads(DEFAULT_POLICY))
    return {name: line.split("#", 1)[1].strip() for line in lines if (name := line.split(" = ")[0]) in known}


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "none" if not value else "all" if value == ["*"] else ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value) or "not set"
