"""The day's inventory of a bucket: what keeps it from being taken, and what it tidies away."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from sidecar.errors import StorageFailure
from sidecar.events import CleanupSkipped, Event
from sidecar.storages import keys
from sidecar.storages.s3 import S3Storage
from sidecar.storages.s3_inventory import BucketInventory
from sidecar.storages.s3_lookups import Lookups
from tests.odd_store import Odd, at, odd, store_of
from tests.storage_contract import DAY, HeldClock, listed, put

__all__ = ["odd"]

pytestmark = pytest.mark.real

NOW = HeldClock().now()
CLAIM, FOUND = (f"inventory/{NOW:%Y-%m-%d}.{kind}" for kind in ("claim", "json"))


async def test_an_inventory_that_fails_in_the_middle_is_taken_by_the_next_who_comes(odd: Odd, tmp_path: Path) -> None:
    odd.refused = {FOUND}
    async with store_of(at(odd), tmp_path) as store:
        one, other = BucketInventory(store._bucket), BucketInventory(store._bucket)
        with pytest.raises(StorageFailure):
            await one.take(NOW)
        assert CLAIM not in odd.kept
        odd.refused = set()
        counted = await other.take(NOW)
        assert counted is not None
        assert await one.take(NOW) == counted


async def test_a_claim_that_could_not_be_given_back_is_used_by_its_holder(odd: Odd, tmp_path: Path) -> None:
    odd.refused, odd.undeletable = {FOUND}, {CLAIM}
    async with store_of(at(odd), tmp_path) as store:
        inventory = BucketInventory(store._bucket)
        with pytest.raises(StorageFailure):
            await inventory.take(NOW)
        odd.refused = set()
        assert CLAIM in odd.kept
        assert await inventory.take(NOW) is not None


async def test_the_claim_of_a_pod_that_died_while_it_counted_is_free_after_an_hour(odd: Odd, tmp_path: Path) -> None:
    odd.kept[CLAIM] = b"{}"  # this store says of everything that it has been there since the year began
    async with store_of(at(odd), tmp_path) as store:
        inventory = BucketInventory(store._bucket)
        assert await inventory.take(NOW) is None
        assert await inventory.take(NOW) is not None


async def test_old_records_go_where_no_image_of_their_time_is_left(odd: Odd, tmp_path: Path) -> None:
    async with store_of(at(odd), tmp_path) as store:
        alone = (await put(store, NOW - timedelta(hours=5), life=None)).record
        small = (await put(store, NOW - timedelta(hours=4), life=None)).record
        whole = (await put(store, NOW - timedelta(hours=3), life=None)).record
        for record in (alone, small):
            del odd.kept[keys.image_key(record.image_id, "image/png")]
        for record in (small, whole):
            await store.put_thumbnail(record.image_id, b"small")
        counted = await store.take_inventory(NOW)
        assert counted is not None
        assert (counted.images, counted.orphans_deleted) == (1, 3)
        assert not [key for key in odd.kept for gone in (alone, small) if str(gone.image_id) in key]
        assert await listed(store) == [whole.image_id]
        again = await store.take_inventory(NOW + DAY)
        assert again is not None
        assert (again.images, again.orphans_deleted) == (1, 0)


# --- a listing that leaves something out ------------------------------------------------------------------------------


async def five_images(store: S3Storage) -> set[str]:
    """Some with thumbnails, in shards of their own; the ids."""
    records = [(await put(store, NOW - timedelta(hours=hours), life=None)).record for hours in range(2, 7)]
    for record in records[:2]:
        await store.put_thumbnail(record.image_id, b"small")
    return {str(record.image_id) for record in records}


def skipped(seen: list[Event]) -> int:
    return sum(event.count for event in seen if isinstance(event, CleanupSkipped) and event.reason == RECORD_IS_THERE)


RECORD_IS_THERE = "record_still_there"


@pytest.mark.parametrize("unlisted", ["records/", "images/", ".png", ".thumbnail", "/"])
async def test_nothing_is_deleted_for_what_a_listing_leaves_out(unlisted: str, odd: Odd, tmp_path: Path) -> None:
    seen: list[Event] = []
    async with store_of(at(odd), tmp_path, seen.append) as store:
        images = await five_images(store)
        before = {key for key in odd.kept if not key.startswith("inventory/")}
        odd.unlisted = {unlisted}
        counted = await store.take_inventory(NOW)
        assert counted is not None
        assert (counted.orphans_deleted, counted.errors) == (0, 0)
        assert before <= odd.kept.keys()
        odd.unlisted = set()
        assert {str(image_id) for image_id in await listed(store)} == images
    assert skipped(seen) == {"records/": 5, "images/": 5, ".png": 5, ".thumbnail": 0, "/": 0}[unlisted]


@pytest.mark.parametrize("unreadable", ["records/", "images/"])
async def test_a_lookup_that_fails_deletes_nothing_and_is_an_error(unreadable: str, odd: Odd, tmp_path: Path) -> None:
    async with store_of(at(odd), tmp_path) as store:
        await five_images(store)
        before = {key for key in odd.kept if not key.startswith("inventory/")}
        odd.unlisted, odd.unreadable = {unreadable}, {unreadable}
        counted = await store.take_inventory(NOW)
        assert counted is not None
        assert (counted.orphans_deleted, counted.errors) == (0, 5)
        assert before <= odd.kept.keys()


async def test_an_orphan_goes_also_from_a_listing_that_leaves_records_out(odd: Odd, tmp_path: Path) -> None:
    async with store_of(at(odd), tmp_path) as store:
        kept = await five_images(store)
        lonely = (await put(store, NOW - timedelta(hours=2), life=None)).record
        del odd.kept[keys.record_key(lonely.image_id)]
        odd.unlisted = {"records/"}
        counted = await store.take_inventory(NOW)
        assert counted is not None
        assert (counted.images, counted.orphans_deleted) == (5, 1)
        assert {key.split("/")[2][:43] for key in odd.kept if key.startswith("images/")} == kept


async def test_an_orphan_that_was_written_anew_since_the_listing_stays(odd: Odd, tmp_path: Path) -> None:
    async with store_of(at(odd), tmp_path) as store:
        record = (await put(store, NOW - timedelta(hours=2), life=None)).record
        key = keys.image_key(record.image_id, "image/png")
        del odd.kept[keys.record_key(record.image_id)]
        odd.modified[key] = f"{NOW:%a, %d %b %Y %H:%M:%S} GMT"  # listings of this store go by another clock
        counted = await store.take_inventory(NOW)
        assert counted is not None
        assert (counted.orphans_deleted, key in odd.kept) == (0, True)


async def test_lookups_are_bounded_in_number(odd: Odd, tmp_path: Path) -> None:
    looked: list[int] = []

    async def look(suspect: int) -> list[str] | None:
        looked.append(suspect)
        return None

    async with store_of(at(odd), tmp_path) as store:
        lookups = Lookups(store._bucket)
        lookups.left = 20
        assert await lookups.delete_lost("inventory", range(30), look) == set()
        assert await lookups.delete_lost("inventory", range(30, 60), look) == set()
    assert looked == list(range(20))


# --- foreign and damaged objects --------------------------------------------------------------------------------------


@pytest.mark.parametrize("found", [b"", b"{", b"[]", b"{}", b'{"images": -1, "size_bytes": 2}', b'{"images": true}'])
async def test_a_count_that_is_none_is_the_store_s_trouble(found: bytes, odd: Odd, tmp_path: Path) -> None:
    odd.kept |= {CLAIM: b"{}", FOUND: found}
    async with store_of(at(odd), tmp_path) as store:
        with pytest.raises(StorageFailure, match="damaged"):
            await store.take_inventory(NOW)
        odd.kept[FOUND] = json.dumps({"images": 3, "size_bytes": 4, "since": "a later version"}).encode()
        counted = await store.take_inventory(NOW)
        assert counted is not None
        assert (counted.images, counted.size_bytes) == (3, 4)
