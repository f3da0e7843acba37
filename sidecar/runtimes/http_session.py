"""The HTTP client that all runtimes share, and the bounds on what it accepts from a runtime."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from aiohttp import StreamReader
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import AddrInfoType
from aiohttp.http import RawResponseMessage

from sidecar.runtimes.unpacking import CODINGS, DamagedPacking, UnknownCoding, Unpacker

MAX_INTERIM_RESPONSES = 10
_READ_BYTES = 256 * 1024
_CONNECT_SECONDS = 10.0
_POOLED_SECONDS = 4.0
_RECEIVE_BUFFER_BYTES = 1024 * 1024
_CODINGS = CODINGS | {"br", "zstd", "compress", "x-compress"}


class TooManyInterimResponses(aiohttp.ClientError):
    """The runtime sent more than MAX_INTERIM_RESPONSES responses with a status of 1xx before its answer."""


class TooLarge(Exception):
    """The body has more bytes than are allowed."""


@dataclass(frozen=True, slots=True)
class Keepalive:
    """When a silent peer is asked by TCP whether it is there, in seconds; how many unanswered times it is given up.

    The peer's kernel answers, so a runtime that paints silently for hours keeps its connection, while one that has
    vanished without a word (power loss, partition) is noticed after `limit` seconds.
    """

    idle: int = 30
    interval: int = 10
    count: int = 6

    @property
    def limit(self) -> int:
        return self.idle + self.interval * self.count

    def apply(self, sock: socket.socket) -> None:
        """TCP_USER_TIMEOUT is the same bound for bytes that were sent and not acknowledged (Linux)."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        options = {
            "TCP_KEEPIDLE": self.idle,
            "TCP_KEEPINTVL": self.interval,
            "TCP_KEEPCNT": self.count,
            "TCP_USER_TIMEOUT": self.limit * 1000,
        }
        for name, value in options.items():
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


@asynccontextmanager
async def client_session(keepalive: Keepalive = Keepalive()) -> AsyncIterator[aiohttp.ClientSession]:
    """One pooled session. No total time-out: waiting is bounded by the callers. It keeps no cookies.

    It asks for bodies as they are (`Accept-Encoding: identity`); `at_most` unpacks what comes packed all the same.
    """
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS)
    async with aiohttp.ClientSession(
        connector=_Connector(keepalive),
        timeout=timeout,
        headers={"Accept-Encoding": "identity"},
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        read_bufsize=_READ_BYTES,
    ) as session:
        yield session


def at_most(response: aiohttp.ClientResponse, limit: int) -> AsyncIterator[bytes]:
    """The body in pieces, unpacked. Raises TooLarge before more than `limit` bytes have come, packed or unpacked.

    Also raises UnknownCoding and DamagedPacking. What the head says is raised at once.
    """
    unpacker = _unpacker(response)
    if (response.content_length or 0) > limit:
        raise TooLarge
    return _pieces(response, limit, unpacker)


async def _pieces(response: aiohttp.ClientResponse, limit: int, unpacker: Unpacker | None) -> AsyncIterator[bytes]:
    packed = size = 0
    async for chunk in response.content.iter_any():
        packed += len(chunk)
        for piece in (chunk,) if unpacker is None else unpacker.feed(chunk):
            size += len(piece)
            if max(packed, size) > limit:
                raise TooLarge
            yield piece
            if unpacker is not None:
                await asyncio.sleep(0)  # a chunk may hold any number of pieces


async def start_of(response: aiohttp.ClientResponse, size: int) -> bytes:
    """At least the first `size` bytes of the body, or all of it that can be unpacked. Raises UnknownCoding."""
    body = bytearray()
    unpacker = _unpacker(response)
    with contextlib.suppress(DamagedPacking):
        async for piece in _pieces(response, sys.maxsize, unpacker):
            body += piece
            if len(body) >= size:
                break
    return bytes(body)


def _unpacker(response: aiohttp.ClientResponse) -> Unpacker | None:
    """What the body must go through. An unknown Content-Encoding, such as `utf-8`, changes nothing.

    Raises UnknownCoding.
    """
    given = ",".join(response.headers.getall("Content-Encoding", []))
    packed = [token for token in given.lower().replace(" ", "").split(",") if token in _CODINGS]
    if len(packed) > 1 or not CODINGS.issuperset(packed):
        raise UnknownCoding(", ".join(packed))
    return Unpacker() if packed else None


class _Connector(aiohttp.TCPConnector):
    def __init__(self, keepalive: Keepalive) -> None:
        made = functools.partial(_socket, keepalive)
        super().__init__(limit=0, keepalive_timeout=_POOLED_SECONDS, socket_factory=made)
        self._factory = functools.partial(_Protocol, loop=self._loop)  # type: ignore[assignment]


def _socket(keepalive: Keepalive, address: AddrInfoType) -> socket.socket:
    """One that takes in much at a time: an image comes in a few large pieces rather than in many small ones."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
    keepalive.apply(made)
    return made


class _Protocol(ResponseHandler):
    """aiohttp reads past any number of interim responses and queues them; here they are counted as they arrive."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._interim = 0

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        if self.exception() is not None:
            return
        interim = 100 <= data[0].code < 200 and data[0].code != 101
        self._interim = self._interim + 1 if interim else 0
        if self._interim > MAX_INTERIM_RESPONSES:
            self.set_exception(TooManyInterimResponses(f"more than {MAX_INTERIM_RESPONSES} interim responses"))
            if self.transport is not None:
                self.transport.abort()
            return
        super().feed_data(data, size)
