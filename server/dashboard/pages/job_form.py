"""The form of the usual keys of a job, and the TOML that it writes: the text is the job, the form a view of it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import tomlkit
from tomlkit.exceptions import TOMLKitError

from common.job import AggregationSection, DataSection, PrivacySection, TrainingSection, key_table
from common.release import QUALITIES
from common.strategies import PARAMETERS

Kind = Literal["text", "number", "list", "numbers", "ticks"]
Path = tuple[str, ...]
_DEFAULTS = {key: json.loads(default) if default else None for key, default, _ in key_table()}
MEANINGS = {key: meaning for key, _, meaning in key_table()}


@dataclass(frozen=True)
class Key:
    """A key that the form has: its path in the file, its label, its kind, and between what one may choose.

    `table` names the table (of `names_in`) whose names are suggested: that of tasks or of networks.
    """

    path: Path
    label: str
    kind: Kind = "text"
    options: tuple[str, ...] = ()
    table: Literal["", "tasks", "networks"] = ""

    @property
    def name(self) -> str:
        """Its dotted name."""
        return ".".join(self.path)

    @property
    def meaning(self) -> str:
        """Its line of meaning, as `wardround job keys` has it."""
        return MEANINGS[self.name]


def _choices(section: Any, key: str) -> tuple[str, ...]:
    return tuple(str(choice) for choice in get_args(section.model_fields[key].annotation))


GROUPS: Mapping[str, tuple[Key, ...]] = {
    "Study": (
        Key(("name",), "Name"),
        Key(("description",), "What it is for"),
        Key(("sites",), "Sites", "ticks"),
    ),
    "Data and network": (
        Key(("task", "kind"), "Task", table="tasks"),
        Key(("data", "collection"), "Collection"),
        Key(("task", "labels"), "Labels, with commas", "list"),
        Key(("data", "size"), "Size in pixels, with commas", "numbers"),
        Key(("data", "augment"), "Augmentation", options=_choices(DataSection, "augment")),
        Key(("network", "name"), "Network", table="networks"),
        Key(("seed",), "Seed", "number"),
    ),
    "Training at a site": (
        Key(("training", "optimizer"), "Optimizer", options=_choices(TrainingSection, "optimizer")),
        Key(("training", "learning_rate"), "Learning rate", "number"),
        Key(("training", "batch_size"), "Batch size", "number"),
        Key(("training", "local_epochs"), "Epochs a round", "number"),
    ),
    "Rounds": (
        Key(("aggregation", "strategy"), "Strategy", options=tuple(PARAMETERS)),
        Key(("aggregation", "rounds"), "Rounds", "number"),
        Key(("aggregation", "min_sites"), "Fewest sites in a round", "number"),
        Key(("aggregation", "deadline_seconds"), "Deadline of a round, in seconds", "number"),
        Key(("aggregation", "criterion"), "Keep the best by", options=QUALITIES),
        Key(("aggregation", "weighting"), "An update counts by", options=_choices(AggregationSection, "weighting")),
    ),
    "Privacy": (
        Key(("privacy", "mechanism"), "Mechanism", options=_choices(PrivacySection, "mechanism")),
        Key(("privacy", "unit"), "What is protected", options=_choices(PrivacySection, "unit")),
        Key(("privacy", "epsilon"), "Epsilon of the run", "number"),
        Key(("privacy", "delta"), "Delta", "number"),
        Key(("privacy", "clip_norm"), "Clip norm", "number"),
    ),
}
KEYS = tuple(key for keys in GROUPS.values() for key in keys)


def names_in(table: Literal["tasks", "networks"]) -> tuple[str, ...]:
    """Return the names in the table of tasks or of networks. Imports torch."""
    if table == "tasks":
        from common.tasks.registry import TASKS

        return tuple(TASKS)
    from common.architectures import NETWORKS

    return tuple(NETWORKS)


def first_text(sites: Sequence[str], collection: str) -> str:
    """Return the text that a new job begins with."""
    return tomlkit.dumps(
        {
            "name": "",
            "sites": list(sites),
            "task": {"labels": []},
            "data": {"collection": collection},
            "privacy": {"mechanism": "dp-sgd", "epsilon": 8.0},
        }
    )


def values_of(text: str) -> dict[Path, str]:
    """Return what the form shows of a file's text, the job's defaults where it says nothing.

    Items have commas between them. Raises ValueError for no TOML.
    """
    table = tomllib.loads(text)
    return {key.path: _shown(_at(table, key.path), _DEFAULTS[key.name]) for key in KEYS}


def changed(text: str, key: Key, value: str) -> str:
    """Return the text with one key set, or taken out when `value` is empty; comments and all else stay.

    Raises ValueError when the text is no TOML, or holds something else where the key's section should be.
    """
    tomllib.loads(text)  # its faults are told more plainly
    try:
        document = tomlkit.parse(text)
        table: Any = document
        for section in key.path[:-1]:
            if section not in table:
                table[section] = tomlkit.table()
            table = table[section]
            if not isinstance(table, MutableMapping):
                raise ValueError(f'"{section}" is no table there')
        if value.strip() or key.kind in ("list", "ticks"):
            table[key.path[-1]] = _typed(key, value)
        elif key.path[-1] in table:
            del table[key.path[-1]]
        return tomlkit.dumps(document)
    except TOMLKitError as error:
        raise ValueError(str(error)) from error


def items(value: str) -> list[str]:
    """Return the items of a value with commas."""
    return [part.strip() for part in value.split(",") if part.strip()]


def _typed(key: Key, value: str) -> object:
    if key.kind in ("list", "ticks"):
        return items(value)
    if key.kind == "numbers":
        return [_number(part) for part in items(value)]
    return _number(value) if key.kind == "number" else value.strip()


def _number(value: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value  # the check then says what is wrong with it


def _at(table: Mapping[str, Any], path: Path) -> object:
    found: object = table
    for part in path:
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _shown(value: object, default: object) -> str:
    value = default if value is None else value
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(str(part) for part in value)
    return value if isinstance(value, str) else json.dumps(value, default=str)
