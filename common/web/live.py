"""Live pages: one look a second at whether anything has changed, however many pages are open.

When bringing the pages up to date takes much of a processor, looks become rarer: it takes about a tenth of one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable

log = logging.getLogger("wardround.web")
RESTS, LONGEST_REST = 9.0, 20.0
"""After pages were brought up to date, the feed rests so many times the processor's seconds of that, up to so many."""
Listener = Callable[[int], Awaitable[None]]


class Feed:
    """Tells listeners when `version()` has another value. For one event loop.

    Guarantees: `version` is called by one task, in a thread; a listener that is still at work with the last change is
    told of later ones once, when it is done, so that slow pages do not pile up. Of what is done on this server itself
    (`look`) they hear at once.
    """

    def __init__(self, version: Callable[[], int], seconds: float = 1.0) -> None:
        self._version, self._seconds = version, seconds
        self._listeners: dict[Listener, asyncio.Task[None] | None] = {}
        self._task: asyncio.Task[None] | None = None
        self._now = 0
        self._changed = asyncio.Event()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with the version after each change, until what is returned is called."""
        self._listeners[listener] = None
        self._start()
        return lambda: self._drop(listener)

    async def changes(self, *, quiet: float) -> AsyncIterator[int | None]:
        """Yield the version now and after each change, and None after each `quiet` seconds without one."""
        self._start()
        seen = -1
        while True:
            if seen != self._now:
                seen = self._now
                yield seen
                continue
            try:
                await asyncio.wait_for(self._changed.wait(), quiet)
            except TimeoutError:
                yield None

    async def look(self) -> None:
        """Look now, and not only when the second is over: what a person has just done should be seen at once."""
        try:
            now = await asyncio.to_thread(self._version)
        except Exception:  # a registry that is away for a moment must not end all live pages
            log.exception("the version of what is shown could not be read")
            return
        if now == self._now:
            return
        self._now = now
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        for listener, task in list(self._listeners.items()):
            if task is None or task.done():
                self._listeners[listener] = asyncio.create_task(self._tell(listener))

    async def _tell(self, listener: Listener) -> None:
        told = -1
        while told != self._now and listener in self._listeners:
            told = self._now
            try:
                await listener(told)
            except Exception:
                log.exception("a page could not be brought up to date")

    def _drop(self, listener: Listener) -> None:
        self._listeners.pop(listener, None)

    def _start(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            began = time.process_time()  # and not the clock's: a page that waits for something holds nobody up
            await self.look()
            if at_work := [task for task in self._listeners.values() if task is not None and not task.done()]:
                await asyncio.wait(at_work, timeout=LONGEST_REST / RESTS)
            rest = RESTS * (time.process_time() - began)
            await asyncio.sleep(max(self._seconds, min(rest, LONGEST_REST)))
