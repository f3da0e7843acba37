"""What clients of every kind do to one sidecar for hours: a bounded mix on loopback, at a steady rate.

Each tick asks for one generation, and every so many ticks bring something else: a call whose client leaves, a poll, a
list, a deletion, reads whole and in part, a download that breaks off, a connection left idle.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import aiohttp

_STATELESS = "2026-07-28"
_HANDSHAKE = "2025-11-25"
_META = {
    "io.modelcontextprotocol/protocolVersion": _STATELESS,
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "soak", "version": "1"},
}
_INITIALIZE = {
    "protocolVersion": _HANDSHAKE,
    "capabilities": {},
    "clientInfo": {"name": "soak", "version": "1"},
}
_IN_FLIGHT = 64
_IDLE_CONNECTIONS = 32
_REMEMBERED = 200
_RESULTS = ("thumbnail", "link", "thumbnail", "full")

Action = Callable[[aiohttp.ClientSession], Awaitable[None]]


class Refused(Exception):
    """A tool has answered with an error."""


class MixedLoad:
    """`rate` ticks a second. `done` counts what was done, `failed` what was not answered as it should be."""

    def __init__(self, url: str, rate: float, seed: int = 1) -> None:
        self._url = url
        self._rate = rate
        self._random = random.Random(seed)
        self._images: deque[str] = deque(maxlen=_REMEMBERED)
        self._jobs: deque[str] = deque(maxlen=_REMEMBERED)
        self._idle: deque[asyncio.StreamWriter] = deque()
        self._asked = 0
        self.done: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self._actions: tuple[tuple[int, Action], ...] = (
            (1, self.generation),
            (2, self.whole_image),
            (2, self.part_of_an_image),
            (4, self.broken_download),
            (4, self.idle_connection),
            (5, self.thumbnail),
            (3, self.listing),
            (5, self.poll),
            (10, self.deletion),
            (25, self.scrape),
            (37, self.left_call),
        )

    @property
    def generations(self) -> int:
        return self.done["generation"]

    async def run(self, seconds: float) -> None:
        """What would be too much at once is left out and counted as `skipped`."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        under_way: set[asyncio.Task[None]] = set()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
            for tick in range(int(seconds * self._rate)):
                await asyncio.sleep(max(0.0, began + tick / self._rate - loop.time()))
                for every, action in self._actions:
                    if tick % every:
                        continue
                    if len(under_way) >= _IN_FLIGHT:
                        self.done["skipped"] += 1
                        continue
                    task = asyncio.create_task(self._counted(action, session))
                    under_way.add(task)
                    task.add_done_callback(under_way.discard)
            if under_way:
                await asyncio.wait(under_way)
        while self._idle:
            self._idle.pop().transport.abort()

    async def _counted(self, action: Action, session: aiohttp.ClientSession) -> None:
        name = action.__name__
        try:
            await action(session)
        except Exception as error:
            self.failed[f"{name}: {type(error).__name__} {str(error)[:100]}"] += 1
        else:
            self.done[name] += 1

    # --- calls --------------------------------------------------------------------------------------------------------

    async def generation(self, session: aiohttp.ClientSession) -> None:
        """Every second one by a client of the handshake era, every fifth with a key that is used twice."""
        number = self._asked = self._asked + 1
        arguments: dict[str, Any] = {"prompt": f"picture {number}", "result": _RESULTS[number % len(_RESULTS)]}
        if number % 5 == 0:
            arguments |= {"prompt": "a picture asked for twice", "result": "link"}
            arguments["idempotency_key"] = f"soak-{number // 10}"
        if number % 2:
            result = await self._call(session, "generate_image", **arguments)
        else:
            result = await self._call_after_handshake(session, "generate_image", **arguments)
        self._images.extend(image["image_id"] for image in result["images"])
        self._jobs.append(result["job_id"])

    async def left_call(self, session: aiohttp.ClientSession) -> None:
        call = asyncio.create_task(self._call(session, "generate_image", prompt="nobody waits"))
        await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.wait({call})
        if not call.cancelled():
            call.exception()

    async def poll(self, session: aiohttp.ClientSession) -> None:
        if self._jobs:
            with contextlib.suppress(Refused):  # its images may be deleted
                await self._call(session, "get_generation", job_id=self._random.choice(self._jobs), wait_seconds=0)

    async def listing(self, session: aiohttp.ClientSession) -> None:
        page = await self._call(session, "list_generated_images", limit=self._random.choice((1, 10, 50)))
        if page.get("next_cursor"):
            await self._call(session, "list_generated_images", limit=10, cursor=page["next_cursor"])

    async def deletion(self, session: aiohttp.ClientSession) -> None:
        if self._images:
            await self._call(session, "delete_image", image_id=self._images.popleft())

    async def _call(self, session: aiohttp.ClientSession, tool: str, **arguments: Any) -> Any:
        headers = {"MCP-Protocol-Version": _STATELESS, "Mcp-Method": "tools/call", "Mcp-Name": tool}
        return await self._rpc(session, headers, {"name": tool, "arguments": arguments, "_meta": _META})

    async def _call_after_handshake(self, session: aiohttp.ClientSession, tool: str, **arguments: Any) -> Any:
        headers = {"MCP-Protocol-Version": _HANDSHAKE}
        await self._rpc(session, headers, _INITIALIZE, method="initialize")
        return await self._rpc(session, headers, {"name": tool, "arguments": arguments})

    async def _rpc(
        self,
        session: aiohttp.ClientSession,
        headers: dict[str, str],
        params: dict[str, Any],
        method: str = "tools/call",
    ) -> Any:
        """The structured result; the last event of a stream is the answer. Raises Refused."""
        headers = {**headers, "Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        async with session.post(f"{self._url}/mcp", data=body, headers=headers) as response:
            text = await response.text()
        events = [line[5:] for line in text.splitlines() if line.startswith("data:") and line[5:].strip()]
        result = json.loads(events[-1] if events else text)["result"]
        if result.get("isError"):
            raise Refused(result["content"][0]["text"])
        return result.get("structuredContent")

    # --- images -------------------------------------------------------------------------------------------------------

    async def whole_image(self, session: aiohttp.ClientSession) -> None:
        await self._get(session, "", 200)

    async def part_of_an_image(self, session: aiohttp.ClientSession) -> None:
        start = self._random.randrange(1000)
        await self._get(session, "", 206, {"Range": f"bytes={start}-{start + self._random.randrange(2000)}"})

    async def thumbnail(self, session: aiohttp.ClientSession) -> None:
        await self._get(session, "/thumbnail", 200)

    async def _get(
        self, session: aiohttp.ClientSession, what: str, expected: int, headers: dict[str, str] | None = None
    ) -> None:
        """One of the newest; it may be deleted meanwhile."""
        if not self._images:
            return
        image = self._random.choice(list(self._images)[-50:])
        async with session.get(f"{self._url}/images/{image}{what}", headers=headers) as response:
            await response.read()
        if response.status not in (expected, 404):
            raise ValueError(f"{response.status}")

    async def scrape(self, session: aiohttp.ClientSession) -> None:
        async with session.get(f"{self._url}/metrics") as response:
            await response.read()

    # --- connections --------------------------------------------------------------------------------------------------

    async def broken_download(self, _session: aiohttp.ClientSession) -> None:
        """Reads the beginning and breaks off."""
        if not self._images:
            return
        request = self._request(f"/images/{self._images[-1]}")
        reader, writer = await asyncio.open_connection(*self._address(), limit=4096)
        try:
            writer.write(request)
            await reader.readexactly(100)
        finally:
            writer.transport.abort()

    async def idle_connection(self, _session: aiohttp.ClientSession) -> None:
        """Left open behind one request, or before any; the oldest is closed for it."""
        reader, writer = await asyncio.open_connection(*self._address(), limit=4096)
        self._idle.append(writer)
        if len(self._idle) > _IDLE_CONNECTIONS:
            self._idle.popleft().close()
        if self.done["idle_connection"] % 4:
            writer.write(self._request("/livez"))
            await reader.readuntil(b"\r\n\r\n")

    def _address(self) -> tuple[str, int]:
        parts = urlsplit(self._url)
        return parts.hostname or "", parts.port or 80

    def _request(self, path: str) -> bytes:
        return f"GET {path} HTTP/1.1\r\nHost: {urlsplit(self._url).netloc}\r\n\r\n".encode()
