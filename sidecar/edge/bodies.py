"""A request's body is read in one place, before any handler runs: bounded in size, time and rate.

So no handler waits for a slow client, and when a handler runs its request is complete.
"""

from __future__ import annotations

import asyncio

from aiohttp import web

from sidecar.edge.connections import request_arrived
from sidecar.edge.guard import Handler
from sidecar.edge.keys import BODY

MAX_BODY_BYTES = 256 * 1024
GRACE_SECONDS = 10.0
MIN_BYTES_PER_SECOND = 1024
DEADLINE_SECONDS = 60.0


class BodyReader:
    """An aiohttp middleware that puts the whole body into `request[BODY]`, decoded as its Content-Encoding says.

    A body has `grace` seconds, and a second more for each `min_rate` bytes that have arrived, up to `deadline` seconds
    in all. Answers 400 to a body that cannot be decoded, 408 to one that comes too slowly, 413 to one of more than
    `max_bytes` (decoded); each ends its connection (issue 13).
    """

    __middleware_version__ = 1

    def __init__(
        self,
        *,
        max_bytes: int = MAX_BODY_BYTES,
        grace: float = GRACE_SECONDS,
        min_rate: int = MIN_BYTES_PER_SECOND,
        deadline: float = DEADLINE_SECONDS,
    ) -> None:
        self._max_bytes = max_bytes
        self._grace = grace
        self._min_rate = min_rate
        self._deadline = deadline

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            request[BODY] = await self._read(request)
        except _TooLarge:
            return _refusal(413, f"The request body is larger than {self._max_bytes:,} bytes.")
        except TimeoutError:
            request.content.feed_eof()  # there is nothing to wait for before the connection is closed
            return _refusal(408, "The request body did not arrive in time.")
        except web.RequestPayloadError:
            request.content.feed_eof()
            return _refusal(400, "The request body does not fit its Content-Encoding or Transfer-Encoding.")
        request_arrived(request)
        return await handler(request)

    async def _read(self, request: web.Request) -> bytes:
        content = request.content
        if (request.content_length or 0) > self._max_bytes:
            raise _TooLarge
        body = bytearray()
        started = asyncio.get_running_loop().time()
        while not content.at_eof():
            allowed = min(self._grace + content.total_raw_bytes / self._min_rate, self._deadline)
            async with asyncio.timeout_at(started + allowed):
                body += await content.readany()
            if len(body) > self._max_bytes:
                raise _TooLarge
        return bytes(body)


class _TooLarge(Exception):
    pass


def _refusal(status: int, text: str) -> web.Response:
    response = web.json_response({"error": text}, status=status)
    response.force_close()
    return response
