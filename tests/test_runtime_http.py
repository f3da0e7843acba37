"""What is accepted of a runtime as an HTTP server: packing, interim responses, cookies, its metrics."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import tracemalloc
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from sidecar.runtimes.http_session import MAX_INTERIM_RESPONSES, Keepalive
from tests.conftest import Sidecar, StartSidecar, metric_becomes
from tests.fake_kserve import Behaviour, FakeKServe, answer
from tests.pictures import picture
from tests.test_kserve_runtime import binary, failure, retries

JSON = {"Content-Type": "application/json"}
BODY = json.dumps(answer(picture())).encode()
Handle = Callable[[web.Request], Awaitable[web.StreamResponse]]
StartRuntime = Callable[..., Awaitable[Sidecar]]


@pytest.fixture
def beside(start_sidecar: StartSidecar, aiohttp_server: Any) -> StartRuntime:
    """A sidecar beside a runtime that answers one GET route by this handler."""

    async def start(path: str, handle: Handle, **environment: str) -> Sidecar:
        runtime = web.Application()
        runtime.router.add_get(path, handle)
        server = await aiohttp_server(runtime)
        endpoint = f"http://127.0.0.1:{server.port}/v1/models/painter"
        return await start_sidecar(KSERVE_ENDPOINT=endpoint, **environment)

    return start


# --- packed bodies ----------------------------------------------------------------------------------------------------


async def test_a_packed_answer_is_refused_before_it_is_unpacked(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(MAX_IMAGE_BYTES="1MiB")
    await sidecar.made()
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(b"A" * 2**20) for _ in range(128)) + packer.flush()
    kserve.script.append(binary(200, bomb, **{"Content-Encoding": "gzip", **JSON}))
    tracemalloc.start()
    try:
        told = await failure(sidecar)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "Content-Encoding 'gzip'" in told
    assert kserve.headers[-1]["Accept-Encoding"] == "identity"
    assert peak < 8 * 2**20


async def test_a_packed_refusal_keeps_the_meaning_of_its_status(sidecar: Sidecar, kserve: FakeKServe) -> None:
    packed = gzip.compress(b'{"error": "busy"}')
    kserve.script.append(binary(429, packed, **{"Content-Encoding": "gzip", **JSON}))
    await sidecar.made()
    assert await retries(sidecar) == {"busy": 1}


@pytest.mark.parametrize("coding", ["identity", "utf-8", ""])
async def test_an_encoding_that_packs_nothing_is_no_reason_to_lose_an_image(
    coding: str, sidecar: Sidecar, kserve: FakeKServe
) -> None:
    kserve.script.append(binary(200, BODY, **{"Content-Encoding": coding, **JSON}))
    await sidecar.made()


async def test_a_runtime_that_packs_its_readiness_is_told_to_the_operator(beside: StartRuntime) -> None:
    async def ready(_request: web.Request) -> web.Response:
        return web.Response(body=gzip.compress(b'{"ready": true}'), headers={"Content-Encoding": "gzip"})

    sidecar = await beside("/v1/models/painter", ready)
    seen = await sidecar.service.lane(None).runtime.readiness()
    assert (seen.ready, "Content-Encoding 'gzip'" in seen.detail) == (False, True)


# --- interim responses, cookies ---------------------------------------------------------------------------------------


def interim(count: int) -> Behaviour:
    """So many `103 Early Hints`, then an answer."""

    async def behaviour(request: web.Request, _instance: dict[str, Any]) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * count)
        return web.Response(body=BODY, content_type="application/json")

    return behaviour


@pytest.mark.parametrize("count", [1, MAX_INTERIM_RESPONSES])
async def test_a_few_interim_responses_before_an_answer_are_read_past(
    count: int, sidecar: Sidecar, kserve: FakeKServe
) -> None:
    kserve.script.extend([interim(count), interim(count)])
    await sidecar.made()
    await sidecar.made()


@pytest.mark.parametrize("count", [MAX_INTERIM_RESPONSES + 1, 50_000])
async def test_too_many_interim_responses_end_the_predict(count: int, sidecar: Sidecar, kserve: FakeKServe) -> None:
    kserve.script.append(interim(count))
    assert "more than 10 interim responses" in await failure(sidecar)
    await metric_becomes(sidecar, 'imagegen_in_flight{model="painter"}', 0)
    await sidecar.made()
    assert len(kserve.instances) == 2


async def test_no_cookie_of_a_runtime_is_kept(sidecar: Sidecar, kserve: FakeKServe) -> None:
    kserve.script.append(binary(200, BODY, **{"Set-Cookie": "session=1; Path=/", **JSON}))
    await sidecar.made()
    await sidecar.made()
    assert "Cookie" not in kserve.headers[-1]


# --- TCP keep-alive ---------------------------------------------------------------------------------------------------


def test_a_vanished_peer_is_noticed_within_two_minutes() -> None:
    with socket.socket() as sock:
        Keepalive().apply(sock)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == Keepalive().idle
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == Keepalive().limit * 1000
    assert Keepalive().limit <= 120


# --- the runtime's metrics --------------------------------------------------------------------------------------------


def text_of(body: bytes, content_type: str, coding: str = "identity") -> Handle:
    async def handle(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, headers={"Content-Type": content_type, "Content-Encoding": coding})

    return handle


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "text/plain; version=0.0.4; charset=utf-8",
        "text/plain;version=1.0.0;escaping=allow-utf-8",
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
    ],
)
async def test_metrics_of_a_runtime_are_passed_on_as_text_that_no_browser_runs(
    content_type: str, beside: StartRuntime
) -> None:
    sidecar = await beside("/metrics", text_of(b"a 1\n", content_type))
    response, body = await sidecar.get("/metrics/runtime")
    assert (response.status, body, response.headers["Content-Type"]) == (200, b"a 1\n", content_type)
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Content-Security-Policy"] == "default-src 'none'"
    response, body = await sidecar.get("/metrics/runtime", method="HEAD")
    assert (response.status, body) == (200, b"")


@pytest.mark.parametrize(
    ("content_type", "coding"),
    [
        ("text/html", "identity"),
        ("text/html; charset=utf-8", "identity"),
        ("text/plain, text/html", "identity"),
        ("image/svg+xml", "identity"),
        ("text/plain; a=<script>", "identity"),
        ("text/plain;" + "a=b;" * 500, "identity"),
        ("text/plain", "gzip"),
    ],
)
async def test_metrics_that_are_no_plain_text_are_a_502_in_words(
    content_type: str, coding: str, beside: StartRuntime
) -> None:
    page = b"<script>document.title='no'</script>"
    sidecar = await beside("/metrics", text_of(page, content_type, coding))
    response, body = await sidecar.get("/metrics/runtime")
    assert (response.status, response.content_type) == (502, "application/json")
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert b"<script>document" not in body
    assert ("Content-Encoding" if coding == "gzip" else "allowed: text/plain") in json.loads(body)["error"]


async def test_metrics_without_a_type_are_taken_for_plain_text(beside: StartRuntime) -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\na 1\n")
        request.transport.close()
        return web.Response()

    sidecar = await beside("/metrics", handle)
    response, body = await sidecar.get("/metrics/runtime")
    assert (response.status, response.content_type, body) == (200, "text/plain", b"a 1\n")


async def test_metrics_that_break_off_are_not_taken_for_whole(beside: StartRuntime) -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        await response.write(b"a 1\n")
        assert request.transport is not None
        request.transport.abort()
        return response

    sidecar = await beside("/metrics", handle)
    with pytest.raises(aiohttp.ClientError):
        await sidecar.get("/metrics/runtime")
    assert (await sidecar.get("/livez"))[0].status == 200


async def test_sixty_callers_that_do_not_read_cost_little_memory(beside: StartRuntime) -> None:
    sent = asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        for _ in range(15):
            await response.write(b"#" * 2**20)
            sent.set()
        return response

    sidecar = await beside("/metrics", handle)
    host, port = sidecar.url.removeprefix("http://").split(":")
    tracemalloc.start()
    connections = []
    try:
        for _ in range(60):
            sock = socket.create_connection((host, int(port)))
            connections.append(sock)
            sock.sendall(b"GET /metrics/runtime HTTP/1.1\r\nHost: a\r\n\r\n")
        await sent.wait()
        for _ in range(20):
            assert (await sidecar.get("/livez"))[0].status == 200
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        for sock in connections:
            sock.close()
    assert peak < 64 * 2**20  # with the runtime's own buffers, in the same process
