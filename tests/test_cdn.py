"""A real nginx with a cache before the sidecar, as a CDN at PUBLIC_BASE_URL would be."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.conftest import Sidecar, StartSidecar
from tests.real_parts import require

pytestmark = pytest.mark.real

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
SERVED = 'imagegen_http_requests_total{method="GET",route="/images/{image_id}",status="200"}'


@pytest.fixture
def address() -> str:
    """Where the cache will listen: it must be known before the sidecar starts."""
    require(NGINX is not None, "nginx is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@asynccontextmanager
async def cache(address: str, sidecar: Sidecar, root: Path) -> AsyncIterator[None]:
    """nginx at `address`, keeping what the sidecar says may be kept."""
    user = "user root;" if os.getuid() == 0 else ""
    configuration = root / "nginx.conf"
    configuration.write_text(
        f"{user} worker_processes 1; daemon off; pid {root}/nginx.pid; error_log {root}/nginx.log;"
        f"events {{}} http {{ access_log off; client_body_temp_path {root}/body; proxy_temp_path {root}/temp;"
        f"proxy_cache_path {root}/cache keys_zone=images:1m;"
        f"server {{ listen {address}; location / {{ proxy_pass {sidecar.url}; proxy_cache images;"
        f"proxy_cache_key $uri; add_header X-Cache $upstream_cache_status always; }} }} }}"
    )
    process = await asyncio.create_subprocess_exec(
        str(NGINX), "-e", str(root / "nginx.log"), "-c", str(configuration), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await _listening(address)
        yield
    finally:
        process.terminate()
        await process.wait()


async def _listening(address: str) -> None:
    host, port = address.split(":")
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return


async def test_a_cdn_keeps_images_and_serves_parts_of_them_itself(
    address: str, start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    sidecar = await start_sidecar(PUBLIC_BASE_URL=f"http://{address}")
    async with cache(address, sidecar, tmp_path):
        image = await sidecar.made()
        assert image["url"].startswith(f"http://{address}/images/")
        first, whole = await sidecar.get(image["url"])
        second, again = await sidecar.get(image["url"])
        part, some = await sidecar.get(image["url"], headers={"Range": "bytes=2-5"})
        known, nothing = await sidecar.get(image["url"], headers={"If-None-Match": first.headers["ETag"]})
    assert [answer.headers["X-Cache"] for answer in (first, second, part, known)] == ["MISS", "HIT", "HIT", "HIT"]
    assert (len(whole), again, some, nothing) == (image["size_bytes"], whole, whole[2:6], b"")
    assert (part.status, part.headers["Content-Range"]) == (206, f"bytes 2-5/{len(whole)}")
    assert (known.status, await sidecar.metric(SERVED)) == (304, 1)


async def test_a_cdn_serves_no_image_for_longer_than_it_lives(
    address: str, start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    sidecar = await start_sidecar(PUBLIC_BASE_URL=f"http://{address}", IMAGE_TTL="3s")
    async with cache(address, sidecar, tmp_path):
        image = await sidecar.made()
        expires = datetime.fromisoformat(image["expires_at"])
        async with asyncio.timeout(20):
            while (await sidecar.get(image["url"]))[0].status == 200:
                last = datetime.now(UTC)
                await asyncio.sleep(0.1)
    assert (last - expires).total_seconds() < 1
