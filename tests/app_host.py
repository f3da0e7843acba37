"""A host with MCP Apps for tests: a real browser with the app's page in its frame, and a server beside the sidecar."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from mcp.shared.exceptions import MCPError

from sidecar.edge.mcp_app.app import APP_URI
from tests.conftest import Sidecar
from tests.real_parts import require

HAS_PLAYWRIGHT = importlib.util.find_spec("playwright") is not None
if HAS_PLAYWRIGHT:
    from playwright.async_api import BrowserContext, FrameLocator, Page, async_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-first-run"),
)
HERE = Path(__file__).with_name("mcp_app_host")

Answer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The debugging address of one browser for all tests of this file; each has a context of its own in it."""
    require(HAS_PLAYWRIGHT, "the package playwright is not installed")
    require(CHROMIUM is not None, "Chromium is not installed")
    profile = tmp_path_factory.mktemp("chromium")
    command = [str(CHROMIUM), *QUIET, "--headless=new", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        try:
            yield next(line.split()[-1] for line in process.stderr if line.startswith("DevTools listening on "))
        finally:
            process.terminate()
            process.communicate()


@pytest.fixture
async def context(chromium: str) -> AsyncIterator[BrowserContext]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.connect_over_cdp(chromium)
        context = await browser.new_context(viewport={"width": 700, "height": 900})
        try:
            yield context
        finally:
            await context.close()


class Host:
    """A chat application: one browser page with the app's frame in it, and a server that talks to the sidecar.

    `scripted` holds answers for tools that the sidecar is not asked for; every other call goes to it, over MCP.
    """

    def __init__(self, sidecar: Sidecar, page: Page) -> None:
        self.sidecar = sidecar
        self.page = page
        self.url = ""
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.scripted: dict[str, deque[Answer]] = {}
        self.requests: list[str] = []
        self.changed: dict[str, Any] = {}
        page.on("request", lambda request: self.requests.append(request.url))
        self.app = web.Application()
        self.app.router.add_get("/", self._file)
        self.app.router.add_get("/host.js", self._file)
        self.app.router.add_get("/page", self._page)
        self.app.router.add_post("/call", self._call)

    @property
    def view(self) -> FrameLocator:
        return self.page.frame_locator("iframe")

    @property
    def picture(self) -> Any:
        return self.view.locator("#frame img")

    async def open(self, **options: Any) -> None:
        """Show the app's page; it is initialized when this returns."""
        await self.page.goto(self.url)
        await self.page.evaluate("options => host.open(options)", options)

    async def model_calls(self, **arguments: Any) -> None:
        """A call of generate_image by the model, as the page sees it."""
        given = {"prompt": "a lighthouse in fog", "seed": 7, **arguments}
        await self.page.evaluate("given => host.modelCalls('generate_image', given)", given)

    async def notify(self, method: str, params: dict[str, Any]) -> None:
        await self.page.evaluate("([method, params]) => host.notify(method, params)", [method, params])

    async def result(self, structured: dict[str, Any], **more: Any) -> None:
        await self.notify("ui/notifications/tool-result", {"content": [], "structuredContent": structured, **more})

    async def heard(self, method: str) -> list[dict[str, Any]]:
        said: list[dict[str, Any]] = await self.page.evaluate("host.heard")
        return [message["params"] for message in said if message.get("method") == method]

    def answers(self, tool: str, *results: dict[str, Any]) -> None:
        self.scripted.setdefault(tool, deque()).extend(_at_once(result) for result in results)

    async def _file(self, request: web.Request) -> web.FileResponse:
        return web.FileResponse(HERE / (request.path.strip("/") or "host.html"))

    async def _page(self, _request: web.Request) -> web.Response:
        async with self.sidecar.client() as client:
            (page,) = (await client.read_resource(APP_URI)).contents
        ui = {**(page.meta or {})["ui"], **self.changed}
        return web.json_response({"text": getattr(page, "text", ""), "ui": ui})

    async def _call(self, request: web.Request) -> web.Response:
        asked = json.loads(await request.text())
        name, arguments = asked["name"], asked["arguments"]
        self.calls.append((name, arguments))
        if script := self.scripted.get(name):
            return web.json_response(await script.popleft()(arguments))
        async with self.sidecar.client() as client:
            try:
                result = await client.call_tool(name, arguments)
            except MCPError as error:
                return web.json_response({"error": {"code": error.error.code, "message": error.error.message}})
        return web.json_response({"result": result.model_dump(mode="json", by_alias=True, exclude_none=True)})


def _at_once(result: dict[str, Any]) -> Answer:
    async def answer(_arguments: dict[str, Any]) -> dict[str, Any]:
        return result

    return answer


@pytest.fixture
async def host(sidecar: Sidecar, context: BrowserContext, aiohttp_server: Any) -> Host:
    return await a_host(sidecar, context, aiohttp_server)


async def a_host(sidecar: Sidecar, context: BrowserContext, aiohttp_server: Any) -> Host:
    host = Host(sidecar, await context.new_page())
    server = await aiohttp_server(host.app)
    host.url = str(server.make_url("/"))
    return host


def job(status: str, **more: Any) -> dict[str, Any]:
    structured = {"status": status, "job_id": "job-1", "images": [], "message": None, **more}
    return {"result": {"content": [], "structuredContent": structured, "isError": status == "failed"}}


async def parameters(host: Host) -> dict[str, str]:
    names = await host.view.locator("#parameters dt").all_inner_texts()
    values = await host.view.locator("#parameters dd").all_inner_texts()
    return dict(zip(names, values, strict=True))
