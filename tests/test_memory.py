"""What has ended leaves nothing in memory: no object stays behind a timer or a table (issue 13, section 3)."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from aiohttp.web_protocol import RequestHandler
from mcp.server.streamable_http import StreamableHTTPServerTransport

from sidecar.core.generation import Generation
from sidecar.core.job import Job
from tests.conftest import ERAS, Sidecar

CONNECTIONS = 40
OTHERS = 4
"""Handlers that may come meanwhile: the fake runtime, which is watched, serves in this process too."""


def alive(*kinds: type) -> int:
    gc.collect()
    return sum(isinstance(one, kinds) for one in gc.get_objects())


async def until_no_more_alive_than(most: int, *kinds: type) -> None:
    async with asyncio.timeout(30):
        while alive(*kinds) > most:
            await asyncio.sleep(0.05)


@contextmanager
def only_new_objects_are_seen() -> Iterator[None]:
    """The collector of a process that has run many tests looks through millions of objects, for seconds each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


async def connect_and_leave(sidecar: Sidecar, asked: bytes) -> None:
    parts = urlsplit(sidecar.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(asked)
    if asked.endswith(b"\r\n\r\n"):
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.transport.abort()


@pytest.mark.parametrize(
    "asked",
    [b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /livez HT", b""],
    ids=["whole", "part", "nothing"],
)
async def test_a_connection_that_has_closed_leaves_no_handler(sidecar: Sidecar, asked: bytes) -> None:
    """However much of a request it sent. Handlers kept for 30 seconds came to 265 MB at 4,000 connections a second."""
    with only_new_objects_are_seen():
        await asyncio.gather(*(connect_and_leave(sidecar, asked) for _ in range(CONNECTIONS)))
        await until_no_more_alive_than(OTHERS, RequestHandler)


@pytest.mark.parametrize("era", ERAS)
async def test_a_generation_that_has_ended_leaves_no_object(sidecar: Sidecar, era: str) -> None:
    with only_new_objects_are_seen():
        for number in range(3):
            await sidecar.generate(era, idempotency_key=f"key {number}")
        await until_no_more_alive_than(0, Job, Generation, StreamableHTTPServerTransport)
