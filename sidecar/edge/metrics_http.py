"""`/metrics` for ourselves and `/metrics/runtime` for what the runtime says of itself."""

from __future__ import annotations

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST as TEXT
from prometheus_client.exposition import generate_latest as text
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPENMETRICS
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics

from sidecar.edge.keys import METRICS, SERVICE


def routes() -> list[web.RouteDef]:
    return [web.get("/metrics", metrics), web.get("/metrics/runtime", runtime_metrics)]


async def metrics(request: web.Request) -> web.Response:
    registry = request.app[METRICS].registry
    if "application/openmetrics-text" in request.headers.get("Accept", ""):
        return web.Response(
            body=openmetrics(registry),  # type: ignore[no-untyped-call]
            headers={"Content-Type": OPENMETRICS},
        )
    return web.Response(body=text(registry), headers={"Content-Type": TEXT})


async def runtime_metrics(request: web.Request) -> web.Response:
    """The runtime's own metrics, so that nobody needs its port. `?model=` chooses among several; the first without."""
    lane = request.app[SERVICE].lane(request.query.get("model"))
    body, content_type = await lane.runtime.metrics()
    return web.Response(body=body, headers={"Content-Type": content_type})
