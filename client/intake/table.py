"""Records: what the kit has of the rows of tables. Numbers and short words, no name, no free text.

A record is a small JSON file, made by `client.intake.sheet`. Whose it is, its label and its split stand in the catalog,
under a pseudonym, as for images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from client.intake.columns import MISSING, number
from client.intake.image import Facts, FileRefusedError, Pixels

KEY = "wardround-row"
NO_VALUE = "the row has no value: "
"""What the reason begins with by which a row is refused; the columns' names follow."""


def written(values: Mapping[str, str], owner: str | None, copy: int) -> bytes:
    """Return a record. `owner` is the patient's pseudonym, "" where the cell is empty, None where the table has none.

    `copy` tells rows apart that are the same.
    """
    return json.dumps({KEY: 1, "values": dict(values), "of": owner, "copy": copy}).encode()


def matches(head: bytes) -> bool:
    """Whether the first bytes are those of a record."""
    return head.startswith(f'{{"{KEY}"'.encode())


def inspect(path: Path) -> Facts:
    """Return what a record says of itself. Raises FileRefusedError for a value that is missing."""
    record = _read(path)
    values = _values(record)
    empty = [name for name, value in values.items() if value.casefold() in MISSING]
    if empty:
        raise FileRefusedError(NO_VALUE + ", ".join(empty))
    if record.get("of") == "":
        raise FileRefusedError(f"{NO_VALUE}patient")
    return Facts(modality="TABLE", frames=1, rows=1, columns=len(values), channels=1)


def frames(path: Path) -> Iterator[Pixels]:
    """Refuse: a row is no image."""
    raise FileRefusedError("a row of a table is no image: give the job data.features")


def read_values(path: Path) -> dict[str, str]:
    """Return a record's values by column. Raises FileRefusedError when it is damaged."""
    return _values(_read(path))


def vector(values: Mapping[str, str], features: Sequence[str]) -> np.ndarray:
    """Return the features of one row, (F,) float32: numbers as they are, "column=word" as 1 where it is so, else 0.

    Raises
    ------
    FileRefusedError
        A column that is not there, or a value that is no number that float32 holds.
    """
    return np.array([_value(values, feature) for feature in features], dtype=np.float32)


def _value(values: Mapping[str, str], feature: str) -> float:
    column, equals, wanted = (feature, "", "") if feature in values else feature.partition("=")
    if column not in values:
        raise FileRefusedError(f'the table has no column "{column}": it has {", ".join(values)}')
    text = values[column]
    if equals:
        return float(_same(text, wanted))
    found = number(text)
    if found is None:
        raise FileRefusedError(f'the column "{column}" holds "{text[:20]}", no number: ask for "{column}={text[:20]}"')
    return found


def _same(text: str, wanted: str) -> bool:
    """Whether two values are the same: 3 and 3.0 are."""
    one, other = number(text), number(wanted)
    return text == wanted if one is None or other is None else one == other


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise FileRefusedError("the record of a row is damaged: import the table again") from error
    return record if isinstance(record, dict) else {}


def _values(record: Mapping[str, Any]) -> dict[str, str]:
    values = record.get("values")
    if not isinstance(values, dict) or not values:
        raise FileRefusedError("the record of a row is damaged: import the table again")
    return {str(name): str(value) for name, value in values.items()}
