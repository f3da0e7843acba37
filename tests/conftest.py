"""A running sidecar as production runs it, beside a fake KServe, both on free ports of loopback."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import secrets
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import hypothesis
import pytest
from mcp.client import Client
from yarl import URL

from sidecar.config import read_settings
from sidecar.core.service import ImageService
from sidecar.edge import keys
from sidecar.serving import Running, running
from tests import ceph
from tests.fake_kserve import FakeKServe, succeed_when
from tests.real_parts import require

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("untimed")
# No certificate authorities: loading the machine's takes each client 25 ms.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = str(Path(__file__).parent)
# Tests send these to processes they start, which would inherit that nohup or a shell's background job ignores them.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors, because much of what tests do is wait."""
    return (os.cpu_count() or 1) + 1


TOOL_NAMES = [
    "generate_image",
    "get_generation",
    "cancel_generation",
    "list_generated_images",
    "get_image_metadata",
    "delete_image",
    "list_models",
]
ERAS = ("auto", "legacy")
"""The SDK client's modes: the modern protocol, and the initialize handshake."""


@pytest.fixture
async def kserve(aiohttp_server: Any) -> FakeKServe:
    fake = FakeKServe()
    fake.server = await aiohttp_server(fake.app)
    return fake


class Sidecar:
    """What tests need of a running sidecar."""

    def __init__(self, started: Running, store: Path, session: aiohttp.ClientSession) -> None:
        self.url = started.url
        self.metrics_url = started.metrics_url
        self.app = started.app
        self.store = store
        self.session = session

    @property
    def service(self) -> ImageService:
        return self.app[keys.SERVICE]

    def client(self, era: str = "auto") -> Client:
        return Client(f"{self.url}/mcp", mode=era)

    async def generate(self, era: str = "auto", **arguments: Any) -> Any:
        """One call of generate_image by a client of its own."""
        async with self.client(era) as client:
            return await client.call_tool("generate_image", {"prompt": "a cat", **arguments})

    async def made(self, **arguments: Any) -> dict[str, Any]:
        """The first image of a call that must succeed."""
        result = await self.generate(**{"result": "link", **arguments})
        assert not result.is_error, result.content
        image: dict[str, Any] = result.structured_content["images"][0]
        return image

    async def get(self, path: str, **kwargs: Any) -> tuple[aiohttp.ClientResponse, bytes]:
        url = path if path.startswith("http") else f"{self.url}{path}"
        method = kwargs.pop("method", "GET")
        async with self.session.request(method, URL(url, encoded=True), **kwargs) as response:
            return response, await response.read()

    async def metric(self, line: str) -> float:
        """The value of one sample, such as `imagegen_queue_depth{model="painter"}`."""
        _, body = await self.get("/metrics")
        for text in body.decode().splitlines():
            if text.startswith(f"{line} "):
                return float(text.rsplit(" ", 1)[1])
        raise AssertionError(f"no sample {line}")

    async def until_ready(self) -> None:
        """Wait for /readyz, which looks at the runtime in the background."""
        async with asyncio.timeout(20):
            while (await self.get("/readyz"))[0].status != 200:
                await asyncio.sleep(0.02)

    async def look_around(self) -> None:
        """Look at the store and at each runtime now, as the sidecar does every five seconds."""
        health = self.app[keys.HEALTH]
        await asyncio.gather(health.storage.look(), *(watch.look() for watch in health.runtimes.values()))

    def stored(self) -> list[str]:
        """All files of the store but jobs and the one by which the sidecar tries whether it can write."""
        return [part for part in self._files() if not part.startswith("jobs/")]

    def stored_jobs(self) -> list[str]:
        """The files of jobs, relative to `jobs/`."""
        return [part.removeprefix("jobs/") for part in self._files() if part.startswith("jobs/")]

    def _files(self) -> list[str]:
        parts = [path.relative_to(self.store) for path in self.store.rglob("*") if path.is_file()]
        return sorted(str(part) for part in parts if not part.name.endswith("-probe.part"))


@pytest.fixture
async def never(kserve: FakeKServe) -> AsyncIterator[None]:
    """The runtime does not answer the first call before the test is over."""
    over = asyncio.Event()
    kserve.script.append(succeed_when(over))
    yield
    over.set()


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[ceph.Ceph]:
    """Ceph's object gateway, one for all processes of this test run."""
    require(ceph.available(), "Ceph is not installed (Debian: radosgw, ceph-mon, ceph-osd)")
    base = tmp_path_factory.getbasetemp()
    with ceph.shared((base if worker_id == "master" else base.parent) / "ceph") as started:
        yield started


@pytest.fixture
def s3(gateway: ceph.Ceph, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Settings of a part of a bucket that is this test's own; the credentials are in the environment."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ceph.ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", ceph.SECRET_KEY)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return {
        "STORAGE_BACKEND": "s3",
        "S3_BUCKET": ceph.BUCKET,
        "S3_PREFIX": f"test-{secrets.token_hex(6)}",
        "S3_ENDPOINT_URL": gateway.url,
    }


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    require(importlib.util.find_spec("playwright") is not None, "the package playwright is not installed")
    require(CHROMIUM is not None, "this machine has no Chromium")
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        await chromium.close()


Visit = Callable[..., AbstractAsyncContextManager["Page"]]


@pytest.fixture
def visit(browser: Browser) -> Visit:
    """Look at an address in a window of one's own. Nothing there may fail, be forbidden or open a dialog unasked.

    With `offline` the server may be missed.
    """

    @asynccontextmanager
    async def look(url: str, *, offline: bool = False, **window: Any) -> AsyncIterator[Page]:
        context = await browser.new_context(**window)
        page = await context.new_page()
        page.set_default_timeout(10_000)
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(f"a dialog: {dialog.message}"))
        await page.goto(url)
        yield page
        assert [told for told in wrong if not (offline and "ERR_INTERNET_DISCONNECTED" in told)] == []
        await context.close()

    return look


StartSidecar = Callable[..., Awaitable[Sidecar]]


@pytest.fixture
async def start_sidecar(kserve: FakeKServe, tmp_path: Path) -> AsyncIterator[StartSidecar]:
    """Start sidecars with settings of their own; they stop with the test."""
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())

        async def start(**environment: str) -> Sidecar:
            server = kserve.server
            store = tmp_path / "images"
            given = {
                "LISTEN_PORT": "0",
                "KSERVE_ENDPOINT": f"http://127.0.0.1:{server.port}/v1/models/painter",
                "STORAGE_PATH": str(store),
                **environment,
            }
            started = await stack.enter_async_context(running(read_settings(given)))
            return Sidecar(started, Path(given["STORAGE_PATH"]), session)

        yield start


@pytest.fixture
async def sidecar(start_sidecar: StartSidecar) -> Sidecar:
    return await start_sidecar()


async def metric_becomes(sidecar: Sidecar, line: str, value: float) -> None:
    """Wait until one sample of /metrics has this value."""
    async with asyncio.timeout(30):
        while f"{line} {float(value)}" not in (await sidecar.get("/metrics"))[1].decode().splitlines():
            await asyncio.sleep(0.01)


def raw_tool_call(era: str, arguments: dict[str, Any], headers: dict[str, str] | None = None) -> dict[str, Any]:
    """What `session.post` needs for one self-contained tools/call of generate_image, without the SDK's client."""
    version = "2026-07-28" if era == "auto" else "2025-06-18"
    params: dict[str, Any] = {"name": "generate_image", "arguments": arguments}
    sent = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": version, **(headers or {})}
    if era == "auto":
        about = "io.modelcontextprotocol"
        params["_meta"] = {
            f"{about}/protocolVersion": version,
            f"{about}/clientCapabilities": {},
            f"{about}/clientInfo": {"name": "raw", "version": "1"},
        }
        sent |= {"Mcp-Method": "tools/call", "Mcp-Name": "generate_image"}
    return {"json": {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}, "headers": sent}
