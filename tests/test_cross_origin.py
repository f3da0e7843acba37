"""Pages of other origins that call MCP from a browser (CORS)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.conftest import ERAS, Sidecar, StartSidecar, raw_tool_call

if TYPE_CHECKING:
    from playwright.async_api import Browser

CHAT = "https://chat.example.org"
FOREIGN = [
    "https://evil.example.org",
    "https://chat.example.org.evil.org",
    "http://chat.example.org",
    "https://chat.example.org:8443",
    "null",
    "*",
    "",
]
WANTED = "accept,authorization,content-type,mcp-method,mcp-name,mcp-protocol-version,traceparent"


def cors(response: aiohttp.ClientResponse) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("Access-Control-")}


def preflight(origin: str, **more: str) -> dict[str, Any]:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": WANTED}
    return {"method": "OPTIONS", "headers": {"Origin": origin, **asked, **more}}


@pytest.fixture
async def sidecar(start_sidecar: StartSidecar) -> Sidecar:
    """One whose operator allows the pages of a chat, and shows the gallery."""
    return await start_sidecar(ALLOWED_ORIGINS=CHAT, GALLERY="on")


async def test_the_preflight_of_an_allowed_page_is_granted_with_all_that_mcp_sends(sidecar: Sidecar) -> None:
    response, body = await sidecar.get("/mcp", **preflight(CHAT))
    allowed = {name.lower() for name in response.headers["Access-Control-Allow-Headers"].split(", ")}
    assert (response.status, body, response.headers["Vary"]) == (204, b"", "Origin")
    assert cors(response) == {
        "Access-Control-Allow-Origin": CHAT,
        "Access-Control-Allow-Methods": "POST",
        "Access-Control-Allow-Headers": response.headers["Access-Control-Allow-Headers"],
        "Access-Control-Expose-Headers": "Mcp-Session-Id, Retry-After, X-Request-ID",
        "Access-Control-Max-Age": "7200",
    }
    assert allowed >= {*WANTED.split(","), "mcp-session-id", "last-event-id", "tracestate", "x-request-id"}


@pytest.mark.parametrize("era", ERAS)
async def test_an_allowed_page_may_read_what_its_call_is_answered(era: str, sidecar: Sidecar) -> None:
    call = raw_tool_call(era, {"prompt": "a cat", "result": "link"}, {"Origin": CHAT})
    response, body = await sidecar.get("/mcp", method="POST", **call)
    assert (response.status, b"/images/" in body, response.headers["Vary"]) == (200, True, "Origin")
    assert cors(response) == {
        "Access-Control-Allow-Origin": CHAT,
        "Access-Control-Expose-Headers": "Mcp-Session-Id, Retry-After, X-Request-ID",
    }


async def test_an_allowed_page_may_read_that_mcp_is_only_posted(sidecar: Sidecar) -> None:
    response, _ = await sidecar.get("/mcp", headers={"Origin": CHAT})
    assert (response.status, response.headers["Access-Control-Allow-Origin"]) == (405, CHAT)


@pytest.mark.parametrize("origin", FOREIGN)
async def test_a_page_of_elsewhere_is_granted_nothing(origin: str, sidecar: Sidecar) -> None:
    asked, _ = await sidecar.get("/mcp", **preflight(origin))
    call = raw_tool_call("auto", {"prompt": "a cat"}, {"Origin": origin})
    answered, _ = await sidecar.get("/mcp", method="POST", **call)
    assert (asked.status, cors(asked), answered.status, cors(answered)) == (405, {}, 403, {})


async def test_without_allowed_origins_no_page_is_granted_anything(start_sidecar: StartSidecar) -> None:
    sidecar = await start_sidecar()
    response, _ = await sidecar.get("/mcp", **preflight(CHAT))
    assert (response.status, cors(response)) == (405, {})


async def test_an_allowed_page_under_a_foreign_host_is_refused(sidecar: Sidecar) -> None:
    response, _ = await sidecar.get("/mcp", **preflight(CHAT, Host="evil.example.org"))
    assert response.status == 421


async def test_a_caller_that_is_no_page_is_told_nothing_of_it(sidecar: Sidecar) -> None:
    response, _ = await sidecar.get("/mcp", method="POST", **raw_tool_call("auto", {"prompt": "a cat"}))
    assert (response.status, cors(response)) == (200, {})


@pytest.mark.parametrize("path", ["/", "/livez", "/metrics", "/images/" + "0" * 43])
async def test_nothing_but_mcp_is_opened(path: str, sidecar: Sidecar) -> None:
    asked, _ = await sidecar.get(path, **preflight(CHAT))
    read, _ = await sidecar.get(path, headers={"Origin": CHAT})
    assert (asked.status, cors(asked), cors(read)) == (405, {}, {})


@pytest.mark.real
async def test_a_browser_lets_an_allowed_page_call_and_no_other(
    start_sidecar: StartSidecar, aiohttp_server: Any, browser: Browser
) -> None:
    async def page(_request: web.Request) -> web.Response:
        return web.Response(text="<title>A chat</title>", content_type="text/html")

    async def chat() -> TestServer:
        app = web.Application()
        app.router.add_get("/", page)
        started: TestServer = await aiohttp_server(app)
        return started

    allowed, other = await chat(), await chat()
    sidecar = await start_sidecar(ALLOWED_ORIGINS=f"http://127.0.0.1:{allowed.port}")
    call = raw_tool_call("auto", {"prompt": "a cat", "result": "link"}, {"Content-Type": "application/json"})
    script = """async ([url, body, headers]) => {
        try { return await (await fetch(url, {method: "POST", body: JSON.stringify(body), headers})).text() }
        catch (error) { return String(error) }
    }"""
    said = []
    for port in (allowed.port, other.port):
        tab = await browser.new_page()
        await tab.goto(f"http://127.0.0.1:{port}/")
        said.append(await tab.evaluate(script, [f"{sidecar.url}/mcp", call["json"], call["headers"]]))
    assert ('"status":"completed"' in said[0], said[1]) == (True, "TypeError: Failed to fetch")


@pytest.mark.parametrize(
    "origin",
    [
        "tauri://localhost",
        "vscode-webview://1a2b3c",
        "app://obsidian.md",
        "chrome-extension://abcdef",
        "capacitor://localhost",
    ],
)
async def test_a_desktop_application_may_be_allowed(origin: str, start_sidecar: StartSidecar) -> None:
    sidecar = await start_sidecar(ALLOWED_ORIGINS=f"https://chat.example.org, {origin}/")
    granted, _ = await sidecar.get("/mcp/", **preflight(origin))
    assert (granted.status, granted.headers["Access-Control-Allow-Origin"]) == (204, origin)
    response, _ = await sidecar.get(
        "/mcp/", method="POST", **raw_tool_call("auto", {"prompt": "a cat", "result": "link"}, {"Origin": origin})
    )
    assert (response.status, response.headers["Access-Control-Allow-Origin"]) == (200, origin)
    refused, _ = await sidecar.get(
        "/mcp", method="POST", **raw_tool_call("auto", {"prompt": "a cat"}, {"Origin": f"{origin}.evil"})
    )
    assert refused.status == 403
