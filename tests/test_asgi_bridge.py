"""An ASGI application behind aiohttp, when it fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from sidecar.edge.asgi_bridge import ASGIApp, ASGIBridge, Receive, Send
from sidecar.edge.bodies import BodyReader
from sidecar.edge.keys import METRICS
from sidecar.edge.requests import request_middleware
from sidecar.errors import INTERNAL
from sidecar.observe.metrics import Metrics


@asynccontextmanager
async def asked(application: ASGIApp, aiohttp_server: Any) -> AsyncIterator[asyncio.StreamReader]:
    """What comes back on a connection on which one request has gone out to this application."""
    bridge = ASGIBridge(application)

    async def handle(request: web.Request) -> web.StreamResponse:
        return await bridge(request)

    app = web.Application(middlewares=[request_middleware, BodyReader()])
    app[METRICS] = Metrics({}, "file")
    app.router.add_post("/mcp", handle)
    server: TestServer = await aiohttp_server(app)
    reader, writer = await asyncio.open_connection(server.host, server.port)
    writer.write(b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
    try:
        yield reader
    finally:
        writer.close()


async def what_follows(reader: asyncio.StreamReader) -> bytes:
    """Everything up to the end of the connection, be it a broken one."""
    received = b""
    try:
        while piece := await reader.read(1000):
            received += piece
    except ConnectionError:
        pass
    return received


async def test_a_stream_whose_application_fails_breaks_off_and_nothing_is_written_into_it(aiohttp_server: Any) -> None:
    first_was_read = asyncio.Event()

    async def application(_scope: Any, _receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        await first_was_read.wait()
        raise RuntimeError("a fault of its own")

    async with asked(application, aiohttp_server) as reader:
        assert (await reader.readuntil(b"data: 1\n\n\r\n")).startswith(b"HTTP/1.1 200 ")
        first_was_read.set()
        assert await what_follows(reader) == b""


async def test_an_application_that_fails_before_it_answers_is_a_500_in_general_words(aiohttp_server: Any) -> None:
    async def application(_scope: Any, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("a fault of its own")

    async with asked(application, aiohttp_server) as reader:
        head, body = (await reader.readuntil(b"}")).split(b"\r\n\r\n")
    assert (head[:12], json.loads(body)) == (b"HTTP/1.1 500", {"error": INTERNAL})
