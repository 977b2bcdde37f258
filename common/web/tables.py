"""Tables and other pieces of HTML, made here and escaped here: one element for NiceGUI, however many rows.

Guarantees: every text is escaped; only `Markup`, which the functions of this package return, is taken as HTML.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, urlencode

from markupsafe import Markup, escape

from common.web.words import NOTHING

Kind = Literal["", "good", "warn", "bad"]
KINDS: Mapping[str, Kind] = {
    "online": "good", "training": "good", "aggregated": "good", "completed": "good", "approved": "good", "ok": "good",
    "evaluated": "good", "agreed": "good", "trained": "good", "running": "good",
    "waiting": "warn", "late": "warn", "away": "warn", "queued": "warn", "working": "warn", "stopped": "warn",
    "interrupted": "warn", "no quorum": "warn", "incomplete": "warn", "WARNING": "warn", "unreached": "warn",
    "refused": "bad", "denied": "bad", "failed": "bad", "rejected": "bad", "ERROR": "bad", "excluded": "bad",
}  # fmt: skip
"""The colour of a word. The word itself is always shown: colour says nothing alone."""


LONG = 140
"""Characters from which a value of `said` is folded up."""


@dataclass(frozen=True)
class Column:
    """A column's heading; `number` aligns right, `long` may break anywhere. The first `head` column names the row."""

    name: str
    number: bool = False
    long: bool = False


Heading = str | Column


def table(
    caption: str, columns: Sequence[Heading], rows: Iterable[Sequence[object]], *, empty: str = "Nothing yet.",
    tall: bool = False,
) -> Markup:  # fmt: skip
    """Return a table whose rows' first cells name them, or the paragraph `empty` when there is no row."""
    heads = [column if isinstance(column, Column) else Column(column) for column in columns]
    body = [_row(heads, row) for row in rows]
    if not body:
        return Markup('<p class="soft">{}</p>').format(empty)
    head = Markup("").join(Markup('<th scope="col"{}>{}</th>').format(_class(column), column.name) for column in heads)
    return Markup(
        '<div class="scroll{}" tabindex="0" role="region" aria-label="{}"><table class="grid"><caption>{}</caption>'
        "<thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>"
    ).format(" tall" if tall else "", caption, caption, head, Markup("").join(body))


def facts(pairs: Iterable[tuple[str, object]], *, wide: bool = False) -> Markup:
    """Return a list of names and values, `wide` ones below each other."""
    items = (Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(name, shown(value)) for name, value in pairs)
    return Markup('<dl class="facts{}">{}</dl>').format(" wide" if wide else "", Markup("").join(items))


def badge(word: str, kind: Kind | None = None) -> Markup:
    """Return a word on the colour of what it means."""
    return Markup('<span class="badge {}">{}</span>').format(KINDS.get(word, "") if kind is None else kind, word)


def link(text: object, /, *parts: object, **query: object) -> Markup:
    """Return a link to the path of `parts` (each percent-encoded) with `query`."""
    return Markup('<a href="{}">{}</a>').format(path(*parts, **query), text)


def pick(text: str, key: object, label: str) -> Markup:
    """Return a button that tells `forms.on_pick` of the element around it which `key` was picked; `label` says all."""
    return Markup('<button type="button" class="button plain small" data-pick="{}" aria-label="{}">{}</button>').format(
        key, label, text
    )


def path(*parts: object, **query: object) -> str:
    """Return the URL path of `parts`, each percent-encoded, with the parts of `query` that are not empty."""
    found = "/" + "/".join(quote(str(part), safe="") for part in parts)
    given = {name: value for name, value in query.items() if value not in ("", None, 0)}
    return f"{found}?{urlencode(given)}" if given else found


def note(text: object, kind: Kind = "") -> Markup:
    """Return a paragraph that stands out: a warning, an error, or what to do next."""
    role = "alert" if kind == "bad" else "note"
    return Markup('<div class="note {}" role="{}"><p>{}</p></div>').format(kind, role, text)


def bar(part: float, whole: float, text: str, *, budget: bool = False) -> Markup:
    """Return how much of a whole there is, as a bar with its text beside it. A `budget` is red when nearly spent."""
    filled = min(1.0, max(0.0, part / whole)) if whole > 0 else 1.0
    full = " full" if budget and filled >= 0.9 else ""
    return Markup(
        '<span class="part"><span class="bar{}" aria-hidden="true"><i style="width:{:.0f}%"></i></span>{}</span>'
    ).format(full, 100 * filled, text)


def more(summary: str, content: object) -> Markup:
    """Return something that opens at a click."""
    return Markup("<details><summary>{}</summary>{}</details>").format(summary, content)


def said(told: Mapping[str, object]) -> Markup:
    """Return names with their values, as an audit log's entry has them; what is long opens at a click."""
    parts = (
        Markup("<span><b>{}</b>{}</span>").format(name.replace("_", " "), _said(value))
        for name, value in told.items()
        if value not in ("", None)
    )
    return Markup('<div class="said">{}</div>').format(Markup(" ").join(parts))


def _said(value: object) -> Markup | str:
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        text = ", ".join(value)
        return text if len(text) <= LONG else more(f"{len(value)} of them", text)
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONG else more(f"{len(text):,} characters", code(text))


def code(text: str) -> Markup:
    """Return a block of code, or of a file's text."""
    return Markup('<pre tabindex="0">{}</pre>').format(text)


def pages(here: str, offset: int, limit: int, total: int, **query: object) -> Markup:
    """Return links to the pages before and after, and where we are; nothing when all is on one page."""
    if total <= limit and offset == 0:
        return Markup("")
    last = min(offset + limit, total)
    before = _page("Newer", here, max(0, offset - limit), query) if offset > 0 else Markup("")
    after = _page("Older", here, offset + limit, query) if last < total else Markup("")
    return Markup('<div class="pages">{}<span class="soft">{:,} to {:,} of {:,}</span>{}</div>').format(
        before, min(offset + 1, total), last, total, after
    )


def shown(value: object) -> Markup:
    """Return a value as a cell shows it: escaped, a dash for None and for nothing."""
    return escape(NOTHING if value is None or value == "" else value)


def _page(text: str, here: str, offset: int, query: Mapping[str, object]) -> Markup:
    return Markup('<a class="button plain small" href="{}">{}</a>').format(
        path(*here.strip("/").split("/"), **query, offset=offset), text
    )


def _row(columns: Sequence[Column], cells: Sequence[object]) -> Markup:
    first = Markup('<th scope="row"{}>{}</th>').format(_class(columns[0]), shown(cells[0]))
    rest = (
        Markup("<td{}>{}</td>").format(_class(column), shown(cell))
        for column, cell in zip(columns[1:], cells[1:], strict=True)
    )
    return Markup("<tr>{}{}</tr>").format(first, Markup("").join(rest))


def _class(column: Column) -> Markup:
    names = " ".join(name for name, on in (("number", column.number), ("long", column.long)) if on)
    return Markup(' class="{}"').format(names) if names else Markup("")
