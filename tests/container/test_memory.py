"""Answers that take more memory or time than they should, under the memory limit that the manifests set (issue 13)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from mcp.client import Client

from tests.container.containers import Container, Store, locked_up
from tests.fake_kserve import Behaviour, FakeKServe, succeed
from tests.pictures import jpeg_of_scans, picture
from tests.test_thumbnails import png_of_zeros

pytestmark = pytest.mark.container

MEMORY = 384 * 2**20
UNANSWERED_SECONDS = 5.0
"""A probe may be this late on a busy machine; the kubelet's are given up after one to ten."""
STOPPING_SECONDS = 15.0
"""Five of them the sidecar goes on listening, because a Service still sends it requests."""


def countless_values(size: int) -> Behaviour:
    """A JSON answer of about `size` bytes, each few of them a value."""
    piece = b"[]," * 350_000

    async def behaviour(request: web.Request, _instance: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        try:
            await response.write(b'{"x":[')
            for _ in range(size // len(piece)):
                await response.write(piece)
            await response.write(b'0],"predictions":[]}')
        except ConnectionError:  # it was refused as it came
            pass
        return response

    return behaviour


@asynccontextmanager
async def probed(container: Container, session: aiohttp.ClientSession) -> AsyncIterator[None]:
    """Meanwhile /livez is asked all the time, and answers."""

    latest = 0.0

    async def ask() -> None:
        nonlocal latest
        while True:
            began = time.monotonic()
            async with session.get(f"{container.url}/livez") as response:
                assert response.status == 200
            latest = max(latest, time.monotonic() - began)
            await asyncio.sleep(0.02)

    asking = asyncio.create_task(ask())
    yield
    assert not asking.done()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert 0 < latest < UNANSWERED_SECONDS


async def generated(container: Container) -> Any:
    async with Client(f"{container.url}/mcp") as client:
        return await client.call_tool("generate_image", {"prompt": "a cat", "result": "thumbnail"})


async def got(session: aiohttp.ClientSession, url: str) -> tuple[int, bytes]:
    async with session.get(url) as response:
        return response.status, await response.read()


async def test_no_answer_of_a_runtime_ends_a_container_of_the_manifests_memory(
    store: Store, image: str, kserve: FakeKServe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint = f"http://127.0.0.1:{kserve.server.port}/v1/models/painter"
    huge = await asyncio.to_thread(png_of_zeros, 8192, 8192, 6)
    large = await asyncio.to_thread(png_of_zeros, 4096, 4096, 6)
    with locked_up(store, image, tmp_path / "images", MEMORY, {"KSERVE_ENDPOINT": endpoint}) as container:
        async with aiohttp.ClientSession() as session:
            await container.until_ready(session)
            async with probed(container, session):
                kserve.script.append(countless_values(84_000_000))
                assert "of JSON besides its image" in (await generated(container)).content[0].text
                kserve.script.append(succeed(jpeg_of_scans(4096, 9_000)))
                assert "more than 100 scans" in (await generated(container)).content[0].text
                kserve.script.append(succeed(huge))
                stored = (await generated(container)).structured_content
            assert "8192×8192 pixels need 256 MiB" in stored["message"]
            url = stored["images"][0]["thumbnail_url"]
            assert (await got(session, url))[0] == 422
            assert await got(session, stored["images"][0]["url"]) == (200, huge)

            container.restart()
            await container.until_ready(session)
            assert [(await got(session, url))[0] for _ in range(3)] == [422] * 3
            for data in (large, picture(512, 512, noise=True)):
                kserve.script.append(succeed(data))
                result = await generated(container)
                assert [block.type for block in result.content if block.type == "image"] == ["image"]
        with capsys.disabled():
            sys.stdout.write(f"\nthe server's peak under a limit of 384 MiB: {container.peak() / 1e6:.0f} MB\n")
        assert container.memory_kills() == 0
        state = container.stop()
        assert (state["ExitCode"], state["OOMKilled"]) == (0, False)


def put_in_place(images: Path, jpeg: bytes) -> None:
    """Make the only stored image this one, which an older release took."""
    (thumbnail,) = images.glob("images/*/*.thumbnail.webp")
    (file,) = images.glob("images/*/*.jpg")
    (record,) = images.glob("records/*/*/*.json")
    thumbnail.unlink()
    file.write_bytes(jpeg)
    stored = json.loads(record.read_text())
    assert {"sha256", "size_bytes"} <= stored.keys()
    record.write_text(json.dumps({**stored, "sha256": hashlib.sha256(jpeg).hexdigest(), "size_bytes": len(jpeg)}))


async def test_a_decode_under_way_does_not_delay_the_end(
    store: Store, image: str, kserve: FakeKServe, tmp_path: Path
) -> None:
    """A volume may hold pictures that are refused today; 9,000 scans took 25 of the 30 seconds that a pod has."""
    endpoint = f"http://127.0.0.1:{kserve.server.port}/v1/models/painter"
    with locked_up(store, image, tmp_path / "images", MEMORY, {"KSERVE_ENDPOINT": endpoint}) as container:
        async with aiohttp.ClientSession() as session:
            await container.until_ready(session)
            kserve.script.append(succeed(jpeg_of_scans(64, 80)))
            stored = (await generated(container)).structured_content["images"][0]
            put_in_place(tmp_path / "images", jpeg_of_scans(4096, 9_000))
            container.restart()
            await container.until_ready(session)
            asking = asyncio.create_task(got(session, stored["thumbnail_url"]))
            async with asyncio.timeout(30):
                while "sidecar.imaging.worker" not in container.processes():
                    await asyncio.sleep(0.05)
            began = time.monotonic()
            state = await asyncio.to_thread(container.stop)
            assert time.monotonic() - began < STOPPING_SECONDS
            assert (state["ExitCode"], state["OOMKilled"]) == (0, False)
            await asyncio.gather(asking, return_exceptions=True)
