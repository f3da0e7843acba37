"""How many connections there may be, and how long one may be silent before its first request."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable

import structlog
from aiohttp import web

MAX_CONNECTIONS = 1024
FIRST_REQUEST_SECONDS = 30.0
_FILES_PER_CONNECTION = 2  # its socket, and the image that is sent on it
_OTHER_FILES = 200

_log = structlog.stdlib.get_logger("sidecar.connections")


class ConnectionLimit:
    """Closes what exceeds the limit and what never sends a request."""

    def __init__(self) -> None:
        self._limit = allowed_connections()
        self._servers: list[web.Server] = []
        self._silent: set[asyncio.BaseProtocol] = set()  # connected, and no request yet

    def factory(self, server: web.Server) -> Callable[[], asyncio.BaseProtocol]:
        """A protocol factory for `loop.create_server` in front of aiohttp's own. All servers share the limit."""
        if server not in self._servers:
            self._servers.append(server)

        def connect() -> asyncio.BaseProtocol:
            if sum(len(other.connections) for other in self._servers) >= self._limit:
                _log.warning("refused a connection: there are too many", limit=self._limit)
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


def allowed_connections() -> int:
    """As many as the process may have files for, whose soft limit is raised so far as that is allowed."""
    needed = MAX_CONNECTIONS * _FILES_PER_CONNECTION + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    return max(1, (files - _OTHER_FILES) // _FILES_PER_CONNECTION)


class _Refuse(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()
