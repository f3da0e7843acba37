"""How many connections there may be, and how long one may be silent before its first request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from aiohttp import web

MAX_CONNECTIONS = 1024
FIRST_REQUEST_SECONDS = 30.0

_log = structlog.stdlib.get_logger("sidecar.connections")


class ConnectionLimit:
    """Closes what exceeds the limit and what never sends a request."""

    def __init__(self) -> None:
        self._silent: set[asyncio.BaseProtocol] = set()  # connected, and no request yet

    def factory(self, server: web.Server) -> Callable[[], asyncio.BaseProtocol]:
        """A protocol factory for `loop.create_server` in front of aiohttp's own."""

        def connect() -> asyncio.BaseProtocol:
            if len(server.connections) >= MAX_CONNECTIONS:
                _log.warning("refused a connection: there are too many", limit=MAX_CONNECTIONS)
                return _Refuse()
            protocol = server()
            self._silent.add(protocol)
            asyncio.get_running_loop().call_later(FIRST_REQUEST_SECONDS, self._close_if_silent, protocol)
            return protocol

        return connect

    def saw_request(self, request: web.Request) -> None:
        self._silent.discard(request.protocol)

    def _close_if_silent(self, protocol: web.RequestHandler) -> None:
        if protocol in self._silent:
            self._silent.discard(protocol)
            if protocol.transport is not None:
                protocol.transport.close()


class _Refuse(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()
