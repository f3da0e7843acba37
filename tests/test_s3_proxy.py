"""Images that pass through the sidecar: many at once, slowly, and from a store that gives less than it should."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import socket
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from sidecar.domain import ImageId
from sidecar.errors import ImageDamaged
from sidecar.ports import SystemClock
from sidecar.storages import keys
from sidecar.storages.s3 import S3Storage
from sidecar.storages.s3_download import SharedMemory
from tests.conftest import Sidecar, StartSidecar
from tests.odd_store import Odd, at, odd, store_of
from tests.storage_contract import PNG, HeldClock, bytes_of, put

__all__ = ["odd"]

pytestmark = pytest.mark.real


def cut_short(odd: Odd, size: int) -> None:
    """From now on the store has only the beginning of every image."""
    odd.kept = {key: data[:size] if key.endswith(".png") else data for key, data in odd.kept.items()}


async def test_less_than_the_whole_image_is_damage(odd: Odd, tmp_path: Path) -> None:
    async with store_of(at(odd), tmp_path) as store:
        stored = await put(store, HeldClock().now())
        cut_short(odd, len(PNG) - 1)
        with pytest.raises(ImageDamaged, match="damaged") as told:
            await bytes_of(store, stored)
        assert "gave less of the image" in told.value.detail


async def test_a_connection_that_was_promised_more_than_came_is_not_used_again(
    odd: Odd, start_sidecar: StartSidecar
) -> None:
    sidecar = await start_sidecar(**at(odd), IMAGE_DELIVERY="proxy")
    image = (await put(storage_of(sidecar), SystemClock().now(), data=os.urandom(LARGE))).record.image_id
    reader, writer = await slowly(sidecar, f"/images/{image}", times=2)
    assert (await head_of(reader)).startswith(b"HTTP/1.1 200")
    cut_short(odd, 1)
    async with asyncio.timeout(20):
        try:
            answered = await reader.read(-1)
        except ConnectionResetError:
            answered = b""
    assert len(answered) < LARGE
    assert b"HTTP/1.1" not in answered
    writer.close()


LARGE = 12 * 1024 * 1024
"""More than the sockets between a slow reader and the sidecar take in."""


def storage_of(sidecar: Sidecar) -> S3Storage:
    storage = sidecar.service._storage
    assert isinstance(storage, S3Storage)
    return storage


async def slowly(sidecar: Sidecar, path: str, *, times: int = 1) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Ask for something and take in little of it."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", int(sidecar.url.rsplit(":", 1)[1])))
    reader, writer = await asyncio.open_connection(sock=sock)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * times)
    return reader, writer


async def head_of(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(20):
        return await reader.readuntil(b"\r\n\r\n")


async def test_slow_readers_keep_nobody_else_from_their_image_and_get_theirs_whole(
    s3: dict[str, str], start_sidecar: StartSidecar
) -> None:
    sidecar = await start_sidecar(**s3, IMAGE_DELIVERY="proxy", S3_POOL_SIZE="2")
    data = os.urandom(LARGE)
    image = (await put(storage_of(sidecar), SystemClock().now(), data=data)).record.image_id
    slow = [await slowly(sidecar, f"/images/{image}") for _ in range(6)]
    heads = [await head_of(reader) for reader, _ in slow]
    assert [head.split(b" ")[1] for head in heads] == [b"200"] * 6
    other = await sidecar.made()
    response, body = await sidecar.get(f"/images/{other['image_id']}")
    assert (response.status, len(body)) == (200, other["size_bytes"])
    for reader, writer in slow:
        async with asyncio.timeout(30):
            assert hashlib.sha256(await reader.readexactly(LARGE)).digest() == hashlib.sha256(data).digest()
        writer.close()


async def test_a_part_of_a_large_image_is_the_part_that_was_asked_for(
    s3: dict[str, str], start_sidecar: StartSidecar
) -> None:
    sidecar = await start_sidecar(**s3, IMAGE_DELIVERY="proxy")
    data = os.urandom(LARGE)
    image = (await put(storage_of(sidecar), SystemClock().now(), data=data)).record.image_id
    for first, last in ((0, LARGE - 1), (4 * 2**20 - 1, 4 * 2**20), (1, LARGE - 2), (LARGE - 1, LARGE - 1)):
        response, body = await sidecar.get(f"/images/{image}", headers={"Range": f"bytes={first}-{last}"})
        assert (response.status, body == data[first : last + 1]) == (206, True)


async def test_a_store_that_breaks_off_is_asked_for_the_same_part_once_more(
    odd: Odd, start_sidecar: StartSidecar
) -> None:
    sidecar = await start_sidecar(**at(odd), IMAGE_DELIVERY="proxy")
    image = await sidecar.made()
    odd.cut_off = 1
    response, body = await sidecar.get(f"/images/{image['image_id']}")
    assert (response.status, len(body), odd.cut_off) == (200, image["size_bytes"], 0)
    odd.cut_off = 2
    assert (await sidecar.get(f"/images/{image['image_id']}"))[0].status == 503


@pytest.mark.parametrize("what", ["", "/thumbnail"])
async def test_an_image_that_is_not_what_its_digest_says_is_not_given_out(
    what: str, odd: Odd, start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    painter = await start_sidecar(**at(odd), SPOOL_PATH=str(tmp_path / "painter"))
    image = await painter.made()
    key = keys.image_key(ImageId(image["image_id"]), "image/png")
    odd.kept[key] = odd.kept[key][:-1] + b"?"
    with structlog.testing.capture_logs() as logs:
        sidecar = await start_sidecar(**at(odd), IMAGE_DELIVERY="proxy", SPOOL_PATH=str(tmp_path / "other"))
        for _ in range(2):
            response, body = await sidecar.get(f"/images/{image['image_id']}{what}")
            assert (response.status, json.loads(body)["reason"]) == (404, "image_damaged")
    told = [entry["reason"] for entry in logs if entry.get("log_level") == "error"]
    assert told == ["it does not have the digest that its record says"]
    assert str(image["image_id"]) not in str([entry for entry in logs if entry.get("log_level") == "error"])


@given(st.lists(st.integers(1, 100 * 2**20), max_size=200), st.integers(1, 64 * 2**20))
def test_downloads_share_their_memory_and_none_goes_without(wanted: list[int], size: int) -> None:
    memory, least, held = SharedMemory(size), 64 * 1024, 0
    with contextlib.ExitStack() as downloads:
        for number, bytes_wanted in enumerate(wanted, 1):
            share = downloads.enter_context(memory.share(bytes_wanted))
            assert min(bytes_wanted, least) <= share <= bytes_wanted
            held += share
            assert held <= size + number * least
    with memory.share(1) as share:
        assert (share, memory._free) == (1, size - 1)


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
