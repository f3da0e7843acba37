"""Load on a server under measurement: bounded, on loopback, by the plainest client there is."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass

import aiohttp

_ABOUT = "io.modelcontextprotocol"
_HEADERS = {
    "Accept": "application/json, text/event-stream",
    "Content-Type": "application/json",
    "MCP-Protocol-Version": "2026-07-28",
    "Mcp-Method": "tools/call",
    "Mcp-Name": "generate_image",
}


def _call(result: str) -> bytes:
    meta = {
        f"{_ABOUT}/protocolVersion": "2026-07-28",
        f"{_ABOUT}/clientCapabilities": {},
        f"{_ABOUT}/clientInfo": {"name": "bench", "version": "1"},
    }
    params = {"name": "generate_image", "arguments": {"prompt": "a cat", "result": result}, "_meta": meta}
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()


@dataclass(frozen=True)
class Calls:
    """`seconds` of each call, in the order they ended, and the last image's URL."""

    seconds: list[float]
    image_url: str


async def generate(url: str, count: int, *, at_once: int = 1, result: str = "link") -> Calls:
    """Call generate_image `count` times, `at_once` in flight, as self-contained requests of the stateless era."""
    seconds: list[float] = []
    last = ""
    left = iter(range(count))
    body = _call(result)

    async def caller(session: aiohttp.ClientSession) -> None:
        nonlocal last
        for _ in left:
            began = time.perf_counter()
            async with session.post(f"{url}/mcp", data=body, headers=_HEADERS) as response:
                answer = await response.text()
            seconds.append(time.perf_counter() - began)
            last = answer

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(caller(session) for _ in range(at_once)))
    if "/images/" not in last or '"isError":true' in last:
        raise RuntimeError(last[:500])
    return Calls(seconds, last.split('"url":"', 1)[1].split('"', 1)[0])


async def predict(endpoint: str, count: int) -> list[float]:
    """Call the runtime itself: what no sidecar can be faster than."""
    seconds = []
    async with aiohttp.ClientSession() as session:
        for _ in range(count):
            began = time.perf_counter()
            async with session.post(f"{endpoint}:predict", json={"instances": [{"prompt": "a cat"}]}) as response:
                await response.read()
            seconds.append(time.perf_counter() - began)
    return seconds


async def get(url: str, count: int, *, at_once: int = 8) -> None:
    """Fetch one URL `count` times."""
    left = iter(range(count))

    async def reader(session: aiohttp.ClientSession) -> None:
        for _ in left:
            async with session.get(url) as response:
                await response.read()

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(reader(session) for _ in range(at_once)))


async def text(url: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return await response.text()
