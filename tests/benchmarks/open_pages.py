"""Open pages and API requests for the dashboard's benchmark, as browsers and scripts send them, in one process.

Usage: open_pages.py, with a JSON object on standard input: url, authority, session, token, paths, pages, rate, seconds.
A page is one GET and the socket that NiceGUI's script opens for it, whose messages are read (and not drawn). Pages are
opened one after another, `OPENING` seconds long; one that the server turns away loads anew, as NiceGUI's script does.
Prints JSON: "pages" open at the end, how many "reloads", "messages" and "bytes" they were sent, "answers" by status,
"median" and "p99" s.
"""

from __future__ import annotations

import ast
import asyncio
import json
import re
import ssl
import statistics
import sys
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp

ANSWERED = ("/api/v1/federation", "/api/v1/runs", "/api/v1/models", "/api/v1/participation")
COOKIE = "__Host-wardround"
OPENING = 6.0


@dataclass
class Told:
    """What came back."""

    open_pages: int = 0
    reloads: int = 0
    messages: int = 0
    bytes: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def as_data(self) -> dict[str, Any]:
        ordered = sorted(self.seconds) or [0.0]
        return {
            "pages": self.open_pages, "reloads": self.reloads, "messages": self.messages, "bytes": self.bytes,
            "answers": dict(self.answers),
            "median": statistics.median(ordered), "p99": ordered[int(0.99 * (len(ordered) - 1))],
        }  # fmt: skip


async def keep_open(client: aiohttp.ClientSession, url: str, path: str, wait: float, end: float, told: Told) -> None:
    await asyncio.sleep(wait)
    while not await open_page(client, url, path, end, told):
        told.reloads += 1


async def open_page(client: aiohttp.ClientSession, url: str, path: str, end: float, told: Told) -> bool:
    """Get a page and keep its socket open until `end`, answering the server's pings (Engine.IO 4); whether it was."""
    async with client.get(url + path) as response:
        text = await response.text()
        assert response.status == 200, (path, response.status)
    found = re.search(r"query: (\{.*?\}),\n", text)
    assert found is not None, path
    query = ast.literal_eval(found.group(1)) | {"document_id": str(uuid.uuid4()), "tab_id": str(uuid.uuid4())}
    words = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in query.items()}
    words |= {"EIO": "4", "transport": "websocket"}
    address = f"{url.replace('https', 'wss', 1)}/_nicegui_ws/socket.io/"
    async with client.ws_connect(address, params=words, headers={"Origin": url}, max_msg_size=0) as socket:
        while (left := end - time.monotonic()) > 0:
            try:
                message = await socket.receive(timeout=left)
            except TimeoutError:
                break
            if message.type is not aiohttp.WSMsgType.TEXT:
                return False
            await answer(socket, message.data, told)
    told.open_pages += 1
    return True


async def answer(socket: aiohttp.ClientWebSocketResponse, text: str, told: Told) -> None:
    if text.startswith("0"):
        await socket.send_str("40")
    elif text == "2":
        await socket.send_str("3")
    elif text.startswith("42"):
        told.messages += 1
        told.bytes += len(text)


async def ask(client: aiohttp.ClientSession, url: str, token: str, rate: float, end: float, told: Told) -> None:
    """Send `rate` requests a second, whether or not earlier ones were answered."""
    asked, began = set[asyncio.Task[None]](), time.monotonic()
    for number in range(10**9):
        at = began + number / rate
        await asyncio.sleep(max(0.0, at - time.monotonic()))
        if time.monotonic() >= end:
            break
        path = ANSWERED[number % len(ANSWERED)]
        asked.add(asyncio.create_task(one(client, url + path, token, told)))
    await asyncio.gather(*asked)


async def one(client: aiohttp.ClientSession, url: str, token: str, told: Told) -> None:
    began = time.monotonic()
    try:
        async with client.get(url, headers={"Authorization": f"Bearer {token}"}) as response:
            await response.read()
            told.answers[str(response.status)] += 1
    except (aiohttp.ClientError, TimeoutError) as error:
        told.answers[type(error).__name__] += 1
    told.seconds.append(time.monotonic() - began)


async def work(plan: dict[str, Any]) -> Told:
    told, context = Told(), ssl.create_default_context(cafile=plan["authority"])
    end = time.monotonic() + plan["seconds"]
    signed_in = {"Cookie": f"{COOKIE}={plan['session']}"}
    limit = aiohttp.ClientTimeout(total=plan["seconds"] + 30)
    many = {"ssl": context, "limit": 0}
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(**many), headers=signed_in, timeout=limit) as browser,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(**many), timeout=limit) as script,
    ):
        paths = plan["paths"]
        pages = [
            keep_open(browser, plan["url"], paths[n % len(paths)], OPENING * n / plan["pages"], end, told)
            for n in range(plan["pages"])
        ]
        asking = [ask(script, plan["url"], plan["token"], plan["rate"], end, told)] if plan["rate"] else []
        for failed in await asyncio.gather(*pages, *asking, return_exceptions=True):
            if isinstance(failed, BaseException):
                told.answers[f"{type(failed).__name__}: {failed}"[:200]] += 1
    return told


if __name__ == "__main__":
    print(json.dumps(asyncio.run(work(json.load(sys.stdin))).as_data()))
