"""What many ask for at the same time is made once, and kept until what it rests on has changed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass
class _Entry:
    lock: threading.Lock = field(default_factory=threading.Lock)
    basis: Any = None
    value: Any = None
    made: bool = False


class Once:
    """Values by key, each as good as the basis on which it was made; the `limit` that were last asked for are kept.

    Safe to use from several threads. While one makes a value, others that want it wait; those with other keys do not.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._lock = limit, threading.Lock()
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()

    def get(self, key: Hashable, basis: object, make: Callable[[], T]) -> T:
        """Return what `make` gave for this key and an equal basis, or make it. Raises what `make` raises."""
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            while len(self._entries) > self._limit:
                self._entries.popitem(last=False)
        with entry.lock:
            if not entry.made or entry.basis != basis:
                entry.made = False
                entry.value = make()
                entry.basis, entry.made = basis, True
            value: T = entry.value
            return value

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
