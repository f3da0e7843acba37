"""Lets browsers show MCP's answers to pages of the allowed origins (CORS).

A browser asks first whether a page of another origin may call (the preflight), and keeps an answer from the page that
does not name its origin. Only pages of ALLOWED_ORIGINS are named. Their cookies are not asked for: nothing here knows
any, and a page that has a token sends it itself.
"""

from __future__ import annotations

from aiohttp import hdrs, web

from sidecar.config import ListenSettings
from sidecar.edge.guard import Handler

MCP_PATHS = ("/mcp", "/mcp/")
"""The same endpoint: clients are configured with either, and not all follow a redirect of a POST."""
_MAY_BE_SENT = (
    *("Accept", "Authorization", "Content-Type", "Last-Event-ID"),
    *("Mcp-Method", "Mcp-Name", "Mcp-Protocol-Version", "Mcp-Session-Id"),
    *("Baggage", "Traceparent", "Tracestate", "X-Request-ID"),
)
_MAY_BE_READ = ("Mcp-Session-Id", "Retry-After", "X-Request-ID")
_GRANTED = {
    hdrs.ACCESS_CONTROL_ALLOW_METHODS: hdrs.METH_POST,
    hdrs.ACCESS_CONTROL_ALLOW_HEADERS: ", ".join(_MAY_BE_SENT),
    hdrs.ACCESS_CONTROL_MAX_AGE: "7200",  # the most that Chromium keeps
}


class CrossOrigin:
    """An aiohttp middleware that answers preflights, and a hook that names the origin in all that MCP answers."""

    __middleware_version__ = 1

    def __init__(self, settings: ListenSettings) -> None:
        self._origins = frozenset(settings.allowed_origins)

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._is_preflight(request) and self._is_allowed(request):
            return web.Response(status=204, headers=_GRANTED)
        return await handler(request)

    async def name_origin(self, request: web.Request, response: web.StreamResponse) -> None:
        """For `on_response_prepare`, because an event stream has sent its head before a middleware sees it."""
        if request.path not in MCP_PATHS:
            return
        response.headers.add(hdrs.VARY, hdrs.ORIGIN)
        if self._is_allowed(request):
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = request.headers[hdrs.ORIGIN]
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = ", ".join(_MAY_BE_READ)

    def _is_preflight(self, request: web.Request) -> bool:
        asks = hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
        return asks and request.method == hdrs.METH_OPTIONS and request.path in MCP_PATHS

    def _is_allowed(self, request: web.Request) -> bool:
        return request.headers.get(hdrs.ORIGIN, "").lower() in self._origins
