"""What a bucket holds, counted once a day. Listed a shard at a time, so memory stays small."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

from sidecar.domain import Inventory
from sidecar.errors import StorageFailure
from sidecar.storages import keys, listed_keys
from sidecar.storages.disk import LEFTOVER_SECONDS
from sidecar.storages.listed_keys import ImageObject
from sidecar.storages.s3_bucket import Bucket
from sidecar.storages.s3_listing import Entry
from sidecar.storages.s3_orphans import Orphans

_DAYS_REMEMBERED = 8


class BucketInventory:
    """Counted once a day by the first pod to claim it; the others read its count."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._known_for = ""
        self._claimed_for = ""

    async def take(self, now: datetime) -> Inventory | None:
        """The day's inventory, once for each process; None where it is known or not there yet."""
        day = f"{now:%Y-%m-%d}"
        if day == self._known_for:
            return None
        if day == self._claimed_for or await self._bucket.create_once("inventory", _claim(day), b"{}"):
            inventory = await self._count_for(day, now)
        else:
            found = await self._bucket.read("inventory", f"inventory/{day}.json", _decoded)
            if found is None:
                await self._free_forsaken(day, now)
                return None
            inventory = found
        self._known_for = day
        return inventory

    async def _count_for(self, day: str, now: datetime) -> Inventory:
        """What fails in the middle is given back, so that the next pass of any pod counts anew."""
        self._claimed_for = day
        try:
            inventory = await self._count(now)
            found = {"images": inventory.images, "size_bytes": inventory.size_bytes}
            await self._bucket.put("inventory", f"inventory/{day}.json", json.dumps(found).encode())
        except BaseException:
            with contextlib.suppress(StorageFailure):  # then it stays ours, and the next pass goes on from there
                await self._bucket.delete("inventory", [_claim(day)])
                self._claimed_for = ""
            raise
        self._claimed_for = ""
        before = [f"{now - timedelta(days=days):%Y-%m-%d}" for days in range(1, _DAYS_REMEMBERED)]
        old = [key for day in before for key in (_claim(day), f"inventory/{day}.json")]
        await self._bucket.delete("inventory", old)
        return inventory

    async def _free_forsaken(self, day: str, now: datetime) -> None:
        """The claim of a pod that died while it counted. Where it only counts slowly, another one counts as well."""
        claim = await self._bucket.head("inventory", _claim(day))
        if claim is not None and claim["LastModified"] < now - timedelta(seconds=LEFTOVER_SECONDS):
            await self._bucket.delete("inventory", [_claim(day)])

    async def _count(self, now: datetime) -> Inventory:
        before = now - timedelta(seconds=LEFTOVER_SECONDS)
        orphans = Orphans(self._bucket, before)
        images = size = 0
        shards = set[str]()
        async for shard, entries in self._shards():
            shards.add(shard)
            gone = await orphans.delete(shard, entries)
            for entry in entries:
                if entry.key not in gone:
                    size += entry.size
                    images += not entry.names.thumbnail
        await orphans.delete_records_outside(shards)
        return Inventory(images=images, size_bytes=size, orphans_deleted=orphans.deleted, errors=orphans.errors)

    async def _shards(self) -> AsyncIterator[tuple[str, list[Entry[ImageObject]]]]:
        """The images' objects, those of one shard together."""
        shard, entries = "", list[Entry[ImageObject]]()
        async for entry in self._bucket.entries("inventory", "images/", listed_keys.image_object, cleans=True):
            found = entry.names.image_id.text[: keys.SHARD_DIGITS]
            if found != shard and entries:
                yield shard, entries
                entries = []
            shard = found
            entries.append(entry)
        if entries:
            yield shard, entries


def _claim(day: str) -> str:
    return f"inventory/{day}.claim"


def _decoded(data: bytes) -> Inventory:
    """The count of another pod. Raises ValueError."""
    found = json.loads(data)
    try:
        images, size = found["images"], found["size_bytes"]
    except (KeyError, TypeError) as error:
        raise ValueError("not an inventory") from error
    if type(images) is not int or type(size) is not int or min(images, size) < 0:
        raise ValueError("not an inventory")
    return Inventory(images=images, size_bytes=size)
