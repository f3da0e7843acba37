"""Probes for the kubelet, and the route that a runtime container's preStop waits on."""

from __future__ import annotations

from dataclasses import asdict

from aiohttp import web

from sidecar import __version__
from sidecar.edge.keys import HEALTH, SERVICE
from sidecar.edge.slow_routes import at_most

MAX_DRAINED = 24
"""Requests of /drained that wait at a time. A pod has one or two: the preStop hooks of its containers."""


def routes() -> list[web.RouteDef]:
    return [
        web.get("/livez", livez),
        web.get("/readyz", readyz),
        web.get("/startupz", startupz),
        web.get("/drained", at_most(MAX_DRAINED, drained)),
    ]


async def livez(_request: web.Request) -> web.Response:
    return web.json_response({"status": "ok", "version": __version__})


async def readyz(request: web.Request) -> web.Response:
    health = request.app[HEALTH]
    degraded = any(watch.check.status not in ("ok", "busy") for watch in health.watches.values())
    good = "degraded" if degraded else "ok"
    bad = "stopping" if health.stopping else "not ready"
    return _verdict(request, health.ready, good if health.ready else bad)


async def startupz(request: web.Request) -> web.Response:
    started = request.app[HEALTH].started
    return _verdict(request, started, "ok" if started else "starting")


async def drained(request: web.Request) -> web.Response:
    """Answer once nothing is in flight."""
    await request.app[SERVICE].drained()
    return web.json_response({"status": "drained"})


def _verdict(request: web.Request, good: bool, status: str) -> web.Response:
    checks = {
        name: {**asdict(watch.check), "since": watch.since.isoformat()}
        for name, watch in request.app[HEALTH].watches.items()
    }
    return web.json_response({"status": status, "checks": checks}, status=200 if good else 503)
