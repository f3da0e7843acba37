"""Who may talk to us: the Host we answer to, the Origins that may act, and how many connections there may be.

A page of elsewhere that a name server points at this address (DNS rebinding) arrives with its own Host; a page that
posts across origins arrives with its own Origin. Probes, metrics and images may be read under any Host: kubelets and
scrapers use the pod's address, and an image's address is its key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web

from sidecar.config import ListenSettings
from sidecar.errors import bounded

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAX_CONNECTIONS = 1024
FIRST_REQUEST_SECONDS = 30.0
OPEN_TO_ANY_HOST = ("/livez", "/readyz", "/startupz", "/drained", "/metrics", "/images/")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

_log = structlog.stdlib.get_logger("sidecar.guard")


class HostGuard:
    """An aiohttp middleware that answers 421 to a foreign Host and 403 to a foreign Origin."""

    __middleware_version__ = 1

    def __init__(self, settings: ListenSettings) -> None:
        self._hosts = frozenset(settings.allowed_hosts)
        self._origins = frozenset(settings.allowed_origins)

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.headers.get("Host", "").lower()
        read = request.method in _SAFE_METHODS
        if not (read and request.path.startswith(OPEN_TO_ANY_HOST)) and not self._answers_to(host):
            return _refuse(421, "does not answer to the Host", host, "ALLOWED_HOSTS")
        origin = request.headers.get("Origin")
        if origin is not None and not read and not self._may_act(origin.lower(), host):
            return _refuse(403, "may not be called by pages of the Origin", origin, "ALLOWED_ORIGINS")
        return await handler(request)

    def _answers_to(self, host: str) -> bool:
        return "*" in self._hosts or host in self._hosts or _without_port(host) in self._hosts

    def _may_act(self, origin: str, host: str) -> bool:
        own = origin in (f"http://{host}", f"https://{host}") and self._answers_to(host)
        return own or origin in self._origins


def _refuse(status: int, why: str, given: str, variable: str) -> web.Response:
    _log.warning("refused a request from elsewhere", status=status, given=bounded(given, 100))
    text = f"This server {why} {bounded(given, 100)!r}. Its operator allows more with {variable}."
    return web.json_response({"error": text}, status=status)


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


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
