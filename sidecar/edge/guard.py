"""Which requests are let in: the Host we answer to and the Origins that may act.

A page of elsewhere that a name server points at this address (DNS rebinding) arrives with its own Host; a page that
posts across origins arrives with its own Origin. Probes, metrics and images may be read under any Host: kubelets and
scrapers use the pod's address, and an image's address is its key.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web

from sidecar.config import ListenSettings
from sidecar.errors import bounded

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

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
