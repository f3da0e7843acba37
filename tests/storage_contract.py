"""What every store promises. A store's test module derives from `StorageContract` and provides the fixture `store`."""

from __future__ import annotations

import asyncio
import hashlib
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sidecar.domain import (
    ANONYMOUS,
    Deletion,
    GeneratedImage,
    GenerationRequest,
    ImageId,
    ImageRecord,
    Picture,
    StoredImage,
)
from sidecar.errors import ImageNotFound, InvalidRequest
from sidecar.ports import Storage
from sidecar.storages import keys
from sidecar.storages.records import encode_record
from tests.pictures import picture

DAY = timedelta(days=1)
PNG = picture(32, 32)


class HeldClock:
    """A wall clock that moves only when told to."""

    def __init__(self) -> None:
        self.moment = datetime.now(UTC).replace(microsecond=0)
        self.seconds = 0.0

    def now(self) -> datetime:
        return self.moment

    def monotonic(self) -> float:
        return self.seconds

    def since_boot(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def advance(self, by: timedelta) -> None:
        self.moment += by
        self.seconds += by.total_seconds()

    def set(self, by: timedelta) -> None:
        """Somebody sets the clock: no time goes by."""
        self.moment += by


def described(
    image_id: ImageId, data: bytes = PNG, *, owner: str = ANONYMOUS, life: timedelta | None = DAY
) -> ImageRecord:
    """The record of an image that lives from its creation on."""
    return ImageRecord(
        image_id=image_id,
        owner=owner,
        request=GenerationRequest(model="painter", prompt="ein Kätzchen 🐈", seed=7, width=32),
        picture=Picture(media_type="image/png", width=32, height=32),
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        seed_applied=True,
        dropped_parameters=("guidance_scale",),
        created=image_id.created,
        expires=None if life is None else image_id.created + life,
        queue_seconds=0.25,
        runtime_seconds=1.5,
    )


async def put(
    store: Storage,
    created: datetime,
    *,
    owner: str = ANONYMOUS,
    life: timedelta | None = DAY,
    data: bytes = PNG,
    image_id: ImageId | None = None,
) -> StoredImage:
    """Store one image the way the service does."""
    image_id = image_id or ImageId.new(created, owner)
    record = described(image_id, data, owner=owner)
    record = replace(record, expires=None if life is None else created + life)
    async with store.stage(image_id, len(data)) as staged:
        await staged.write(data[:100])
        await staged.write(data[100:])
        generated = GeneratedImage(
            path=staged.path, sha256=record.sha256, size_bytes=len(data), picture=record.picture, seed_applied=True
        )
        return await store.commit(generated, record)


async def listed(store: Storage, owner: str = ANONYMOUS, limit: int = 3) -> list[ImageId]:
    """Everything of an owner, page by page."""
    found: list[ImageId] = []
    cursor = None
    while True:
        page = await store.page(owner, limit=limit, cursor=cursor)
        found += [record.image_id for record in page.records]
        if (cursor := page.cursor) is None:
            return found


async def bytes_of(store: Storage, stored: StoredImage, start: int = 0, length: int | None = None) -> bytes:
    """An image, or part of it, as the store streams it."""
    size = stored.record.size_bytes - start if length is None else length
    return b"".join([piece async for piece in store.stream(stored, start, size)])


class StorageContract:
    """The suite. `clock` is the store's own."""

    async def lay(self, store: Any, key: str, data: bytes) -> None:
        """Put something into the store behind its back."""
        raise NotImplementedError

    @pytest.fixture
    def clock(self) -> HeldClock:
        return HeldClock()

    async def test_what_was_put_comes_back_whole(self, store: Any, clock: HeldClock) -> None:
        stored = await put(store, clock.now())
        got = await store.get(stored.record.image_id)
        assert got == stored
        assert await bytes_of(store, got) == PNG

    @pytest.mark.parametrize(("start", "length"), [(0, 1), (0, 99), (50, 49), (len(PNG) - 1, 1), (0, len(PNG))])
    async def test_a_part_of_an_image_is_streamed(self, start: int, length: int, store: Any, clock: HeldClock) -> None:
        stored = await put(store, clock.now())
        assert await bytes_of(store, stored, start, length) == PNG[start : start + length]

    async def test_a_large_image_is_streamed_in_pieces(self, store: Any, clock: HeldClock) -> None:
        data = os.urandom(3 * 1024 * 1024 + 7)
        stored = await put(store, clock.now(), data=data)
        pieces = [piece async for piece in store.stream(stored, 0, len(data))]
        assert (b"".join(pieces) == data, len(pieces) > 3) == (True, True)

    async def test_a_deleted_image_is_streamed_to_nobody(self, store: Any, clock: HeldClock) -> None:
        stored = await put(store, clock.now())
        await store.delete(stored.record.image_id)
        with pytest.raises(ImageNotFound):
            await bytes_of(store, stored)

    async def test_what_was_never_put_is_not_found(self, store: Any, clock: HeldClock) -> None:
        image_id = ImageId.new(clock.now())
        with pytest.raises(ImageNotFound):
            await store.get(image_id)
        assert await store.thumbnail(image_id) is None
        assert await store.delete(image_id) == Deletion(first=False)

    async def test_a_staged_image_is_seen_by_nobody(self, store: Any, clock: HeldClock) -> None:
        image_id = ImageId.new(clock.now())
        async with store.stage(image_id, len(PNG)) as staged:
            await staged.write(PNG)
            with pytest.raises(ImageNotFound):
                await store.get(image_id)
            assert await listed(store) == []

    @pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
    async def test_an_interrupted_write_leaves_nothing(
        self, error: type[BaseException], store: Any, clock: HeldClock
    ) -> None:
        with pytest.raises(error):
            async with store.stage(ImageId.new(clock.now()), len(PNG)) as staged:
                await staged.write(PNG)
                raise error
        assert not staged.path.exists()
        assert (await store.take_inventory(clock.now())).images == 0

    async def test_a_thumbnail_lives_and_dies_with_its_image(self, store: Any, clock: HeldClock) -> None:
        image_id = (await put(store, clock.now())).record.image_id
        assert await store.thumbnail(image_id) is None
        await store.put_thumbnail(image_id, b"small")
        assert await store.thumbnail(image_id) == b"small"
        assert await store.delete(image_id) == Deletion(first=True, freed_bytes=len(PNG) + 5)
        assert await store.thumbnail(image_id) is None

    async def test_a_deleted_image_is_gone_from_everywhere(self, store: Any, clock: HeldClock) -> None:
        keep, drop = await put(store, clock.now()), await put(store, clock.now())
        assert (await store.delete(drop.record.image_id)).first
        with pytest.raises(ImageNotFound):
            await store.get(drop.record.image_id)
        assert await listed(store) == [keep.record.image_id]
        clock.advance(2 * DAY)
        assert [expired.image_id async for expired in store.expired(clock.now())] == [keep.record.image_id]

    async def test_of_many_who_delete_at_once_one_has_done_it(self, store: Any, clock: HeldClock) -> None:
        image_id = (await put(store, clock.now())).record.image_id
        deletions = await asyncio.gather(*(store.delete(image_id) for _ in range(10)))
        assert sum(deletion.first for deletion in deletions) == 1
        assert sum(deletion.freed_bytes for deletion in deletions) == len(PNG)

    async def test_an_image_is_gone_at_its_time_and_not_before(self, store: Any, clock: HeldClock) -> None:
        image_id = (await put(store, clock.now(), life=DAY)).record.image_id
        clock.advance(DAY - timedelta(milliseconds=1))
        assert (await store.get(image_id)).record.image_id == image_id
        clock.advance(timedelta(milliseconds=1))
        with pytest.raises(ImageNotFound):
            await store.get(image_id)
        assert await listed(store) == []

    async def test_an_image_without_an_end_stays(self, store: Any, clock: HeldClock) -> None:
        image_id = (await put(store, clock.now(), life=None)).record.image_id
        clock.advance(10_000 * DAY)
        assert (await store.get(image_id)).record.expires is None
        assert [expired async for expired in store.expired(clock.now())] == []

    async def test_images_are_listed_newest_first(self, store: Any, clock: HeldClock) -> None:
        ids = [(await put(store, clock.now() - minutes * timedelta(minutes=7))).record.image_id for minutes in range(8)]
        assert await listed(store) == ids
        page = await store.page(ANONYMOUS, limit=3)
        assert ([record.image_id for record in page.records], page.cursor is None) == (ids[:3], False)

    async def test_a_cursor_holds_while_images_come_and_go(self, store: Any, clock: HeldClock) -> None:
        ids = [(await put(store, clock.now() - hours * timedelta(hours=1))).record.image_id for hours in range(6)]
        first = await store.page(ANONYMOUS, limit=2)
        await put(store, clock.now() + timedelta(seconds=1))
        await store.delete(ids[1])  # the very image the cursor stands on
        await store.delete(ids[3])
        rest = await store.page(ANONYMOUS, limit=5, cursor=first.cursor)
        assert [record.image_id for record in rest.records] == [ids[2], ids[4], ids[5]]

    async def test_each_owner_lists_only_their_own(self, store: Any, clock: HeldClock) -> None:
        mine = await put(store, clock.now(), owner="alice")
        await put(store, clock.now(), owner="bob")
        assert await listed(store, "alice") == [mine.record.image_id]
        foreign = (await store.page("bob", limit=1)).records[0].image_id
        assert await listed(store, "carol") == []
        assert foreign != mine.record.image_id

    @pytest.mark.parametrize("cursor", ["", "x", "../..", "\0", "é" * 43, "a" * 10_000, "0" * 43])
    async def test_a_cursor_of_elsewhere_is_refused(self, cursor: str, store: Any) -> None:
        with pytest.raises(InvalidRequest, match="cursor"):
            await store.page(ANONYMOUS, limit=1, cursor=cursor)

    async def test_the_expiry_index_names_what_is_due_and_nothing_else(self, store: Any, clock: HeldClock) -> None:
        due = [
            (await put(store, clock.now() - days * DAY, life=timedelta(hours=1))).record.image_id for days in (3, 2, 1)
        ]
        await put(store, clock.now())
        found = [expired async for expired in store.expired(clock.now())]
        assert [expired.image_id for expired in found] == due
        assert await store.delete_expired(found) == [Deletion(first=True, freed_bytes=len(PNG))] * 3
        assert await store.delete_expired(found) == [Deletion(first=False)] * 3
        assert [expired async for expired in store.expired(clock.now())] == []

    async def test_an_inventory_counts_what_is_there(self, store: Any, clock: HeldClock) -> None:
        for hours in range(3):
            await put(store, clock.now() - hours * timedelta(hours=1))
        inventory = await store.take_inventory(clock.now())
        assert (inventory.images, inventory.size_bytes, inventory.orphans_deleted) == (3, 3 * len(PNG), 0)

    async def test_the_check_passes(self, store: Any) -> None:
        assert await store.check() is None

    async def test_a_second_thumbnail_takes_the_place_of_the_first(self, store: Any, clock: HeldClock) -> None:
        image_id = (await put(store, clock.now())).record.image_id
        await store.put_thumbnail(image_id, b"a first thumbnail")
        await store.put_thumbnail(image_id, b"small")
        assert await store.thumbnail(image_id) == b"small"
        assert await store.delete(image_id) == Deletion(first=True, freed_bytes=len(PNG) + 5)

    async def test_many_commits_at_once_are_all_there(self, store: Any, clock: HeldClock) -> None:
        stored = await asyncio.gather(*(put(store, clock.now()) for _ in range(30)))
        assert await asyncio.gather(*(store.get(one.record.image_id) for one in stored)) == stored
        assert set(await listed(store, limit=7)) == {one.record.image_id for one in stored}

    async def test_a_commit_and_deletes_of_one_image_end_with_the_whole_image_or_with_nothing(
        self, store: Any, clock: HeldClock
    ) -> None:
        for _ in range(10):
            image_id = ImageId.new(clock.now())
            _, *deletions = await asyncio.gather(
                put(store, clock.now(), image_id=image_id), *(store.delete(image_id) for _ in range(5))
            )
            clock.advance(timedelta(seconds=5))  # whatever a store remembers for a moment is forgotten
            there = image_id in await listed(store)
            assert sum(deletion.first for deletion in deletions) == (not there)
            if there:
                assert (await store.get(image_id)).record.image_id == image_id
            else:
                with pytest.raises(ImageNotFound):
                    await store.get(image_id)

    async def test_a_caller_and_sweepers_who_delete_at_once_free_the_bytes_once(
        self, store: Any, clock: HeldClock
    ) -> None:
        ids = [(await put(store, clock.now(), life=timedelta(hours=1))).record.image_id for _ in range(5)]
        clock.advance(DAY)
        due = [expired async for expired in store.expired(clock.now())]
        callers = [store.delete(image_id) for image_id in ids]
        sweepers = [store.delete_expired(due) for _ in range(3)]
        swept, deletions = await asyncio.gather(asyncio.gather(*sweepers), asyncio.gather(*callers))
        deletions += [deletion for batch in swept for deletion in batch]
        assert sum(deletion.first for deletion in deletions) == 5
        assert sum(deletion.freed_bytes for deletion in deletions) == 5 * len(PNG)
        assert [expired async for expired in store.expired(clock.now())] == []

    async def test_the_expiry_index_goes_by_the_end_and_not_by_the_beginning(
        self, store: Any, clock: HeldClock
    ) -> None:
        lives = {hours: timedelta(hours=hours) for hours in (30, 2, 1, 40, 3)}
        ids = {hours: (await put(store, clock.now(), life=life)).record.image_id for hours, life in lives.items()}
        clock.advance(timedelta(hours=30))
        due = [expired.image_id async for expired in store.expired(clock.now())]
        assert due == [ids[hours] for hours in (1, 2, 3, 30)]

    async def test_an_image_is_due_at_its_very_moment(self, store: Any, clock: HeldClock) -> None:
        await put(store, clock.now(), life=DAY)
        clock.advance(DAY - timedelta(milliseconds=1))
        assert [expired async for expired in store.expired(clock.now())] == []
        clock.advance(timedelta(milliseconds=1))
        assert len([expired async for expired in store.expired(clock.now())]) == 1

    @pytest.mark.parametrize(("there", "limit", "more"), [(0, 3, False), (2, 3, False), (3, 3, False), (4, 3, True)])
    async def test_a_page_has_a_cursor_only_when_there_is_more(
        self, there: int, limit: int, more: bool, store: Any, clock: HeldClock
    ) -> None:
        for hours in range(there):
            await put(store, clock.now() - timedelta(hours=hours))
        page = await store.page(ANONYMOUS, limit=limit)
        assert (len(page.records), page.cursor is not None) == (min(there, limit), more)

    async def test_a_page_is_filled_with_what_lives(self, store: Any, clock: HeldClock) -> None:
        lives = [DAY, timedelta(hours=1), None, timedelta(hours=1), DAY]
        ids = [
            (await put(store, clock.now() - age * timedelta(minutes=1), life=life)).record.image_id
            for age, life in enumerate(lives)
        ]
        clock.advance(timedelta(hours=2))
        page = await store.page(ANONYMOUS, limit=2)
        assert [record.image_id for record in page.records] == [ids[0], ids[2]]
        assert await listed(store, limit=2) == [ids[0], ids[2], ids[4]]

    async def test_a_cursor_of_another_owner_is_refused(self, store: Any, clock: HeldClock) -> None:
        for _ in range(2):
            await put(store, clock.now(), owner="alice")
        cursor = (await store.page("alice", limit=1)).cursor
        assert cursor is not None
        with pytest.raises(InvalidRequest, match="cursor"):
            await store.page("bob", limit=1, cursor=cursor)

    @pytest.mark.parametrize(
        "owner", ["../..", "/etc", "a\0b", "Zoë 🐈", "x" * 10_000, "", "system:serviceaccount:a:b"]
    )
    async def test_an_owner_may_have_any_name(self, owner: str, store: Any, clock: HeldClock) -> None:
        stored = await put(store, clock.now(), owner=owner)
        await put(store, clock.now(), owner="somebody else")
        assert (await store.page(owner, limit=5)).records == (stored.record,)
        assert (await store.get(stored.record.image_id)).record.owner == owner
        assert (await store.delete(stored.record.image_id)).first

    @pytest.mark.parametrize("why", ["expired", "not what is looked for"])
    async def test_a_page_looks_at_five_hundred_records_and_goes_on_from_there(
        self, why: str, store: Any, clock: HeldClock
    ) -> None:
        oldest = (await put(store, clock.now(), life=2 * DAY)).record
        moments = [clock.now() + timedelta(milliseconds=number) for number in range(1, 601)]
        records = [
            replace(oldest, image_id=ImageId.new(moment), created=moment, expires=moment + (DAY if number else 3 * DAY))
            for number, moment in enumerate(reversed(moments))
        ]
        lay = (self.lay(store, keys.record_key(record.image_id), encode_record(record)) for record in records)
        await asyncio.gather(*lay)
        clock.advance(DAY + timedelta(hours=1) if why == "expired" else timedelta())
        wanted = {records[0].image_id, oldest.image_id}
        matches = None if why == "expired" else lambda record: record.image_id in wanted
        first = await store.page(ANONYMOUS, limit=10, matches=matches)
        assert ([found.image_id for found in first.records], first.cursor) == (
            [records[0].image_id],
            keys.record_name(records[499].image_id),
        )
        second = await store.page(ANONYMOUS, limit=10, cursor=first.cursor, matches=matches)
        assert ([found.image_id for found in second.records], second.cursor) == ([oldest.image_id], None)
