"""What was just sent stays at hand for a moment: bounded, gone with its image, and missed by nobody."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.config import StorageSettings, read_settings
from sidecar.domain import ImageId
from sidecar.ports import SystemClock
from sidecar.storages.file import FileStorage
from sidecar.storages.just_sent import KEPT_BYTES, KEPT_SECONDS, JustSent
from sidecar.storages.s3 import opened_s3
from tests.fake_kserve import FakeKServe, succeed
from tests.odd_store import Odd, at, odd
from tests.pictures import picture
from tests.storage_contract import PNG, HeldClock, bytes_of, described, put
from tests.test_disk_faults import Mount, tmpfs

__all__ = ["odd", "tmpfs"]


class Alarm(SystemClock):
    """Sleeps until it is told that the time is over."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.over = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.asked.append(seconds)
        await self.over.wait()


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[FileStorage]:
    storage = FileStorage(tmp_path / "spool", max_bytes=None, clock=HeldClock(), observer=lambda event: None)
    async with storage.opened() as opened:
        yield opened


async def sent(spool: FileStorage, just_sent: JustSent, size: int = 4) -> ImageId:
    """An image whose stage has been left after it was taken over, `size` as its taker was told."""
    image_id = ImageId.new(HeldClock().now())
    async with spool.stage(image_id, 4) as staged:
        await staged.write(b"done")
        await spool.finish(staged.path, described(image_id, b"done"))
        just_sent.keep(image_id, spool.staging.file(staged.path), size)
    return image_id


def files(spool: FileStorage, tmp_path: Path) -> list[bytes]:
    return [path.read_bytes() for path in (tmp_path / "spool" / "staging").glob("*.part")]


async def test_it_stays_when_its_stage_is_left_and_goes_when_its_time_is_over(
    spool: FileStorage, tmp_path: Path
) -> None:
    clock = Alarm()
    just_sent = JustSent(clock, spool.discard)
    image_id = await sent(spool, just_sent)
    path = just_sent.path(image_id)
    assert path is not None
    assert path.read_bytes() == b"done"
    clock.over.set()
    while just_sent.path(image_id) is not None:
        await asyncio.sleep(0)
    assert clock.asked == [KEPT_SECONDS]
    await just_sent.close()
    assert files(spool, tmp_path) == []


async def test_the_oldest_goes_when_there_is_too_much(spool: FileStorage, tmp_path: Path) -> None:
    just_sent = JustSent(Alarm(), spool.discard)
    ids = [await sent(spool, just_sent, KEPT_BYTES // 2) for _ in range(3)]
    assert [just_sent.path(image_id) is not None for image_id in ids] == [False, True, True]
    await just_sent.close()
    assert files(spool, tmp_path) == []


async def test_what_is_too_large_goes_with_its_stage(spool: FileStorage, tmp_path: Path) -> None:
    just_sent = JustSent(Alarm(), spool.discard)
    assert just_sent.path(await sent(spool, just_sent, KEPT_BYTES + 1)) is None
    assert files(spool, tmp_path) == []


async def test_it_goes_with_its_image_with_its_first_thumbnail_and_with_the_store(odd: Odd, tmp_path: Path) -> None:
    given = read_settings({**at(odd), "STORAGE_PATH": str(tmp_path), "SPOOL_PATH": str(tmp_path)}).storage
    async with opened_s3(given, clock=HeldClock(), observer=lambda event: None) as store:
        ids = [(await put(store, HeldClock().now())).record.image_id for _ in range(3)]
        await store.delete(ids[0])
        await store.put_thumbnail(ids[1], b"small")
        assert [store.at_hand(image_id) is not None for image_id in ids] == [False, False, True]
    assert list((tmp_path / "staging").iterdir()) == []


async def test_what_a_process_that_was_killed_has_kept_goes_when_the_next_one_starts(odd: Odd, tmp_path: Path) -> None:
    def given(spool: str) -> StorageSettings:
        here = {"STORAGE_PATH": str(tmp_path), "SPOOL_PATH": str(tmp_path / spool)}
        return read_settings({**at(odd), **here}).storage

    async with opened_s3(given("spool"), clock=HeldClock(), observer=lambda event: None) as store:
        image_id = (await put(store, HeldClock().now())).record.image_id
        assert store.at_hand(image_id) is not None
        async with store.stage(ImageId.new(HeldClock().now()), 4) as under_way:
            shutil.copytree(tmp_path / "spool", tmp_path / "left")
    async with opened_s3(given("left"), clock=HeldClock(), observer=lambda event: None) as store:
        assert [path.name for path in (tmp_path / "left" / "staging").iterdir()] == [under_way.path.name]
        assert await bytes_of(store, await store.get(image_id)) == PNG


@pytest.mark.parametrize("result", ["thumbnail", "full"])
async def test_a_file_that_has_gone_in_this_moment_is_read_from_the_store(
    result: str, odd: Odd, start_sidecar: Any, tmp_path: Path
) -> None:
    sidecar = await start_sidecar(**at(odd), SPOOL_PATH=str(tmp_path / "spool"))

    def lose_the_file(key: str) -> None:
        if key.startswith("records/"):  # the last that is sent of an image
            for path in (tmp_path / "spool" / "staging").glob("*.part"):
                path.unlink()

    odd.on_kept = lose_the_file
    made = await sidecar.generate(result=result, width=64, height=64)
    assert [block.type for block in made.content] == ["text", "image"]
    assert "No preview" not in made.content[0].text


# --- room that somebody else wants ------------------------------------------------------------------------------------


async def test_it_takes_no_room_of_the_spool_that_an_image_to_come_needs(odd: Odd, tmp_path: Path) -> None:
    bound = 5 * len(PNG)
    given = {**at(odd), "STORAGE_PATH": str(tmp_path), "SPOOL_PATH": str(tmp_path), "STORAGE_MAX_BYTES": str(bound)}
    async with opened_s3(read_settings(given).storage, clock=HeldClock(), observer=lambda event: None) as store:
        ids = [(await put(store, HeldClock().now())).record.image_id for _ in range(3)]
        assert [store.at_hand(image_id) is not None for image_id in ids] == [True, True, True]
        with store.reserve(3 * len(PNG)):
            assert [store.at_hand(image_id) is not None for image_id in ids] == [False, True, True]
        with store.reserve(bound):
            assert [store.at_hand(image_id) for image_id in ids] == [None] * 3
            assert store.at_hand((await put(store, HeldClock().now())).record.image_id) is None


async def test_it_makes_room_on_a_disk_that_has_none_left(
    tmpfs: Mount, odd: Odd, start_sidecar: Any, kserve: FakeKServe
) -> None:
    disk = tmpfs("size=4m")
    sidecar = await start_sidecar(**at(odd), SPOOL_PATH=str(disk / "spool"))
    kserve.script.append(succeed(picture(512, 512, noise=True)))
    first = await sidecar.made(width=64, height=64)
    with (disk / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="space"):
        while True:
            file.write(b"x" * 4096)
    await sidecar.made(width=64, height=64)
    assert (await sidecar.get(first["thumbnail_url"]))[0].status == 200


async def test_it_leaves_most_of_a_small_disk_to_what_is_under_way(
    tmpfs: Mount, odd: Odd, start_sidecar: Any, kserve: FakeKServe
) -> None:
    spool = tmpfs("size=4m") / "spool"
    sidecar = await start_sidecar(**at(odd), SPOOL_PATH=str(spool))
    kserve.script.extend(succeed(picture(512, 512, noise=True)) for _ in range(12))
    for _ in range(12):
        await sidecar.made(width=64, height=64)
        assert sum(path.stat().st_size for path in (spool / "staging").iterdir()) <= 2**20
