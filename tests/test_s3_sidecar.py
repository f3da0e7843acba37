"""Whole sidecars on a bucket: one alone, and two that share it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from tests.conftest import Sidecar, StartSidecar
from tests.fake_kserve import FakeKServe, succeed
from tests.pictures import picture


@pytest.fixture
async def sidecar(start_sidecar: StartSidecar, s3: dict[str, str]) -> Sidecar:
    return await start_sidecar(**s3)


async def test_an_image_goes_its_whole_way_through_the_bucket(sidecar: Sidecar, kserve: FakeKServe) -> None:
    data = picture(256, 256, noise=True)
    kserve.script.append(succeed(data))
    image = await sidecar.made()
    response, body = await sidecar.get(image["url"])
    assert (response.status, body, [step.status for step in response.history]) == (200, data, [302])
    response, small = await sidecar.get(image["thumbnail_url"])
    assert (response.status, response.headers["Content-Type"], small[8:12]) == (200, "image/webp", b"WEBP")
    full = await sidecar.generate(result="full", width=64, height=64)
    assert [block.type for block in full.content] == ["text", "resource_link", "image"]
    assert not [name for name in sidecar.stored() if not name.startswith("staging/")]


# --- what it costs ----------------------------------------------------------------------------------------------------


@dataclass
class Toll:
    """A way to the store that notes who passes, and can be told to answer something itself."""

    store: str
    passed: list[tuple[str, str]] = field(default_factory=list)
    instead: list[web.Response] = field(default_factory=list)

    def counts(self, *methods: str) -> list[int]:
        return [sum(method == one for one, _ in self.passed) for method in methods]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if "list-type" in request.query:
            self.passed.append(("LIST", request.query["prefix"]))
        else:
            self.passed.append((request.method, request.path))
        if self.instead and "probe/" not in request.path:
            return self.instead.pop(0)
        url = URL(self.store + request.raw_path, encoded=True)
        headers = {name: value for name, value in request.headers.items() if name != "Transfer-Encoding"}
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(request.method, url, headers=headers, data=await request.read()) as answer,
        ):
            body = await answer.read()
            kept = {name: value for name, value in answer.headers.items() if name not in ("Transfer-Encoding", "Date")}
            return web.Response(status=answer.status, headers=kept, body=None if request.method == "HEAD" else body)


@asynccontextmanager
async def toll(aiohttp_server: Any, s3: dict[str, str]) -> AsyncIterator[tuple[Toll, dict[str, str]]]:
    on_the_way = Toll(s3["S3_ENDPOINT_URL"])
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", on_the_way.handle)
    server = await aiohttp_server(app)
    yield on_the_way, {**s3, "S3_ENDPOINT_URL": f"http://127.0.0.1:{server.port}"}


async def settled(on_the_way: Toll) -> None:
    """Wait until what a sidecar does on starting is over: its first pass ends with a batch of deletions."""

    def over() -> bool:
        looks = [path for kind, path in on_the_way.passed if kind == "LIST" and path.endswith("jobs/open/")]
        return len(looks) == 2 and on_the_way.counts("POST") == [1]

    async with asyncio.timeout(20):
        while not over():
            await asyncio.sleep(0.02)
    on_the_way.passed.clear()


async def test_a_generation_that_starts_at_once_costs_five_puts_and_reads_nothing(
    start_sidecar: StartSidecar, s3: dict[str, str], aiohttp_server: Any
) -> None:
    async with toll(aiohttp_server, s3) as (on_the_way, settings):
        sidecar = await start_sidecar(**settings)
        await settled(on_the_way)
        await sidecar.made()
        await sidecar.service.drained()
        on_the_way.passed = [(kind, path) for kind, path in on_the_way.passed if "probe/" not in path]
        assert on_the_way.counts("PUT", "LIST", "GET", "HEAD") == [5, 0, 0, 0]
