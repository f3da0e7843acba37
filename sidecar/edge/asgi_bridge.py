"""An ASGI application on an aiohttp route.

What the MCP SDK's session manager relies on: `receive` blocks after the body until the peer is gone and only then
tells of the disconnect; headers of an event stream are sent at once. aiohttp tells of a peer that left by cancelling
the handler (`handler_cancellation=True`), so the application runs in a task of its own: the cancellation becomes a
disconnect, the application gets a short grace to unwind, and is cancelled only after that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import structlog
from aiohttp import web
from multidict import CIMultiDict

from sidecar.edge.keys import BODY

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

GRACE_SECONDS = 2.0
_HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"transfer-encoding"})

_log = structlog.stdlib.get_logger("sidecar.asgi")


class ASGIBridge:
    """An aiohttp handler that serves each request by `app`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        exchange = _Exchange(request)
        task = asyncio.create_task(self._serve(exchange))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            exchange.gone.set()
            await _unwind(task)
            raise
        except Exception:
            exchange.break_off()
            raise
        return exchange.response()

    async def _serve(self, exchange: _Exchange) -> None:
        await self._app(_scope(exchange.request), exchange.receive, exchange.send)


class _Exchange:
    """One request and its answer, in ASGI's messages."""

    def __init__(self, request: web.Request) -> None:
        self.request = request
        self.gone = asyncio.Event()
        self._body_read = False
        self._status: int | None = None
        self._headers: CIMultiDict[str] = CIMultiDict()
        self._answer: web.StreamResponse | None = None

    async def receive(self) -> Message:
        if self._body_read:
            await self.gone.wait()
            return {"type": "http.disconnect"}
        self._body_read = True
        return {"type": "http.request", "body": self.request[BODY], "more_body": False}

    async def send(self, message: Message) -> None:
        if self.gone.is_set():
            return
        try:
            if message["type"] == "http.response.start":
                await self._start(message)
            else:
                await self._write(message.get("body", b""), more=message.get("more_body", False))
        except ConnectionError:
            self.gone.set()

    async def _start(self, message: Message) -> None:
        self._status = message["status"]
        for name, value in message.get("headers", ()):
            if name.lower() not in _HOP_BY_HOP:
                self._headers.add(name.decode("latin-1"), value.decode("latin-1"))
        if self._headers.get("content-type", "").startswith("text/event-stream"):
            await self._stream().prepare(self.request)

    async def _write(self, body: bytes, *, more: bool) -> None:
        if self._answer is None and not more:
            self._headers.popall("content-length", None)
            self._answer = web.Response(status=self._status or 500, headers=self._headers, body=body)
            return
        stream = self._stream()
        await stream.prepare(self.request)
        if body:
            await stream.write(body)
        if not more:
            await stream.write_eof()

    def _stream(self) -> web.StreamResponse:
        if self._answer is None:
            self._answer = web.StreamResponse(status=self._status or 500, headers=self._headers)
        return self._answer

    def break_off(self) -> None:
        """End the connection of an answer that has begun, lest another is written into it."""
        begun = self._answer is not None and self._answer.prepared
        if begun and self.request.transport is not None:
            self.request.transport.abort()

    def response(self) -> web.StreamResponse:
        """What aiohttp is to finish once the application has returned."""
        if self._answer is None:
            if self._status is None:
                raise RuntimeError("the ASGI application returned without an answer")
            self._answer = web.Response(status=self._status, headers=self._headers)
        return self._answer


async def _unwind(task: asyncio.Task[None]) -> None:
    """Let the application notice the disconnect; cancel it when it does not."""
    done, _ = await asyncio.wait({task}, timeout=GRACE_SECONDS)
    if not done:
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.debug("the ASGI application failed after its peer had left", exc_info=error)


def _scope(request: web.Request) -> dict[str, Any]:
    url = request.rel_url
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": f"{request.version.major}.{request.version.minor}",
        "method": request.method,
        "scheme": request.scheme,
        "path": url.path,
        "raw_path": url.raw_path.encode("ascii"),
        "query_string": url.raw_query_string.encode("ascii"),
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in request.raw_headers],
        "client": _address(request, "peername"),
        "server": _address(request, "sockname"),
        "state": {},
        "extensions": {},
    }


def _address(request: web.Request, which: str) -> tuple[str, int] | None:
    transport = request.transport
    address = transport.get_extra_info(which) if transport is not None else None
    return (address[0], address[1]) if isinstance(address, tuple) else None
