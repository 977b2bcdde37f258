"""Dates and times, moved into the past by one span for each patient (PS3.15 E.3.6): order and distances stay.

A date that has its time beside it (Study Date, Study Time) is moved together with it, over midnight where need be; a
time alone is moved around the clock, so that differences within a day stay.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass

_DATE = re.compile(r"(\d{4})[.]?(\d{2})[.]?(\d{2})")
_TIME = re.compile(r"(\d{2})(?::?(\d{2})(?::?(\d{2})(?:[.](\d{1,6}))?)?)?")
_DATETIME = re.compile(r"(\d{4})(\d{2})?(\d{2})?(\d{2})?(\d{2})?(\d{2})?(?:[.](\d{1,6}))?(?:[+-]\d{4})?")
_LENGTHS = (4, 6, 8, 10, 12, 14)


@dataclass(frozen=True)
class Shift:
    """A patient's span. Every method returns "" for a value that is no date or time (PS3.5 6.2), or has no past."""

    span: datetime.timedelta

    def date(self, date: str, time: str = "") -> str:
        """Return a DA, moved with the TM that belongs to it, if there is one."""
        found = _DATE.fullmatch(date.strip())
        if found is None:
            return ""
        clock = _seconds(time)
        days = datetime.timedelta(self.span.days) if clock is None else self.span - clock
        return _moved("".join(found.groups()), "%Y%m%d", days)[:8]

    def time(self, time: str) -> str:
        """Return a TM, moved around the clock."""
        clock = _seconds(time)
        if clock is None:
            return ""
        moved = datetime.datetime(2000, 1, 2) + clock - datetime.timedelta(seconds=self.span.seconds)
        return moved.strftime("%H%M%S.%f") if "." in time else moved.strftime("%H%M%S")

    def datetime(self, text: str) -> str:
        """Return a DT, with the precision that it has and without its offset from UTC."""
        found = _DATETIME.fullmatch(text.strip())
        if found is None:
            return ""
        parts = [part for part in found.groups()[:6] if part is not None]
        fraction, length = found.group(7), _LENGTHS[len(parts) - 1]
        whole = "".join(parts) + "00000101000000"[length:]
        span = self.span if length > 8 else datetime.timedelta(self.span.days)
        moved = _moved(whole, "%Y%m%d%H%M%S", span)[:length]
        return f"{moved}.{fraction}" if moved and fraction and length == 14 else moved


def _seconds(time: str) -> datetime.timedelta | None:
    found = _TIME.fullmatch(time.strip())
    if found is None:
        return None
    hours, minutes, seconds = (int(part or 0) for part in found.groups()[:3])
    if hours > 23 or minutes > 59 or seconds > 60:
        return None
    micro = int((found.group(4) or "0").ljust(6, "0"))
    return datetime.timedelta(hours=hours, minutes=minutes, seconds=min(seconds, 59), microseconds=micro)


def _moved(text: str, form: str, span: datetime.timedelta) -> str:
    try:
        moved = datetime.datetime.strptime(text, form) - span
    except (ValueError, OverflowError):
        return ""
    return f"{moved.year:04}" + moved.strftime("%m%d%H%M%S")
