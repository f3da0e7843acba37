"""Who may talk to the server."""

from __future__ import annotations

import asyncio

import pytest

from tests.conftest import ERAS, Sidecar, StartSidecar, raw_tool_call

SOME_IMAGE = "/images/" + "0" * 43


async def call(sidecar: Sidecar, era: str = "auto", **headers: str) -> tuple[int, str]:
    """One tools/call with these headers; status and body."""
    request = raw_tool_call(era, {"prompt": "a cat", "result": "link"}, headers)
    response, body = await sidecar.get("/mcp", method="POST", **request)
    return response.status, body.decode()


@pytest.mark.parametrize("era", ERAS)
async def test_a_host_of_elsewhere_is_refused_and_told_how_its_operator_allows_it(era: str, sidecar: Sidecar) -> None:
    status, body = await call(sidecar, era, Host="evil.example.org")
    assert status == 421
    assert "evil.example.org" in body
    assert "ALLOWED_HOSTS" in body


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST"])
async def test_loopback_is_answered_with_any_port(host: str, sidecar: Sidecar) -> None:
    assert (await call(sidecar, Host=host))[0] == 200


@pytest.mark.parametrize(
    ("allowed", "host", "status"),
    [
        ("images.chat.svc", "images.chat.svc:8000", 200),
        ("images.chat.svc:8000", "images.chat.svc:8000", 200),
        ("images.chat.svc:8000", "images.chat.svc:9000", 421),
        ("a, images.chat.svc", "IMAGES.chat.svc", 200),
        ("images.chat.svc", "images.chat.svc.evil.org", 421),
        ("images.chat.svc", "evil.org:images.chat.svc", 421),
        ("*", "anything", 200),
    ],
)
async def test_an_operator_allows_hosts(allowed: str, host: str, status: int, start_sidecar: StartSidecar) -> None:
    sidecar = await start_sidecar(ALLOWED_HOSTS=allowed)
    assert (await call(sidecar, Host=host))[0] == status


async def test_the_public_address_is_answered(start_sidecar: StartSidecar) -> None:
    sidecar = await start_sidecar(PUBLIC_BASE_URL="https://img.example.org")
    assert (await call(sidecar, Host="img.example.org", Origin="https://img.example.org"))[0] == 200


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz", "/drained", "/metrics", SOME_IMAGE])
async def test_probes_metrics_and_images_are_open_to_any_host(path: str, sidecar: Sidecar) -> None:
    response, _ = await sidecar.get(path, headers={"Host": "10.1.2.3:8000"})
    assert response.status in (200, 503, 404)
    assert response.status != 421


@pytest.mark.parametrize("path", ["/livez", "/drained", "/metrics", SOME_IMAGE])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_what_is_open_to_any_host_may_only_be_read(method: str, path: str, sidecar: Sidecar) -> None:
    response, _ = await sidecar.get(path, method=method, headers={"Host": "10.1.2.3:8000"})
    assert response.status == 421


@pytest.mark.parametrize("path", ["/", "/mcp", "/nothing", "/imagesx", "/images"])
async def test_everything_else_is_not(path: str, sidecar: Sidecar) -> None:
    assert (await sidecar.get(path, headers={"Host": "10.1.2.3:8000"}))[0].status == 421


@pytest.mark.parametrize("origin", ["https://evil.example.org", "null", "http://127.0.0.1.evil.org", "http://[", ""])
async def test_a_page_of_elsewhere_may_not_act(origin: str, sidecar: Sidecar) -> None:
    status, body = await call(sidecar, Origin=origin)
    assert (status, "ALLOWED_ORIGINS" in body) == (403, True)


async def test_our_own_page_and_allowed_ones_may_act(start_sidecar: StartSidecar) -> None:
    sidecar = await start_sidecar(ALLOWED_ORIGINS="https://chat.example.org")
    assert (await call(sidecar, Origin=sidecar.url))[0] == 200
    assert (await call(sidecar, Origin="https://chat.example.org"))[0] == 200


async def test_a_name_server_that_points_elsewhere_here_gains_nothing(sidecar: Sidecar) -> None:
    assert (await call(sidecar, Host="evil.example.org", Origin="http://evil.example.org"))[0] == 421


async def raw(sidecar: Sidecar, data: bytes) -> bytes:
    """What the server says to these bytes before it closes or falls silent."""
    host, port = sidecar.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(data)
        async with asyncio.timeout(30):
            return await reader.read(2000)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_a_request_without_a_host_is_refused(sidecar: Sidecar) -> None:
    assert b" 421 " in await raw(sidecar, b"POST /mcp HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}")


@pytest.mark.parametrize(
    "data",
    [
        b"GET /livez HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X%d: a\r\n" % n for n in range(5000)) + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(100),
        b"GET /livez HTTP/9.9\r\n\r\n",
        b"BREW /livez HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
async def test_requests_that_are_none_are_refused_and_the_server_lives(data: bytes, sidecar: Sidecar) -> None:
    said = await raw(sidecar, data)
    assert said == b"" or said.split(b" ")[1][:1] == b"4"
    assert b"Traceback" not in said
    assert (await sidecar.get("/livez"))[0].status == 200
