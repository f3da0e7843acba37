"""How many connections there may be, which one is evicted, and that probes get through all the same."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from sidecar.edge.bodies import BodyReader
from sidecar.edge.connections import METRICS_CONNECTIONS, Connection, ConnectionBudget, head_arrived
from sidecar.edge.guard import Handler
from tests.conftest import StartSidecar, raw_tool_call
from tests.fake_kserve import FakeKServe, succeed_when
from tests.test_commands import served, settings

GET = b"GET /now HTTP/1.1\r\nHost: a\r\n\r\n"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Listener:
    """A server with a budget. `/now` answers at once, `/later` when `release` is set, `/stream` until then.

    `/large` has been written when `sent` is true: `size` bytes, more than the sockets take.
    """

    def __init__(self, limit: int) -> None:
        self.budget = ConnectionBudget(limit, "LISTEN_PORT")
        self.release = asyncio.Event()
        self.running = 0
        self.size = 0
        self.sent = False
        self.port = 0
        self.accept: Callable[[], asyncio.BaseProtocol]
        self._writers: list[asyncio.StreamWriter] = []

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Listener]:
        app = web.Application(middlewares=[_tell, BodyReader()])
        app.router.add_get("/now", self._now)
        app.router.add_route("*", "/later", self._later)
        app.router.add_get("/stream", self._stream)
        app.router.add_get("/large", self._large)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        assert runner.server is not None
        self.accept = self.budget.factory(runner.server)
        server = await asyncio.get_running_loop().create_server(self.accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            for writer in self._writers:
                writer.close()
            server.close()
            await runner.cleanup()

    async def connect(self, data: bytes = b"") -> Streams:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers.append(writer)
        writer.write(data)
        return reader, writer

    async def handling(self, count: int) -> None:
        """Wait until so many handlers run."""
        async with asyncio.timeout(30):
            while self.running != count:
                await asyncio.sleep(0.01)

    async def _now(self, _request: web.Request) -> web.Response:
        return web.Response(text="now")

    async def _later(self, _request: web.Request) -> web.Response:
        self.running += 1
        try:
            await self.release.wait()
        finally:
            self.running -= 1
        return web.Response(text="later")

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await self._later(request)
        await response.write(b"data: 2\n\n")
        return response

    async def _large(self, request: web.Request) -> web.StreamResponse:
        """Fill the sockets' buffers, and leave a part of the answer in the transport's."""
        response = web.StreamResponse()
        await response.prepare(request)
        assert request.transport is not None
        while request.transport.get_write_buffer_size() == 0:
            await response.write(bytes(4096))
            self.size += 4096
        self.sent = True
        return response


@web.middleware
async def _tell(request: web.Request, handler: Handler) -> web.StreamResponse:
    head_arrived(request)
    return await handler(request)


async def answer(streams: Streams, data: bytes = b"") -> bytes:
    """What comes back for `data`; nothing when the connection is closed."""
    reader, writer = streams
    writer.write(data)
    try:
        async with asyncio.timeout(20):
            head = await reader.readuntil(b"\r\n\r\n")
            return head + await reader.read(1000)
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


async def is_open(streams: Streams) -> bool:
    return b"200 OK" in await answer(streams, GET)


async def kept_alive(listener: Listener) -> Streams:
    """A connection that has had an answer and waits for its next request."""
    streams = await listener.connect()
    assert await is_open(streams)
    return streams


async def test_the_limit_is_exact_however_many_come_at_once() -> None:
    async with Listener(limit=5).listening() as listener:
        burst = await asyncio.gather(*(listener.connect() for _ in range(40)))
        still_open = await asyncio.gather(*(is_open(streams) for streams in burst))
        assert still_open.count(True) == 5


async def test_the_connection_that_is_idle_longest_goes_first() -> None:
    async with Listener(limit=3).listening() as listener:
        first, second, third = [await kept_alive(listener) for _ in range(3)]
        assert await is_open(first)  # so now the second is idle longest
        fourth = await kept_alive(listener)
        assert [await is_open(streams) for streams in (second, first, third, fourth)] == [False, True, True, True]


@pytest.mark.parametrize(
    "incomplete",
    [
        b"",
        b"GET /now HTTP/1.1\r\nHost: a\r\nX-Long: ",
        b"POST /later HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nabc",
        GET + b"GET /now HTTP/1.1\r\nHost: ",
    ],
    ids=["no head", "part of a head", "part of a body", "part of a second head"],
)
async def test_a_request_that_is_not_complete_keeps_no_place(incomplete: bytes) -> None:
    async with Listener(limit=1).listening() as listener:
        reader, writer = await listener.connect(incomplete)
        if incomplete.startswith(GET):
            await reader.readuntil(b"now")
        for _ in range(20):  # nor do its further bytes; before a head, empty lines are no error (RFC 9112, 2.2)
            writer.write(b"a" if incomplete else b"\r\n")
            await writer.drain()
        newcomer = await listener.connect()
        assert await is_open(newcomer)
        assert b"HTTP" not in await answer((reader, writer))


@pytest.mark.parametrize("path", ["later", "stream"])
async def test_a_request_in_progress_is_never_evicted_and_newcomers_are_refused(path: str) -> None:
    async with Listener(limit=2).listening() as listener:
        at_work = [await listener.connect(f"GET /{path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()) for _ in range(2)]
        await listener.handling(2)
        assert not await is_open(await listener.connect())
        assert listener.running == 2
        listener.release.set()
        for reader, _ in at_work:
            assert await reader.readuntil(b"later" if path == "later" else b"data: 2\n\n")


async def test_a_request_whose_body_has_come_is_in_progress_too() -> None:
    async with Listener(limit=1).listening() as listener:
        reader, writer = await listener.connect(b"POST /later HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab")
        writer.write(b"cd")
        await listener.handling(1)
        assert not await is_open(await listener.connect())
        listener.release.set()
        assert await reader.readuntil(b"later")


async def test_a_request_that_was_read_is_in_progress_in_every_turn_of_the_loop() -> None:
    """Between the head's arrival and the first middleware, too: a client does not repeat a POST that was cut off."""
    evicted = []
    for turns in range(8):
        async with Listener(limit=1).listening() as listener:
            streams = await kept_alive(listener)
            streams[1].write(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n")
            for _ in range(turns):
                await asyncio.sleep(0)
            evicted.append(isinstance(listener.accept(), Connection))
            listener.release.set()
            assert evicted[-1] == (await answer(streams) == b"")
    assert evicted == sorted(evicted, reverse=True)  # as long as nothing was read, and never after that
    assert not evicted[-1]


async def test_who_leaves_makes_room() -> None:
    async with Listener(limit=1).listening() as listener:
        _, writer = await listener.connect(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n")
        await listener.handling(1)
        writer.close()
        await listener.handling(0)
        for _ in range(3):
            streams = await kept_alive(listener)
            streams[1].close()
            await streams[1].wait_closed()


async def test_an_answer_that_is_still_being_sent_is_in_progress() -> None:
    async with Listener(limit=1).listening() as listener:
        reader, _ = await listener.connect(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        async with asyncio.timeout(30):
            while not listener.sent:
                await asyncio.sleep(0.01)
        assert not await is_open(await listener.connect())
        assert len(await reader.readexactly(listener.size)) == listener.size


async def test_a_crowd_at_the_limit_is_one_line_of_the_log() -> None:
    async with Listener(limit=2).listening() as listener:
        with capture_logs() as logs:
            for _ in range(30):
                await kept_alive(listener)
    (line,) = logs
    expected = {"event": "connection limit reached", "log_level": "warning", "port": "LISTEN_PORT", "limit": 2}
    assert expected.items() <= line.items()
    assert line["evicted"] == 1  # the others come with the next line, a minute later


@pytest.mark.parametrize(
    ("soft", "hard", "connections"), [(364, 364, 50), (300, 1064, 400), (1024, 20_000, 1024), (100, 100, 1)]
)
def test_there_are_no_more_connections_than_files_for_them(soft: int, hard: int, connections: int) -> None:
    code = (
        "import resource; from sidecar.edge.connections import allowed_connections;"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard})); print(allowed_connections())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == connections


WITH_FEW_FILES = ("sh", "-c", 'ulimit -n 304 && exec "$@"', "sh")


async def livez(host: str, port: int) -> bool:
    streams = await asyncio.open_connection(host, port)
    try:
        return b" 200 " in await answer(streams, b"GET /livez HTTP/1.0\r\n\r\n")
    finally:
        streams[1].close()


async def test_probes_get_through_when_clients_fill_the_main_port(kserve: FakeKServe, tmp_path: Path) -> None:
    """A generation and nineteen requests that wait for its end are all that 304 files allow: none can be evicted."""
    over = asyncio.Event()
    kserve.script.append(succeed_when(over))
    environment = settings(kserve, tmp_path, METRICS_LISTEN_PORT="0")
    async with served(environment, *WITH_FEW_FILES) as sidecar, aiohttp.ClientSession() as session:
        call = asyncio.create_task(session.post(f"{sidecar.url}/mcp", **raw_tool_call("auto", {"prompt": "a cat"})))
        await kserve.seen(1)
        host, port = sidecar.url.removeprefix("http://").split(":")
        crowd: list[Streams] = []
        async with asyncio.timeout(20):
            while await livez(host, int(port)):  # a probe may evict the one whose request has not come yet
                crowd.append(await asyncio.open_connection(host, int(port)))
                crowd[-1][1].write(b"GET /drained HTTP/1.1\r\nHost: a\r\n\r\n")
        for path in ("/livez", "/readyz", "/startupz", "/metrics"):
            async with session.get(f"{sidecar.metrics_url}{path}") as response:
                assert response.status == 200
        over.set()
        answers = await asyncio.gather(*(answer(streams) for streams in crowd))
        assert sum(b" 200 OK" in got for got in answers) == 19
        for _, writer in crowd:
            writer.close()
        assert "completed" in await (await call).text()


async def test_the_metrics_port_has_a_budget_of_its_own_and_evicts_too(start_sidecar: StartSidecar) -> None:
    sidecar = await start_sidecar(METRICS_LISTEN_PORT="0")
    assert sidecar.metrics_url is not None
    host, port = sidecar.metrics_url.removeprefix("http://").split(":")
    idle = [await asyncio.open_connection(host, int(port)) for _ in range(METRICS_CONNECTIONS + 1)]
    try:
        await sidecar.until_ready()
        assert (await sidecar.get(f"{sidecar.metrics_url}/livez"))[0].status == 200
        assert await answer(idle[0]) == b""
    finally:
        for _, writer in idle:
            writer.close()


async def test_slow_answers_on_the_metrics_port_leave_room_for_probes(
    kserve: FakeKServe, start_sidecar: StartSidecar
) -> None:
    """A runtime that stalls in its metrics, a generation that takes long, and a crowd that asks for either's end."""
    over = asyncio.Event()
    kserve.script.append(succeed_when(over))
    kserve.metrics_stall_until = over
    sidecar = await start_sidecar(METRICS_LISTEN_PORT="0")
    assert sidecar.metrics_url is not None
    host, port = sidecar.metrics_url.removeprefix("http://").split(":")
    generation = asyncio.create_task(sidecar.made())
    await kserve.seen(1)
    crowd: list[Streams] = []
    try:
        for path in (b"/metrics/runtime", b"/drained"):
            for _ in range(METRICS_CONNECTIONS):
                crowd.append(await asyncio.open_connection(host, int(port)))
                crowd[-1][1].write(b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await livez(host, int(port))
        assert b" 503 " in await answer(crowd[-1])
    finally:
        over.set()
        await generation
        for _, writer in crowd:
            writer.close()
