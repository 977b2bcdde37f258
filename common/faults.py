"""Faults of a TOML file in words: file, line, key, what is expected there, and the nearest right key."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Location = tuple[int | str, ...]
LONGEST = 200
"""Most letters of a wrong value that are shown: a whole table may stand where a number should."""


def explain(error: ValidationError, model: type[BaseModel], source: str, text: str = "") -> str:
    """Return one line for each key at fault that `model` found; `text` is the TOML it came from, to tell the lines."""
    meanings = dict(meanings_of(model))
    lines: dict[tuple[str, str], str] = {}
    for fault in error.errors():  # a wrong item makes the whole array wrong too: the first fault of a key is the cause
        place = line_of(text, fault["loc"])
        lines.setdefault((place, _key_of(fault)), f"{source}{place}: {_explain_one(fault, meanings)}")
    return "\n".join(lines.values())


def explain_parameter(error: ValidationError, owner: str, kind: type[BaseModel]) -> str:
    """Return one line for the first fault that `kind` found in the parameters of `owner`, e.g. `task "detection"`."""
    known = {field.alias or name: field.description or "" for name, field in kind.model_fields.items()}
    fault = error.errors()[0]
    name = ".".join(str(part) for part in fault["loc"])
    if fault["type"] != "extra_forbidden":
        return f'"parameters.{name}": {fault["msg"].lower()}, got {_shown(fault["input"])} ({known.get(name, "")})'
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
    hint = f'did you mean "{near[0]}" ({known[near[0]]})?' if near else f"it has {', '.join(known) or 'none'}"
    return f'"parameters.{name}": {owner} has no such parameter: {hint}'


def meanings_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every key of a model by its dotted name, tables before their keys, with its one line of meaning."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", field.description or ""
        inner = _table_type(field.annotation)
        if inner is not None:
            yield from meanings_of(inner, f"{prefix}{name}.")


def _table_type(annotation: object) -> type[BaseModel] | None:
    """The model behind a table (`Model`) or an array of tables (`tuple[Model, ...]`)."""
    candidates = [annotation, *typing.get_args(annotation)]
    return next((one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel)), None)


def _explain_one(fault: ErrorDetails, meanings: dict[str, str]) -> str:
    key = _key_of(fault)
    if fault["type"] == "extra_forbidden":
        near = _nearest(key, list(meanings))
        hint = f'; did you mean "{near}" ({meanings[near] or "a table"})?' if near else ""
        return f'unknown key "{key}"{hint}'
    meaning = meanings.get(key, "")
    if fault["type"] == "missing":
        return f'"{key}" is missing: {meaning or "this table is needed"}'
    problem = fault["msg"].removeprefix("Value error, ")
    subject = f'"{key}": ' if key else ""
    given = "" if fault["type"] == "value_error" else f", got {_shown(fault['input'])}"
    return f"{subject}{problem[0].lower()}{problem[1:]}{given}{f' ({meaning})' if meaning else ''}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _key_of(fault: ErrorDetails) -> str:
    return ".".join(part for part in fault["loc"] if isinstance(part, str))


def _nearest(key: str, known: list[str]) -> str:
    """The known key most like `key`: the same in another table, else by its dotted name, else by its last part."""
    last = {name.rsplit(".", 1)[-1]: name for name in reversed(known)}
    own_last = key.rsplit(".", 1)[-1]
    if own_last in last:
        return last[own_last]
    if whole := difflib.get_close_matches(key, known, n=1, cutoff=0.6):
        return whole[0]
    close = difflib.get_close_matches(own_last, list(last), n=1, cutoff=0.6)
    return last[close[0]] if close else ""


def line_of(text: str, location: Location) -> str:
    """`:LINE` of the key, else of the table that it is in, else nothing."""
    best_depth, best_line = 0, 0
    for number, place in _places(text):
        depth = min(len(place), len(location))
        if depth > best_depth and place[:depth] == location[:depth]:
            best_depth, best_line = depth, number
    return f":{best_line}" if best_line else ""


def _places(text: str) -> Iterator[tuple[int, Location]]:
    """Yield each heading's and each key's line number (from 1) and location. An array's lines are not looked into."""
    heading: Location = ()
    counts: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.split("#", 1)[0].strip()
        if stripped.startswith("[[") and stripped.endswith("]]"):
            name = stripped[2:-2].strip()
            counts[name] = counts.get(name, -1) + 1
            heading = (*name.split("."), counts[name])
            yield number, heading
        elif stripped.startswith("[") and stripped.endswith("]"):
            heading = tuple(part.strip() for part in stripped[1:-1].split("."))
            yield number, heading
        elif "=" in stripped:
            name = stripped.split("=", 1)[0]
            yield number, (*heading, *(part.strip().strip("\"'") for part in name.split(".")))
