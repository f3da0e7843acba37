"""What is accepted of a runtime as an HTTP server: packing, interim responses, cookies, its metrics."""

from __future__ import annotations

import asyncio
import base64
import gzip
import itertools
import json
import socket
import tracemalloc
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from sidecar.runtimes.http_session import MAX_INTERIM_RESPONSES, Keepalive
from sidecar.runtimes.unpacking import MAX_PIECE_BYTES, Unpacker
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


def gzipped(body: bytes) -> bytes:
    return gzip.compress(body)


def raw_deflated(body: bytes) -> bytes:
    """Deflate data without zlib's header, as some servers send it."""
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(body) + packer.flush()


LARGE = json.dumps(answer(picture(600, 600, noise=True))).encode()


@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        ("gzip", gzipped),
        ("GZIP, identity", gzipped),
        ("x-gzip", lambda body: gzipped(body[:5000]) + gzipped(body[5000:]) + bytes(100)),
        ("deflate", zlib.compress),
        ("deflate", raw_deflated),
        ("gzip", lambda body: gzipped(body)[:-8]),
    ],
    ids=["gzip", "one of two", "two members", "deflate", "raw deflate", "without its checksum"],
)
async def test_an_answer_that_a_gateway_packed_is_unpacked(
    coding: str, pack: Callable[[bytes], bytes], sidecar: Sidecar, kserve: FakeKServe
) -> None:
    """A finished image is not lost because a gateway overlooked `Accept-Encoding: identity`."""
    for body in (BODY, LARGE):
        kserve.script.append(binary(200, pack(body), **{"Content-Encoding": coding, **JSON}))
        image = await sidecar.made()
        _, stored = await sidecar.get(image["url"])
        assert stored == base64.b64decode(json.loads(body)["predictions"][0]["image"]["b64"])
    assert kserve.headers[-1]["Accept-Encoding"] == "identity"


def endless(start: bytes, piece: bytes) -> bytes:
    """128 MiB, packed."""
    packer = zlib.compressobj(wbits=31)
    return packer.compress(start) + b"".join(packer.compress(piece * 2**18) for _ in range(128)) + packer.flush()


BOMBS: dict[str, Callable[[], bytes]] = {
    "an endless image": lambda: endless(b'{"predictions":[{"image":{"b64":"', b"AAAA"),
    "countless values": lambda: endless(b'{"x":[', b"[] ,"),
    "empty members": lambda: gzipped(b"") * 100_000,
}


@pytest.mark.parametrize("name", BOMBS)
async def test_a_packed_bomb_costs_neither_memory_nor_the_turn_of_others(
    name: str, start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(MAX_IMAGE_BYTES="16MiB")
    await sidecar.made()
    kserve.script.append(binary(200, BOMBS[name](), **{"Content-Encoding": "gzip", **JSON}))
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            before = asyncio.get_running_loop().time()
            await asyncio.sleep(0.001)
            longest = max(longest, asyncio.get_running_loop().time() - before)

    ticking = asyncio.create_task(tick())
    tracemalloc.start()
    try:
        await failure(sidecar)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        ticking.cancel()
    assert peak < 12 * 2**20
    assert longest < 1.0  # unpacked at once it takes several seconds


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, gzip", "gzip, br"])
async def test_an_answer_packed_otherwise_is_refused_in_words(
    coding: str, sidecar: Sidecar, kserve: FakeKServe
) -> None:
    kserve.script.append(binary(200, gzipped(BODY), **{"Content-Encoding": coding, **JSON}))
    assert f"Content-Encoding {coding!r}; allowed: none, gzip, deflate" in await failure(sidecar)


@pytest.mark.parametrize("body", [BODY, gzipped(BODY)[:20] + bytes(200), b"\x1f\x8b" + bytes(50)])
async def test_an_answer_that_does_not_fit_its_packing_is_told(
    body: bytes, sidecar: Sidecar, kserve: FakeKServe
) -> None:
    kserve.script.append(binary(200, body, **{"Content-Encoding": "gzip", **JSON}))
    assert "does not fit its Content-Encoding" in await failure(sidecar)


@pytest.mark.parametrize("coding", ["gzip", "br"])
async def test_a_packed_refusal_keeps_the_meaning_of_its_status(
    coding: str, sidecar: Sidecar, kserve: FakeKServe
) -> None:
    packed = gzipped(b'{"error": "busy"}')
    kserve.script.append(binary(429, packed, **{"Content-Encoding": coding, **JSON}))
    await sidecar.made()
    assert await retries(sidecar) == {"busy": 1}


async def test_a_packed_refusal_is_read(sidecar: Sidecar, kserve: FakeKServe) -> None:
    packed = gzipped(b'{"error": "steps must be odd"}')
    kserve.script.append(binary(400, packed, **{"Content-Encoding": "gzip", **JSON}))
    assert "steps must be odd" in await failure(sidecar)


@pytest.mark.parametrize("coding", ["identity", "utf-8", ""])
async def test_an_encoding_that_packs_nothing_is_no_reason_to_lose_an_image(
    coding: str, sidecar: Sidecar, kserve: FakeKServe
) -> None:
    kserve.script.append(binary(200, BODY, **{"Content-Encoding": coding, **JSON}))
    await sidecar.made()


@pytest.mark.parametrize(("coding", "told"), [("gzip", ""), ("br", "Content-Encoding 'br'")])
async def test_a_runtime_that_packs_its_readiness_is_read_or_told_to_the_operator(
    coding: str, told: str, beside: StartRuntime
) -> None:
    async def ready(_request: web.Request) -> web.Response:
        return web.Response(body=gzipped(b'{"ready": true}'), headers={"Content-Encoding": coding})

    sidecar = await beside("/v1/models/painter", ready)
    seen = await sidecar.service.lane(None).runtime.readiness()
    assert (seen.ready, told in seen.detail, bool(seen.detail)) == (not told, True, bool(told))


PACKERS: list[Callable[[bytes], bytes]] = [gzipped, zlib.compress, raw_deflated]


@given(
    st.lists(st.integers(0, 3) | st.integers(-2, 2).map(lambda n: MAX_PIECE_BYTES + n), max_size=3),
    st.sampled_from(PACKERS),
    st.lists(st.integers(0, 5000), max_size=5),
    st.binary(max_size=3),
)
def test_a_body_may_be_unpacked_from_any_pieces(
    sizes: list[int], pack: Callable[[bytes], bytes], places: list[int], rest: bytes
) -> None:
    body = b"".join(bytes([65 + number]) * size for number, size in enumerate(sizes))
    packed = pack(body) + rest.lstrip(b"\x1f")
    bounds = [0, *sorted(place % (len(packed) + 1) for place in places), len(packed)]
    unpacker = Unpacker()
    pieces = [piece for cut in itertools.pairwise(bounds) for piece in unpacker.feed(packed[slice(*cut)])]
    assert (b"".join(pieces) == body, max(map(len, pieces)) <= MAX_PIECE_BYTES) == (True, True)


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
        ("text/plain", "br"),
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
    assert ("Content-Encoding" if coding == "br" else "allowed: text/plain") in json.loads(body)["error"]


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
