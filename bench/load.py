"""Load on a server under measurement: bounded, on loopback, by the plainest client there is."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from urllib.parse import urlsplit

import aiohttp

_ABOUT = "io.modelcontextprotocol"
_HEADERS = {
    "Accept": "application/json, text/event-stream",
    "Content-Type": "application/json",
    "MCP-Protocol-Version": "2026-07-28",
    "Mcp-Method": "tools/call",
    "Mcp-Name": "generate_image",
}


def _call(result: str, model: str | None) -> bytes:
    meta = {
        f"{_ABOUT}/protocolVersion": "2026-07-28",
        f"{_ABOUT}/clientCapabilities": {},
        f"{_ABOUT}/clientInfo": {"name": "bench", "version": "1"},
    }
    arguments = {"prompt": "a cat", "result": result, **({} if model is None else {"model": model})}
    params = {"name": "generate_image", "arguments": arguments, "_meta": meta}
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()


@dataclass(frozen=True)
class Calls:
    """`seconds` and the image's URL of each call, in the order they ended."""

    seconds: list[float]
    image_urls: list[str]


async def generate(url: str, count: int, *, at_once: int = 1, result: str = "link", model: str | None = None) -> Calls:
    """Call generate_image `count` times, `at_once` in flight, as self-contained requests of the stateless era."""
    seconds: list[float] = []
    urls: list[str] = []
    left = iter(range(count))
    body = _call(result, model)

    async def caller(session: aiohttp.ClientSession) -> None:
        for _ in left:
            began = time.perf_counter()
            async with session.post(f"{url}/mcp", data=body, headers=_HEADERS) as response:
                answer = await response.text()
            seconds.append(time.perf_counter() - began)
            urls.append(_image_url(answer))

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(caller(session) for _ in range(at_once)))
    return Calls(seconds, urls)


def _image_url(answer: str) -> str:
    if "/images/" not in answer or '"isError":true' in answer:
        raise RuntimeError(answer[:500])
    return answer.split('"url":"', 1)[1].split('"', 1)[0]


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


async def get(urls: Sequence[str], count: int, *, at_once: int = 8) -> None:
    """Fetch `count` times, one URL after the other."""
    left = islice(cycle(urls), count)

    async def reader(session: aiohttp.ClientSession) -> None:
        for url in left:
            async with session.get(url) as response:
                await response.read()

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(reader(session) for _ in range(at_once)))


async def crowd(url: str, readers: int) -> None:
    """So many ask for one URL at once and take nothing of what comes; then they leave."""
    parts = urlsplit(url)
    asked = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode()
    opening = (asyncio.open_connection(parts.hostname, parts.port, limit=4096) for _ in range(readers))
    connections = await asyncio.gather(*opening)
    for _, writer in connections:
        writer.write(asked)
    await asyncio.gather(*(reader.readexactly(1000) for reader, _ in connections))
    for _, writer in connections:
        writer.transport.abort()


async def text(url: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return await response.text()
