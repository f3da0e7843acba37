"""How many connections there may be, and which one goes when there are too many.

Each port has a budget of its own, so that clients which fill the main port cannot keep the kubelet from its probes. At
the limit the connection that has been idle longest is evicted. Idle is a connection without a complete request in
progress: kept alive, or with a part of a head or body. The bytes of an incomplete request do not count as activity,
or a client could hold its place with a byte now and then.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable

import structlog
from aiohttp import StreamReader, web
from aiohttp.http import RawRequestMessage

MAX_CONNECTIONS = 1024
METRICS_CONNECTIONS = 64
FIRST_REQUEST_SECONDS = 30.0
KEEP_ALIVE_SECONDS = 75.0  # longer than gateways keep theirs, or one would send on a connection that is being closed
_FILES_PER_CONNECTION = 2  # its socket, and the image that is sent on it
_OTHER_FILES = 200
_MAX_BACKLOG = 512
_REPORT_SECONDS = 60.0

_log = structlog.stdlib.get_logger("sidecar.connections")


class ConnectionBudget:
    """The connections of one port: never more than `limit`, counted from the accept until they are lost.

    `port` names it in the log. All listeners of a port share the budget.
    """

    def __init__(self, limit: int, port: str) -> None:
        self._limit = limit
        self._open: set[Connection] = set()
        self._idle: dict[Connection, None] = {}  # the one idle longest comes first
        self._pressure = _Pressure(limit, port)

    @property
    def backlog(self) -> int:
        """How many connections may be accepted in one step of the loop, each with a file, before they are counted."""
        return min(self._limit, _MAX_BACKLOG)

    def factory(self, server: web.Server) -> Callable[[], asyncio.BaseProtocol]:
        """A protocol factory for `loop.create_server`, in place of aiohttp's own."""

        def connect() -> asyncio.BaseProtocol:
            if len(self._open) >= self._limit and not self._evict_one():
                self._pressure.refused()
                return _Refused()
            connection = Connection(server, self)
            self._open.add(connection)
            self._idle[connection] = None
            return connection

        return connect

    def set_idle(self, connection: Connection) -> None:
        """Its answer has been sent: from now on it may be evicted, after all that are idle already."""
        if connection in self._open:
            self._idle.pop(connection, None)
            self._idle[connection] = None

    def set_busy(self, connection: Connection) -> None:
        """A complete request is in progress."""
        self._idle.pop(connection, None)

    def forget(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._idle.pop(connection, None)

    def evict_idle(self) -> None:
        """Close all that have no complete request in progress: at the end, which else would wait for them."""
        for connection in list(self._idle):
            connection.evict()

    def _evict_one(self) -> bool:
        for connection in self._idle:
            if connection.evict():
                self.forget(connection)
                self._pressure.evicted()
                return True
        return False


class Connection(web.RequestHandler):
    """aiohttp's side of one connection, which tells its budget what it is doing."""

    __slots__ = ("_body", "_budget", "_first_request", "_queued", "_socket")

    def __init__(self, server: web.Server, budget: ConnectionBudget) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(server, loop=loop, access_log=None, keepalive_timeout=KEEP_ALIVE_SECONDS)  # type: ignore[arg-type]
        self._budget = budget
        self._body: StreamReader | None = None
        self._socket: asyncio.Transport | None = None  # aiohttp forgets its own before it is closed
        self._first_request: asyncio.TimerHandle | None = None
        self._queued = False  # whether a request has come whole that no middleware has seen: that takes aiohttp a while

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - for the type checker
        self._socket = transport
        self._first_request = self._loop.call_later(FIRST_REQUEST_SECONDS, transport.abort)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._budget.forget(self)
        self._drop_timer()
        self._socket = self._body = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._queued = self._queued or self._has_queued()
        self._fail_broken_body()

    def head_arrived(self, request: web.BaseRequest) -> None:
        """A request begins; its body may be still to come."""
        self._drop_timer()
        self._queued = self._has_queued()
        self._body = request.content
        self._fail_broken_body()

    def request_arrived(self) -> None:
        """The body is there too."""
        self._body = None
        self._budget.set_busy(self)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        body = request.content
        unread = not body.is_eof() and body.total_compressed_bytes is not None
        if unread:
            resp.force_close()
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            if unread:
                body.feed_eof()  # aiohttp would go on reading for a while, and inflate what may be a bomb
            self._body = None
            self._queued = self._has_queued()
            self._budget.set_idle(self)

    def evict(self) -> bool:
        """Close it at once, unless a request has come or its last answer is still being sent; whether it is."""
        has_request = self._queued or (self._body is not None and self._body.is_eof())
        if has_request or self._socket is None or self._socket.get_write_buffer_size():
            return False
        self._socket.abort()
        return True

    def _has_queued(self) -> bool:
        return any(isinstance(head, RawRequestMessage) and body.is_eof() for head, body in self._messages)

    def _fail_broken_body(self) -> None:
        """aiohttp queues its answer to bytes it cannot parse behind the request that waits for them as its body."""
        if self._messages and self._body is not None and not self._body.is_eof():
            self._body.set_exception(web.RequestPayloadError("not the body that the head has announced"))

    def _drop_timer(self) -> None:
        if self._first_request is not None:
            self._first_request.cancel()
            self._first_request = None


class _Refused(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


class _Pressure:
    """Says in one line a minute how many connections have been evicted and refused."""

    def __init__(self, limit: int, port: str) -> None:
        self._limit = limit
        self._port = port
        self._evicted = self._refused = 0
        self._timer: asyncio.TimerHandle | None = None

    def evicted(self) -> None:
        self._evicted += 1
        self._report_at_most_once_a_minute()

    def refused(self) -> None:
        self._refused += 1
        self._report_at_most_once_a_minute()

    def _report_at_most_once_a_minute(self) -> None:
        if self._timer is None:
            self._report()

    def _report(self) -> None:
        self._timer = None
        if not self._evicted and not self._refused:
            return
        _log.warning(
            "connection limit reached",
            port=self._port,
            limit=self._limit,
            evicted=self._evicted,
            refused=self._refused,
        )
        self._evicted = self._refused = 0
        self._timer = asyncio.get_running_loop().call_later(_REPORT_SECONDS, self._report)


def head_arrived(request: web.BaseRequest) -> None:
    """Tell the request's connection, where it belongs to a budget."""
    if isinstance(request.protocol, Connection):
        request.protocol.head_arrived(request)


def request_arrived(request: web.BaseRequest) -> None:
    """Tell the request's connection, where it belongs to a budget."""
    if isinstance(request.protocol, Connection):
        request.protocol.request_arrived()


def allowed_connections() -> int:
    """Connections of the main port: as many as the process may have files for beside all else.

    Raises the soft limit of files as far as that is allowed.
    """
    others = METRICS_CONNECTIONS + _OTHER_FILES
    needed = MAX_CONNECTIONS * _FILES_PER_CONNECTION + others
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    return max(1, (files - others) // _FILES_PER_CONNECTION)
