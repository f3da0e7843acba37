"""Images that pass through the sidecar: many at once, slowly, and from a store that gives less than it should."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sidecar.domain import ImageId
from sidecar.errors import StorageFailure
from sidecar.storages import keys
from tests.conftest import StartSidecar
from tests.odd_store import Odd, at, odd, store_of
from tests.storage_contract import HeldClock, bytes_of, put

__all__ = ["odd"]

pytestmark = pytest.mark.real


async def test_less_than_the_whole_image_is_the_store_s_trouble(odd: Odd, tmp_path: Path) -> None:
    async with store_of(at(odd), tmp_path) as store:
        stored = await put(store, HeldClock().now())
        odd.kept = {key: data[:-1] if key.endswith(".png") else data for key, data in odd.kept.items()}
        with pytest.raises(StorageFailure, match="gave less of the image"):
            await bytes_of(store, stored)


async def test_a_connection_that_was_promised_more_than_came_is_not_used_again(
    odd: Odd, start_sidecar: StartSidecar
) -> None:
    sidecar = await start_sidecar(**at(odd), IMAGE_DELIVERY="proxy")
    image = await sidecar.made()
    odd.kept = {key: data[:-1] if key.endswith(".png") else data for key, data in odd.kept.items()}
    reader, writer = await asyncio.open_connection("127.0.0.1", int(sidecar.url.rsplit(":", 1)[1]))
    for _ in range(2):
        writer.write(f"GET /images/{image['image_id']} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    async with asyncio.timeout(10):
        try:
            answered = await reader.read(-1)
        except ConnectionResetError:
            answered = b""
    assert answered.count(b"HTTP/1.1") <= 1
    writer.close()


async def test_however_many_previews_are_wanted_at_once_only_a_few_images_are_in_memory(
    odd: Odd, start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    painter = await start_sidecar(**at(odd), SPOOL_PATH=str(tmp_path / "painter"))
    images = [await painter.made() for _ in range(5)]
    sidecar = await start_sidecar(**at(odd), SPOOL_PATH=str(tmp_path / "gallery"))  # has none of their files at hand
    looked_for = asyncio.Semaphore(0)
    odd.on_get = {keys.thumbnail_key(ImageId(image["image_id"])): looked_for.release for image in images}
    odd.giving.clear()
    previews = [asyncio.create_task(sidecar.get(f"/images/{image['image_id']}/thumbnail")) for image in images]
    for _ in images:
        await looked_for.acquire()
    await sidecar.get("/readyz")
    odd.giving.set()
    assert {response.status for response, _ in await asyncio.gather(*previews)} == {200}
    assert odd.most_read_at_once <= 2
