"""Listeners and graceful shutdown.

aiohttp's own runner closes its listeners first and then waits for handlers. A sidecar must go on answering while its
generations finish, so the order here is: unready, drain with the doors open, then close.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import structlog
from aiohttp import web, web_response

from sidecar.app import OWN_URL, create_app, create_metrics_app
from sidecar.config import Settings, is_loopback, own_address
from sidecar.edge import keys
from sidecar.edge.connections import METRICS_CONNECTIONS, ConnectionBudget, allowed_connections
from sidecar.errors import BadConfiguration, bounded
from sidecar.observe.tracing import flush_traces
from sidecar.process import EXIT_SECONDS, StopSignals

_LINGER_SECONDS = 1.0  # for a client that has just got its result to read the tool's schema or the image
_ENDPOINT_SECONDS = 5.0  # in a pod: until the Service sends no more requests here
_HANDLERS_SECONDS = 5.0  # what answers under way get once the drain is over
_STORE_SECONDS = 5.0  # for the store to be told of what is left to the next process
_HURRIED_STORE_SECONDS = 0.3  # the same after a second signal
_CLOSING_SECONDS = 15.0  # from the end of the drain to the end of the process, even if threads are stuck
_TRACES_SECONDS = 3.0  # for a receiver of traces to take the last ones
_UNREAD_SECONDS = 60  # how long a peer may take nothing of what it was sent, before the kernel ends its connection
_EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - of IPv4 or IPv6, which a node may lack
_NOT_OURS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # an address that this machine does not have
_log = structlog.stdlib.get_logger("sidecar.serving")

# The Server header of every response, also of the 400s that aiohttp answers itself. It has no setting for it.
web_response.SERVER_SOFTWARE = "mcp-image-sidecar"  # type: ignore[attr-defined]


class Running:
    """A started sidecar: where it listens and its application."""

    def __init__(self, app: web.Application, url: str, metrics_url: str | None) -> None:
        self.app = app
        self.url = url
        self.metrics_url = metrics_url


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Running]:
    """The sidecar, started and listening. Raises BadConfiguration when its port cannot be had."""
    app = create_app(settings)
    listen = settings.listen
    async with AsyncExitStack() as stack:
        budget = ConnectionBudget(allowed_connections(), "LISTEN_PORT")
        url = await stack.enter_async_context(_listening(app, budget, listen.hosts, listen.port, "LISTEN_PORT"))
        app[OWN_URL].append(url)
        metrics_url = None
        if listen.metrics_port is not None:
            metrics_app = create_metrics_app(app)
            budget = ConnectionBudget(METRICS_CONNECTIONS, "METRICS_LISTEN_PORT")
            metrics_url = await stack.enter_async_context(
                _listening(metrics_app, budget, listen.hosts, listen.metrics_port, "METRICS_LISTEN_PORT")
            )
        yield Running(app, url, metrics_url)


async def serve(settings: Settings, signals: StopSignals) -> None:
    """Serve until the first signal, drain, stop. A second signal ends at once."""
    async with running(settings) as sidecar:
        signals.started()
        gallery = f"{sidecar.url}/" if settings.listen.gallery else None
        mcp = f"{sidecar.url}/mcp"
        _log.info("listening", url=sidecar.url, mcp=mcp, gallery=gallery, metrics=sidecar.metrics_url)
        await signals.stop.wait()
        await drain(sidecar, settings, signals)
    await stopped(signals)


async def stopped(signals: StopSignals) -> None:
    """To be called when everything is closed: a thread that is stuck must not delay the exit."""
    await flush_traces(_TRACES_SECONDS)
    _log.info("stopped")
    signals.end_within(EXIT_SECONDS)


async def drain(sidecar: Running, settings: Settings, signals: StopSignals) -> None:
    """Unready at once, no new generations, those under way finish while polls and images are still served."""
    sidecar.app[keys.HEALTH].stopping = True
    service = sidecar.app[keys.SERVICE]
    was_busy = service.busy
    _log.info("draining", grace=settings.listen.shutdown_grace)
    jobs = sidecar.app[keys.JOBS]
    drained = asyncio.create_task(_drained(sidecar, settings.listen.shutdown_grace))
    hurried = asyncio.create_task(signals.at_once.wait())
    signals.end_within(settings.listen.shutdown_grace + _CLOSING_SECONDS)  # threads of a stalled volume do not end
    await asyncio.wait({drained, hurried}, return_when=asyncio.FIRST_COMPLETED)
    signals.end_within(_CLOSING_SECONDS)
    for task in (drained, hurried):
        task.cancel()
    await asyncio.gather(drained, hurried, return_exceptions=True)
    # what is still in flight is given up now, so that its callers are told
    await jobs.drain(0.0, store_seconds=_HURRIED_STORE_SECONDS if signals.at_once.is_set() else _STORE_SECONDS)
    if held := await service.send_held(0.0):
        _log.warning("images stay in the spool, unsent", images=held)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(signals.at_once.wait(), _linger(settings, was_busy))


async def _drained(sidecar: Running, grace: float) -> None:
    """What remains of the grace when the generations have finished is for the images that wait for the store."""
    end = time.monotonic() + grace
    await sidecar.app[keys.JOBS].drain(grace)
    await sidecar.app[keys.SERVICE].send_held(max(0.0, end - time.monotonic()))


def _linger(settings: Settings, was_busy: bool) -> float:
    """Seconds that the doors stay open once nothing is in flight."""
    if not is_loopback(settings.listen.hosts):
        return _ENDPOINT_SECONDS
    return _LINGER_SECONDS if was_busy else 0.0


@asynccontextmanager
async def _listening(
    app: web.Application, budget: ConnectionBudget, hosts: Sequence[str], port: int, variable: str
) -> AsyncIterator[str]:
    """Bind, start the application, then listen: a process that cannot bind touches neither runtime nor store."""
    try:
        sockets = await _bound(hosts, port)
    except _CannotListen as refusal:
        raise BadConfiguration([_why_not(refusal.cause, refusal.host, port, variable)]) from refusal.cause
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=_HANDLERS_SECONDS)
    async with AsyncExitStack() as stack:
        for sock in sockets:
            stack.callback(sock.close)
        stack.push_async_callback(runner.cleanup)
        stack.callback(budget.evict_idle)
        await runner.setup()
        if runner.server is None:
            raise RuntimeError("aiohttp has made no server")
        factory = budget.factory(runner.server)
        for sock in sockets:
            server = await asyncio.get_running_loop().create_server(factory, sock=sock, backlog=budget.backlog)
            stack.callback(server.close)
        yield _url(sockets[0])


class _CannotListen(Exception):
    def __init__(self, host: str, cause: Exception) -> None:
        super().__init__(host)
        self.host = host
        self.cause = cause


async def _bound(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """A socket for each address of the hosts, all on one port. Raises _CannotListen."""
    sockets: dict[tuple[Any, ...], socket.socket] = {}
    try:
        for host in hosts:
            try:
                await _bind_host(host, port, sockets)
            except (OSError, OverflowError, UnicodeError) as error:
                if not (sockets and host in _EVERY_ADDRESS and getattr(error, "errno", 0) in _NOT_OURS):
                    raise _CannotListen(host, error) from error
    except BaseException:
        for sock in sockets.values():
            sock.close()
        raise
    return list(sockets.values())


async def _bind_host(host: str, port: int, sockets: dict[tuple[Any, ...], socket.socket]) -> None:
    """Add one host's addresses, those that others have brought left out. Raises OSError where it has none here."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    refusal: OSError | None = None
    bound = 0
    for family, _, _, _, address in dict.fromkeys(found):
        try:
            if address not in sockets:
                sockets[address] = _bind(family, address, list(sockets.values()))
            bound += 1
        except OSError as error:
            if error.errno not in _NOT_OURS:
                raise
            refusal = error
    if refusal is not None and not bound:
        raise refusal


def _bind(family: int, address: tuple[Any, ...], before: list[socket.socket]) -> socket.socket:
    """A free port is the first socket's to choose."""
    port = before[0].getsockname()[1] if before else address[1]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux has it; connections inherit it
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_SECONDS * 1000)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address[0], port, *address[2:]))
    except BaseException:
        sock.close()
        raise
    return sock


def _why_not(error: Exception, host: str, port: int, variable: str) -> str:
    if isinstance(error, (socket.gaierror, UnicodeError)) or getattr(error, "errno", 0) in _NOT_OURS:
        return f"LISTEN_HOST: {bounded(host, 120)!r} was given; allowed: a host name or address of this machine"
    return f"{variable}: cannot listen on {host}:{port} ({error}); allowed: a free port of this machine"


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    host = own_address(host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
