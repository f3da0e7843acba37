"""`/metrics` for ourselves and `/metrics/runtime` for what the runtime says of itself."""

from __future__ import annotations

from aiohttp import hdrs, web

from sidecar.edge.keys import METRICS, SERVICE
from sidecar.edge.slow_routes import at_most

_NO_PAGE = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'none'"}
"""What is passed on from elsewhere must never run as a page of this server's origin, where it could delete images."""

MAX_RUNTIME_SCRAPES = 16
"""At a time. Each lasts as long as the runtime and its own reader take, within the time for a scrape."""


def routes() -> list[web.RouteDef]:
    scrape = at_most(MAX_RUNTIME_SCRAPES, runtime_metrics)
    return [web.get("/metrics", metrics), web.get("/metrics/runtime", scrape)]


async def metrics(request: web.Request) -> web.Response:
    body, content_type = await request.app[METRICS].exposition.scrape(request.headers.get("Accept", ""))
    return web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type, **_NO_PAGE})


async def runtime_metrics(request: web.Request) -> web.StreamResponse:
    """The runtime's own metrics, so that no scraper needs access to its port.

    `?model=` chooses among several; without it the first.

    They are passed on piece by piece. Where the runtime fails in the middle the connection is broken off, so that a
    scraper does not take the part for the whole.
    """
    lane = request.app[SERVICE].lane(request.query.get("model"))
    async with lane.runtime.metrics() as found:
        response = web.StreamResponse(headers={hdrs.CONTENT_TYPE: found.content_type, **_NO_PAGE})
        await response.prepare(request)
        try:
            if request.method != hdrs.METH_HEAD:
                async for piece in found.body:
                    await response.write(piece)
            await response.write_eof()
        except BaseException:
            if request.transport is not None:
                request.transport.abort()
            raise
    return response
