"""A request's body is read in one place, before any handler runs: bounded in size, time and rate.

So no handler waits for a slow client, and when a handler runs its request is complete.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

from aiohttp import web

from sidecar.edge.connections import request_arrived
from sidecar.edge.guard import Handler
from sidecar.edge.keys import BODY

MAX_BODY_BYTES = 256 * 1024
SMALL_BODY_BYTES = 16 * 1024
"""A request weighs what its body takes in memory. So much is always taken in."""
MAX_LARGE_BYTES = 48 * 1024 * 1024
"""What all requests in progress that weigh more may weigh together. Few clients send any."""
_BYTES_PER_VALUE = 64  # of JSON: an empty list of three bytes becomes an object of 56 and a pointer
_RETRY_SECONDS = 5
GRACE_SECONDS = 10.0
MIN_BYTES_PER_SECOND = 1024
DEADLINE_SECONDS = 60.0


class BodyReader:
    """An aiohttp middleware that puts the whole body into `request[BODY]`, decoded as its Content-Encoding says.

    A body has `grace` seconds, and a second more for each `min_rate` bytes that have arrived, up to `deadline` seconds
    in all. Answers 400 to a body that cannot be decoded, 408 to one that comes too slowly, 413 to one of more than
    `max_bytes` (decoded), 503 where large bodies of requests in progress take `max_large` bytes already; each ends its
    connection (issue 13).
    """

    __middleware_version__ = 1

    def __init__(
        self,
        *,
        max_bytes: int = MAX_BODY_BYTES,
        grace: float = GRACE_SECONDS,
        min_rate: int = MIN_BYTES_PER_SECOND,
        deadline: float = DEADLINE_SECONDS,
        max_large: int = MAX_LARGE_BYTES,
    ) -> None:
        self._max_large = max_large
        self._large = 0
        self._max_bytes = max_bytes
        self._grace = grace
        self._min_rate = min_rate
        self._deadline = deadline

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        with ExitStack() as room:
            refusal = await self._take_in(request, room)
            return refusal or await handler(request)

    async def _take_in(self, request: web.Request, room: ExitStack) -> web.Response | None:
        """Read the body, which keeps its room as long as the request is in progress; the answer where it is refused."""
        try:
            request[BODY] = await self._read(request, room)
        except _TooLarge:
            return _refusal(413, f"The request body is larger than {self._max_bytes:,} bytes.")
        except _NoRoom:
            request.content.feed_eof()
            return _refusal(503, "Other requests with large bodies are in progress. Try again later.")
        except TimeoutError:
            request.content.feed_eof()  # there is nothing to wait for before the connection is closed
            return _refusal(408, "The request body did not arrive in time.")
        except web.RequestPayloadError:
            request.content.feed_eof()
            return _refusal(400, "The request body does not fit its Content-Encoding or Transfer-Encoding.")
        request_arrived(request)
        return None

    async def _read(self, request: web.Request, room: ExitStack) -> bytes:
        content = request.content
        if (request.content_length or 0) > self._max_bytes:
            raise _TooLarge
        body = bytearray()
        weight = 0
        started = asyncio.get_running_loop().time()
        while not content.at_eof():
            allowed = min(self._grace + content.total_raw_bytes / self._min_rate, self._deadline)
            async with asyncio.timeout_at(started + allowed):
                piece = await content.readany()
            body += piece
            if len(body) > self._max_bytes:
                raise _TooLarge
            weight = self._weigh(weight, piece, room)
        return bytes(body)

    def _weigh(self, before: int, piece: bytes, room: ExitStack) -> int:
        """What the body weighs with this piece. Raises _NoRoom."""
        weight = before + len(piece) + _BYTES_PER_VALUE * sum(map(piece.count, (b",", b"[", b"{")))
        more = weight - max(before, SMALL_BODY_BYTES)
        if more > 0:
            if self._large + more > self._max_large:
                raise _NoRoom
            self._large += more
            room.callback(self._give_back, more)
        return weight

    def _give_back(self, weight: int) -> None:
        self._large -= weight


class _TooLarge(Exception):
    pass


class _NoRoom(Exception):
    pass


def _refusal(status: int, text: str) -> web.Response:
    headers = {"Retry-After": str(_RETRY_SECONDS)} if status == 503 else None
    response = web.json_response({"error": text}, status=status, headers=headers)
    response.force_close()
    return response
