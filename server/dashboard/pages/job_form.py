"""The form of the usual keys of a job, and the TOML that it writes: the text is the job, the form a view of it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import tomlkit
from tomlkit.exceptions import TOMLKitError

from common.job import PrivacySection
from common.strategies import PARAMETERS

Kind = Literal["text", "number", "list", "choice"]
EMPTY = """name = ""
sites = []

[task]
labels = []

[data]
collection = ""

[privacy]
mechanism = "dp-sgd"
epsilon = 8.0
"""


@dataclass(frozen=True)
class Key:
    """A key that the form has: its path in the file, its label, its kind, and what it is when the file does not say."""

    path: tuple[str, ...]
    label: str
    kind: Kind = "text"
    default: str = ""
    options: tuple[str, ...] = ()


KEYS = (
    Key(("name",), "Name of the job"),
    Key(("description",), "What it is for"),
    Key(("sites",), "Sites, with commas", "list"),
    Key(("task", "labels"), "Labels, with commas", "list"),
    Key(("data", "collection"), "Collection"),
    Key(("network", "name"), "Network", default="small-cnn"),
    Key(("aggregation", "strategy"), "Strategy", "choice", "fedavg", tuple(PARAMETERS)),
    Key(("aggregation", "rounds"), "Rounds", "number", "10"),
    Key(("aggregation", "min_sites"), "Fewest sites in a round", "number", "2"),
    Key(("training", "learning_rate"), "Learning rate", "number", "0.05"),
    Key(("training", "batch_size"), "Batch size", "number", "32"),
    Key(("training", "local_epochs"), "Epochs a round", "number", "1"),
    Key(
        ("privacy", "mechanism"),
        "Privacy",
        "choice",
        "dp-sgd",
        get_args(PrivacySection.model_fields["mechanism"].annotation),
    ),
    Key(("privacy", "epsilon"), "Epsilon", "number", "8"),
    Key(("privacy", "delta"), "Delta", "number", "1e-5"),
    Key(("seed",), "Seed", "number", "0"),
)


def values_of(text: str) -> dict[tuple[str, ...], str]:
    """Return what the form shows of a file's text, defaults where it says nothing. Raises ValueError for no TOML."""
    table = tomllib.loads(text)
    return {key.path: _shown(_at(table, key.path), key.default) for key in KEYS}


def changed(text: str, key: Key, value: str) -> str:
    """Return the text with one key set, or taken out when `value` is empty; comments and all else stay.

    Raises ValueError when the text is no TOML, or holds something else where the key's section should be.
    """
    try:
        document = tomlkit.parse(text)
        table: Any = document
        for section in key.path[:-1]:
            if section not in table:
                table[section] = tomlkit.table()
            table = table[section]
        if value.strip():
            table[key.path[-1]] = _typed(key, value)
        elif key.path[-1] in table:
            del table[key.path[-1]]
        return tomlkit.dumps(document)
    except (TOMLKitError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from error


def _typed(key: Key, value: str) -> object:
    if key.kind == "list":
        return [part.strip() for part in value.split(",") if part.strip()]
    if key.kind == "number":
        try:
            return int(value)
        except ValueError:
            try:
                return float(value)
            except ValueError:
                return value  # the check then says what is wrong with it
    return value.strip()


def _at(table: Mapping[str, Any], path: tuple[str, ...]) -> object:
    found: object = table
    for part in path:
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _shown(value: object, default: str) -> str:
    if value is None:
        return default
    if isinstance(value, list):
        return ", ".join(str(part) for part in value)
    return value if isinstance(value, str) else json.dumps(value, default=str)
