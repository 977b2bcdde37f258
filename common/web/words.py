"""Numbers with their units and times, as pages show them. What returns `Markup` is HTML; all else is text."""

from __future__ import annotations

import datetime
import math

from markupsafe import Markup, escape

NOTHING = "–"
NO_BREAK = "\u00a0"
"""A blank at which no line is broken."""


def size(count: float | None) -> str:
    """Return a number of bytes in words: "1.2 MB" (powers of 1000)."""
    if count is None:
        return NOTHING
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def seconds(value: float | None) -> str:
    """Return a time span in words: "850 ms", "12.3 s", "4 min 5 s", "2 h 3 min", "3 d 4 h"."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value < 0.9995:
        return f"{value * 1000:.0f} ms"
    if value < 59.95:
        return f"{value:.1f} s"
    whole = round(value)
    for larger, smaller, one, other in ((60, 1, "min", "s"), (3600, 60, "h", "min"), (86400, 3600, "d", "h")):
        if whole < larger * (60 if larger < 3600 else 24) or larger == 86400:
            return f"{whole // larger} {one} {whole % larger // smaller} {other}"
    return NOTHING


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with so many decimals; a dash for none, NaN and infinity."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def count(value: float | None) -> str:
    """Return a whole number with its thousands told apart."""
    return NOTHING if value is None else f"{value:,.0f}"


def share(value: float | None) -> str:
    """Return a part of one in per cent."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:.0%}"


def interval(value: float, low: float | None, high: float | None) -> str:
    """Return a number and its interval, in one line: "0.912 (0.880 to 0.944)"."""
    if low is None or high is None:
        return number(value)
    return f"{number(value)} ({number(low)} to {number(high)})".replace(" ", NO_BREAK)


def moment(at: float | None) -> str:
    """Return a time (seconds since 1970) in UTC as text; the browser shows it in the viewer's zone where it can."""
    return NOTHING if at is None else f"{datetime.datetime.fromtimestamp(at, datetime.UTC):%Y-%m-%d %H:%M} UTC"


def when(at: float | None) -> Markup:
    """Return a <time> element, which page.js turns into the viewer's own zone and form."""
    if at is None:
        return escape(NOTHING)
    iso = datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat(timespec="seconds")
    return Markup('<time datetime="{}">{}</time>').format(iso, moment(at))
