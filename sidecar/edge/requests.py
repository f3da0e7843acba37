"""What every request passes: an id, its trace, a count, and an answer in general words when a handler fails."""

from __future__ import annotations

import random
import re
import time

import structlog
from aiohttp import hdrs, web
from opentelemetry import context, propagate

from sidecar.edge.connections import head_arrived
from sidecar.edge.error_pages import error_page, failure_page, no_route_page
from sidecar.edge.errors_map import http_answer
from sidecar.edge.guard import Handler
from sidecar.edge.keys import METRICS
from sidecar.edge.negotiation import wants_page
from sidecar.errors import INTERNAL, SidecarError

_ID = web.RequestKey("request_id", str)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_METHODS = frozenset(
    {hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_POST, hdrs.METH_DELETE, hdrs.METH_OPTIONS, hdrs.METH_PUT}
)

_log = structlog.stdlib.get_logger("sidecar.http")


@web.middleware
async def request_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The outermost middleware."""
    head_arrived(request)
    given = request.headers.get("X-Request-ID", "")
    request_id = request[_ID] = given if _REQUEST_ID.fullmatch(given) else f"{random.getrandbits(64):016x}"
    structlog.contextvars.bind_contextvars(request_id=request_id)  # a connection's next request binds its own
    token = context.attach(propagate.extract(request.headers)) if "traceparent" in request.headers else None
    started = time.perf_counter()
    status = 499
    try:
        response = await _answer(request, handler)
        status = response.status
        return response
    except web.HTTPException as answer:
        status = answer.status
        raise
    finally:
        if token is not None:
            context.detach(token)
        method = request.method if request.method in _METHODS else "other"
        request.app[METRICS].http_request(_route(request), method, status, time.perf_counter() - started)


async def name_request(request: web.Request, response: web.StreamResponse) -> None:
    """For `on_response_prepare`, because an event stream has sent its head before a middleware sees it."""
    if (request_id := request.get(_ID)) is not None:
        response.headers["X-Request-ID"] = request_id


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What goes wrong is JSON, and a page for a browser that opens the address."""
    try:
        return await handler(request)
    except SidecarError as error:
        return error_page(request, error) if wants_page(request) else http_answer(error)
    except web.HTTPException as answer:
        if answer.status in (404, 405) and wants_page(request):
            return no_route_page(request, answer)
        raise
    except Exception:
        _log.exception("a request failed", method=request.method, route=_route(request))
        return failure_page(request) if wants_page(request) else web.json_response({"error": INTERNAL}, status=500)


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "other"
