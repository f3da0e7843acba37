"""`/metrics` for ourselves and `/metrics/runtime` for what the runtime says of itself."""

from __future__ import annotations

from aiohttp import web

from sidecar.edge.keys import METRICS, SERVICE


def routes() -> list[web.RouteDef]:
    return [web.get("/metrics", metrics), web.get("/metrics/runtime", runtime_metrics)]


async def metrics(request: web.Request) -> web.Response:
    body, content_type = await request.app[METRICS].exposition.scrape(request.headers.get("Accept", ""))
    return web.Response(body=body, headers={"Content-Type": content_type})


async def runtime_metrics(request: web.Request) -> web.Response:
    """The runtime's own metrics, so that nobody needs its port. `?model=` chooses among several; the first without."""
    lane = request.app[SERVICE].lane(request.query.get("model"))
    body, content_type = await lane.runtime.metrics()
    return web.Response(body=body, headers={"Content-Type": content_type})
