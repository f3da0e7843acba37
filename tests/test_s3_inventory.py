"""The day's inventory of a bucket: what keeps it from being taken, and what it tidies away."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from sidecar.errors import StorageFailure
from sidecar.storages import keys
from sidecar.storages.s3_inventory import BucketInventory
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
