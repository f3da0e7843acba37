"""A request's body: how slowly it may come, how large it may be, and what is said to one that cannot be decoded."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from sidecar.edge.bodies import BodyReader
from sidecar.edge.connections import ConnectionBudget, head_arrived
from sidecar.edge.guard import Handler
from sidecar.edge.keys import BODY
from tests.conftest import Sidecar

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
DAMAGED = "The request body does not fit its Content-Encoding or Transfer-Encoding."
LATE = "The request body did not arrive in time."


@web.middleware
async def _tell(request: web.Request, handler: Handler) -> web.StreamResponse:
    head_arrived(request)
    return await handler(request)


@asynccontextmanager
async def reading(body_reader: BodyReader) -> AsyncIterator[Streams]:
    """A connection to a server that answers with the body's size. `/ignores` does not look at the body."""

    async def size(request: web.Request) -> web.Response:
        return web.json_response({"size": len(request[BODY])})

    async def ignores(_request: web.Request) -> web.Response:
        return web.json_response({"size": None})

    app = web.Application(middlewares=[_tell, body_reader])
    app.router.add_post("/size", size)
    app.router.add_route("*", "/ignores", ignores)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    assert runner.server is not None
    budget = ConnectionBudget(10, "LISTEN_PORT")
    server = await asyncio.get_running_loop().create_server(budget.factory(runner.server), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
    try:
        yield reader, writer
    finally:
        writer.close()
        server.close()
        await runner.cleanup()


async def answered(streams: Streams) -> tuple[int, dict[str, object]]:
    """The status and the JSON of the next answer."""
    reader, _ = streams
    async with asyncio.timeout(20):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length: ")[1].split("\r\n")[0])
        return int(head.split(" ")[1]), json.loads(await reader.readexactly(length))


async def closed(streams: Streams) -> bool:
    """Whether the server has ended the connection."""
    async with asyncio.timeout(20):
        try:
            return await streams[0].read() == b""
        except ConnectionError:
            return True


def head(path: str = "/size", *lines: str, method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


@pytest.mark.parametrize(("path", "method"), [("/size", "POST"), ("/ignores", "DELETE"), ("/nothing", "PUT")])
async def test_a_body_that_does_not_come_is_a_408_and_ends_the_connection(path: str, method: str) -> None:
    """On every route, also where the handler never reads a body."""
    async with reading(BodyReader(grace=0.2)) as streams:
        streams[1].write(head(path, "Content-Length: 5", method=method) + b"abc")
        assert await answered(streams) == (408, {"error": LATE})
        assert await closed(streams)


async def test_a_body_that_drips_is_cut_as_soon_as_it_falls_behind_the_rate() -> None:
    async with reading(BodyReader(grace=0.2, min_rate=10_000, deadline=60)) as streams:
        streams[1].write(head("/size", "Content-Length: 100000"))

        async def drip() -> None:
            while True:
                streams[1].write(b"a")
                await asyncio.sleep(0.01)

        dripping = asyncio.create_task(drip())
        try:
            assert await answered(streams) == (408, {"error": LATE})
        finally:
            dripping.cancel()


async def test_a_body_that_keeps_to_the_rate_has_more_time_than_the_grace() -> None:
    async with reading(BodyReader(grace=0.2, min_rate=100, deadline=60)) as streams:
        streams[1].write(head("/size", "Content-Length: 2001") + b"a" * 2000)
        with pytest.raises(TimeoutError):  # twice the grace, and no answer yet: 2,000 bytes have earned 20 seconds
            async with asyncio.timeout(0.4):
                await streams[0].read(1)
        streams[1].write(b"a")
        assert await answered(streams) == (200, {"size": 2001})


async def test_the_deadline_holds_whatever_the_rate() -> None:
    async with reading(BodyReader(grace=0.1, min_rate=1, deadline=0.3)) as streams:
        streams[1].write(head("/size", "Content-Length: 5000") + b"a" * 4000)
        assert await answered(streams) == (408, {"error": LATE})


@pytest.mark.parametrize("announced", ["Content-Length: 101", "Transfer-Encoding: chunked"])
async def test_a_body_over_the_limit_is_a_413_and_ends_the_connection(announced: str) -> None:
    chunked = "chunked" in announced
    async with reading(BodyReader(max_bytes=100)) as streams:
        streams[1].write(head("/size", announced) + (b"65\r\n" if chunked else b"") + b"a" * 101)
        if chunked:
            streams[1].write(b"\r\n0\r\n\r\n")
        assert await answered(streams) == (413, {"error": "The request body is larger than 100 bytes."})
        assert await closed(streams)


async def test_the_limit_is_on_what_is_unpacked_and_the_rest_is_not_unpacked() -> None:
    bomb = gzip.compress(b"a" * 50_000_000)
    async with reading(BodyReader(max_bytes=1000)) as streams:
        streams[1].write(head("/size", "Content-Encoding: gzip", f"Content-Length: {len(bomb)}") + bomb)
        assert (await answered(streams))[0] == 413
        assert await closed(streams)


async def test_a_packed_body_is_unpacked() -> None:
    packed = gzip.compress(b"a" * 900)
    async with reading(BodyReader(max_bytes=1000)) as streams:
        streams[1].write(head("/size", "Content-Encoding: gzip", f"Content-Length: {len(packed)}") + packed)
        assert await answered(streams) == (200, {"size": 900})


DEFLATED = zlib.compress(b"{}" * 500)
BROKEN = {
    "no deflate": (("Content-Encoding: deflate", "Content-Length: 5"), (b"abcde",)),
    "no gzip": (("Content-Encoding: gzip", "Content-Length: 5"), (b"abcde",)),
    "cut deflate": (("Content-Encoding: deflate", "Content-Length: 8"), (DEFLATED[:8],)),
    "no gzip in chunks": (("Content-Encoding: gzip", "Transfer-Encoding: chunked"), (b"5\r\nabcde\r\n0\r\n\r\n",)),
    "no size of a chunk": (("Transfer-Encoding: chunked",), (b"zz\r\n{}\r\n0\r\n\r\n",)),
    "no size of a later chunk": (("Transfer-Encoding: chunked",), (b"2\r\n{}\r\n", b"zz\r\n{}\r\n0\r\n\r\n")),
    "more than the chunk": (("Transfer-Encoding: chunked",), (b"2\r\n{}{}{}\r\n0\r\n\r\n",)),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_body_that_cannot_be_decoded_is_a_400_at_once(name: str) -> None:
    lines, pieces = BROKEN[name]
    async with reading(BodyReader(grace=30)) as streams:
        streams[1].write(head("/size", "Expect: 100-continue", *lines))
        await streams[0].readuntil(b"100 Continue\r\n\r\n")  # the head has been read: what follows is the body
        for piece in pieces:
            streams[1].write(piece)
            await streams[1].drain()
        assert await answered(streams) == (400, {"error": DAMAGED})
        assert await closed(streams)


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("path", ["/mcp", "/images/x", "/nothing"])
async def test_the_sidecar_answers_400_to_it_on_any_route(path: str, name: str, sidecar: Sidecar) -> None:
    lines, pieces = BROKEN[name]
    host, port = sidecar.url.removeprefix("http://").split(":")
    streams = await asyncio.open_connection(host, int(port))
    try:
        streams[1].write(head(path, "Content-Type: application/json", *lines) + b"".join(pieces))
        async with asyncio.timeout(20):
            assert b" 400 " in await streams[0].readline()
    finally:
        streams[1].close()
    assert (await sidecar.get("/livez"))[0].status == 200


async def test_requests_behind_one_another_are_answered_in_order() -> None:
    """Pipelining: a second request that is queued is no damage to the first."""
    async with reading(BodyReader(max_bytes=100)) as streams:
        one = head("/size", "Content-Length: 3") + b"abc"
        two = head("/size", "Content-Length: 4") + b"abcd"
        streams[1].write(one + two)
        assert [await answered(streams), await answered(streams)] == [(200, {"size": 3}), (200, {"size": 4})]


class Clients:
    """Each posts on a connection of its own."""

    def __init__(self, of: Streams) -> None:
        self._port = of[1].get_extra_info("peername")[1]
        self._writers: list[asyncio.StreamWriter] = []

    async def post(self, body: bytes, *, length: int | None = None) -> Streams:
        streams = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers.append(streams[1])
        size = len(body) if length is None else length
        streams[1].write(f"POST /size HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n".encode() + body)
        return streams

    async def close(self) -> None:
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)


async def test_large_bodies_of_requests_in_progress_have_a_bound_together_and_small_ones_get_through() -> None:
    """A thousand connections that each hold a quarter of a megabyte would take more than the container has."""
    async with reading(BodyReader(max_large=100_000)) as streams:
        clients = Clients(streams)
        first = await clients.post(b"x" * 90_000, length=100_000)
        async with asyncio.timeout(20):
            while (await answered(await clients.post(b"x" * 60_000)))[0] != 503:  # until the first has been read
                pass
        assert await answered(await clients.post(b"x" * 16_000)) == (200, {"size": 16_000})
        first[1].write(b"x" * 10_000)
        assert await answered(first) == (200, {"size": 100_000})
        assert await answered(await clients.post(b"x" * 60_000)) == (200, {"size": 60_000})
        await clients.close()


async def test_a_body_of_many_small_values_weighs_what_they_take_when_parsed() -> None:
    async with reading(BodyReader(max_large=100_000)) as streams:
        clients = Clients(streams)
        refused = await clients.post(b"[],[]," * 2_000)
        told = "Other requests with large bodies are in progress. Try again later."
        assert await answered(refused) == (503, {"error": told})
        assert await closed(refused)
        await clients.close()
