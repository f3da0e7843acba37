"""Builds every part, wires the routes, owns start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import structlog
from aiohttp import web

from sidecar.config import ModelSettings, Settings
from sidecar.core.clock_guard import ClockGuard
from sidecar.core.generation import Lane
from sidecar.core.generation_queue import ModelQueue
from sidecar.core.jobs import JobService
from sidecar.core.readiness import CleanupWatch, Health, RuntimeWatch, StorageWatch
from sidecar.core.service import ImageService
from sidecar.core.sweeper import Sweeper
from sidecar.edge import favicon, gallery, health, images_http, keys, metrics_http
from sidecar.edge.asgi_bridge import ASGIBridge
from sidecar.edge.bodies import BodyReader
from sidecar.edge.cross_origin import MCP_PATHS, CrossOrigin
from sidecar.edge.guard import HostGuard
from sidecar.edge.jsonrpc import refusing_malformed
from sidecar.edge.mcp_server import ImageMCPServer, served
from sidecar.edge.requests import name_request, request_middleware
from sidecar.events import Event
from sidecar.imaging.thumbnails import PillowThumbnailer
from sidecar.observe.activity import Activity
from sidecar.observe.logs import EventLog
from sidecar.observe.metrics import Metrics
from sidecar.ports import Clock, Observer, SystemClock
from sidecar.runtimes.http_session import client_session
from sidecar.runtimes.kserve_v1 import KServeV1Runtime
from sidecar.storages.opening import opened_store

_log = structlog.stdlib.get_logger("sidecar.app")

MCP_SERVER = web.AppKey("mcp_server", ImageMCPServer)
OWN_URL = web.AppKey("own_url", list[str])
_BRIDGE = web.AppKey("bridge", ASGIBridge)


def create_app(settings: Settings, *, clock: Clock | None = None) -> web.Application:
    """The sidecar as an aiohttp application. It must be run with `handler_cancellation=True` (see serving.py)."""
    cross_origin = CrossOrigin(settings.listen)
    app = web.Application(
        middlewares=[request_middleware, HostGuard(settings.listen), cross_origin, BodyReader()],
    )
    app.on_response_prepare.extend((name_request, cross_origin.name_origin))
    app[keys.SETTINGS] = settings
    app[keys.CLOCK] = clock or SystemClock()
    app[OWN_URL] = []
    for path in MCP_PATHS:
        app.router.add_post(path, _mcp)
    app.router.add_routes([*images_http.routes(), *health.routes(), *favicon.routes()])
    if settings.listen.gallery:
        app.router.add_routes(gallery.routes())
    if settings.listen.metrics_port is None:
        app.router.add_routes(metrics_http.routes())
    app.cleanup_ctx.append(_parts)
    return app


def create_metrics_app(app: web.Application) -> web.Application:
    """Metrics and probes, for a port of their own. `app` must have been started."""
    metrics_app = web.Application(middlewares=[request_middleware, BodyReader()])
    metrics_app.on_response_prepare.append(name_request)
    for key in (keys.METRICS, keys.SERVICE, keys.HEALTH):
        metrics_app[key] = app[key]  # type: ignore[misc]
    metrics_app.router.add_routes([*metrics_http.routes(), *health.routes()])
    return metrics_app


async def _mcp(request: web.Request) -> web.StreamResponse:
    return await request.app[_BRIDGE](request)


async def _parts(app: web.Application) -> AsyncIterator[None]:
    """Open every part in order and close them in reverse."""
    settings, clock = app[keys.SETTINGS], app[keys.CLOCK]
    observer = _Observers()
    async with AsyncExitStack() as parts:
        session = await parts.enter_async_context(client_session())
        lanes = {model.name: _lane(model, settings, session, clock, observer) for model in settings.models}
        metrics = app[keys.METRICS] = Metrics(
            {name: lane.queue for name, lane in lanes.items()}, settings.storage.backend, settings.storage.max_bytes
        )
        activity, cleanup_watch = Activity(clock), CleanupWatch(clock)
        observer.all = (metrics, EventLog(), activity, cleanup_watch)
        storage = await parts.enter_async_context(opened_store(settings.storage, clock=clock, observer=observer))
        service = app[keys.SERVICE] = ImageService(
            lanes=lanes,
            storage=storage,
            thumbnailer=await parts.enter_async_context(PillowThumbnailer().opened()),
            settings=settings.storage,
            clock=clock,
            observer=observer,
        )
        guard = ClockGuard(storage, clock)
        jobs = app[keys.JOBS] = JobService(
            service,
            storage.jobs,
            settings.jobs,
            instance=secrets.token_hex(6),
            guard=guard,
            clock=clock,
            observer=observer,
        )
        storage_watch = StorageWatch(storage, clock, observer)
        runtime_watches = {name: RuntimeWatch(lane, clock, observer) for name, lane in lanes.items()}
        app[keys.HEALTH] = Health(storage_watch, cleanup_watch, runtime_watches)
        app[gallery.STATUS] = gallery.Status(service, app[keys.HEALTH], activity, clock)
        sweeper = Sweeper(
            storage,
            storage.jobs,
            interval=settings.storage.cleanup_interval,
            guard=guard,
            clock=clock,
            observer=observer,
        )
        watches = (storage_watch.run(), sweeper.run(), jobs.run(), *(watch.run() for watch in runtime_watches.values()))
        await parts.enter_async_context(_background(*watches))
        mcp = app[MCP_SERVER] = ImageMCPServer(service, jobs, settings, lambda: app[OWN_URL][0])
        app[_BRIDGE] = ASGIBridge(refusing_malformed(await parts.enter_async_context(served(mcp.server))))
        parts.push_async_callback(jobs.drain, 0.0)
        yield


def _lane(
    model: ModelSettings, settings: Settings, session: aiohttp.ClientSession, clock: Clock, observer: Observer
) -> Lane:
    runtime = KServeV1Runtime(model, session, max_image_bytes=settings.storage.max_image_bytes, observer=observer)
    return Lane(model, runtime, ModelQueue(concurrency=model.concurrency, limit=model.queue_limit, clock=clock))


class _Observers:
    """One observer for the core, several behind it. One that fails is logged and does not disturb the work."""

    def __init__(self) -> None:
        self.all: tuple[Observer, ...] = ()

    def __call__(self, event: Event) -> None:
        for observer in self.all:
            try:
                observer(event)
            except Exception:
                _log.exception("an observer failed", about=type(event).__name__)


@asynccontextmanager
async def _background(*loops: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run endless loops beside the server; one that ends before its time is logged."""
    tasks = [asyncio.create_task(loop) for loop in loops]
    for task in tasks:
        task.add_done_callback(_tell_of_a_crash)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)


def _tell_of_a_crash(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("a background loop crashed", exc_info=error)
