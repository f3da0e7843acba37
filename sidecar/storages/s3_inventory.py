"""What a bucket holds, and which of its objects belong to nothing. Listed a shard at a time, so memory stays small."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

from sidecar.domain import ImageId, Inventory, is_image_id, reverse_digits
from sidecar.errors import ImageNotFound
from sidecar.storages import keys
from sidecar.storages.disk import LEFTOVER_SECONDS
from sidecar.storages.s3_bucket import Bucket, Entry

_DAYS_REMEMBERED = 8


class BucketInventory:
    """Counted once a day by whoever comes first; the others read what was found."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._known_for = ""

    async def take(self, now: datetime) -> Inventory | None:
        """The day's inventory, once for each process; None where it is known or not there yet."""
        day = f"{now:%Y-%m-%d}"
        if day == self._known_for:
            return None
        if await self._bucket.create_once("inventory", f"inventory/{day}.claim", b"{}"):
            inventory = await self._count(now)
            found = {"images": inventory.images, "size_bytes": inventory.size_bytes}
            await self._bucket.put("inventory", f"inventory/{day}.json", json.dumps(found).encode())
            before = [f"{now - timedelta(days=days):%Y-%m-%d}" for days in range(1, _DAYS_REMEMBERED)]
            await self._bucket.delete(
                "inventory", [f"inventory/{old}.{kind}" for old in before for kind in ("claim", "json")]
            )
        else:
            data = await self._bucket.get("inventory", f"inventory/{day}.json")
            if data is None:
                return None
            inventory = Inventory(**json.loads(data))
        self._known_for = day
        return inventory

    async def _count(self, now: datetime) -> Inventory:
        images = size = orphans = 0
        async for shard, entries in self._shards():
            lonely = await self._lonely(shard, entries, now - timedelta(seconds=LEFTOVER_SECONDS))
            await self._bucket.delete("inventory", lonely)
            orphans += len(lonely)
            gone = set(lonely)
            for entry in entries:
                if entry.key not in gone:
                    size += entry.size
                    images += not entry.key.endswith(keys.THUMBNAIL_SUFFIX)
        return Inventory(images=images, size_bytes=size, orphans_deleted=orphans)

    async def _shards(self) -> AsyncIterator[tuple[str, list[Entry]]]:
        """The images' objects, those of one shard together."""
        shard, entries = "", list[Entry]()
        async for entry in self._bucket.entries("inventory", "images/"):
            _, found, name = entry.key.split("/", 2)
            if not is_image_id(name.split(".", 1)[0]):
                continue
            if found != shard and entries:
                yield shard, entries
                entries = []
            shard = found
            entries.append(entry)
        if entries:
            yield shard, entries

    async def _lonely(self, shard: str, entries: list[Entry], before: datetime) -> list[str]:
        """Old objects without a record, and old records without an image, as keys."""
        by_id: dict[str, list[Entry]] = {}
        for entry in entries:
            by_id.setdefault(_id_in(entry), []).append(entry)
        recorded: dict[str, Entry] = {}
        for owner in {ImageId(text).owner_tag for text in by_id}:
            prefix = f"{keys.records_of(owner)}/{reverse_digits(shard)}/"
            async for entry in self._bucket.entries("inventory", prefix):
                try:
                    name = entry.key.rsplit("/", 1)[1].removesuffix(".json")
                    recorded[keys.image_id_of_record_name(name).text] = entry
                except (ImageNotFound, ValueError):
                    continue
        orphans = [entry for text, found in by_id.items() if text not in recorded for entry in found]
        pictureless = [entry for text, entry in recorded.items() if text not in by_id]
        return [entry.key for entry in (*orphans, *pictureless) if entry.modified < before]


def _id_in(entry: Entry) -> str:
    return entry.key.rsplit("/", 1)[1].split(".", 1)[0]
