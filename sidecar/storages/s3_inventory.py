"""What a bucket holds, and which of its objects belong to nothing. Listed a shard at a time, so memory stays small."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

from sidecar.domain import ImageId, Inventory, is_image_id, reverse_digits
from sidecar.errors import ImageNotFound, StorageFailure
from sidecar.storages import keys
from sidecar.storages.disk import LEFTOVER_SECONDS
from sidecar.storages.s3_bucket import Bucket, Entry

_DAYS_REMEMBERED = 8


class BucketInventory:
    """Counted once a day by whoever comes first; the others read what was found."""

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
            data = await self._bucket.get("inventory", f"inventory/{day}.json")
            if data is None:
                await self._free_forsaken(day, now)
                return None
            inventory = Inventory(**json.loads(data))
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
        images = size = orphans = 0
        before = now - timedelta(seconds=LEFTOVER_SECONDS)
        shards = set[str]()
        async for shard, entries in self._shards():
            shards.add(shard)
            lonely = await self._lonely(shard, entries, before)
            await self._bucket.delete("inventory", lonely)
            orphans += len(lonely)
            gone = set(lonely)
            for entry in entries:
                if entry.key not in gone:
                    size += entry.size
                    images += not _is_thumbnail(entry)
        orphans += await self._delete_records_outside(shards, before)
        return Inventory(images=images, size_bytes=size, orphans_deleted=orphans)

    async def _delete_records_outside(self, shards: set[str], before: datetime) -> int:
        """Old records of shards in which no image is left."""
        lonely = [
            entry.key
            async for entry in self._bucket.entries("inventory", "records/")
            if entry.modified < before and (text := _recorded_in(entry)) and text[: keys.SHARD_DIGITS] not in shards
        ]
        await self._bucket.delete("inventory", lonely)
        return len(lonely)

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
        pictured = {text for text, found in by_id.items() if not all(map(_is_thumbnail, found))}
        recorded: dict[str, Entry] = {}
        for owner in {ImageId(text).owner_tag for text in by_id}:
            prefix = f"{keys.records_of(owner)}/{reverse_digits(shard)}/"
            async for entry in self._bucket.entries("inventory", prefix):
                if text := _recorded_in(entry):
                    recorded[text] = entry
        whole = pictured & recorded.keys()
        orphans = [entry for text, found in by_id.items() if text not in whole for entry in found]
        pictureless = [entry for text, entry in recorded.items() if text not in whole]
        return [entry.key for entry in (*orphans, *pictureless) if entry.modified < before]


def _claim(day: str) -> str:
    return f"inventory/{day}.claim"


def _id_in(entry: Entry) -> str:
    return entry.key.rsplit("/", 1)[1].split(".", 1)[0]


def _is_thumbnail(entry: Entry) -> bool:
    return entry.key.endswith(keys.THUMBNAIL_SUFFIX)


def _recorded_in(entry: Entry) -> str | None:
    """The id of the image that a record is of; None for what is no record of ours."""
    try:
        return keys.image_id_of_record_name(entry.key.rsplit("/", 1)[1].removesuffix(".json")).text
    except (ImageNotFound, ValueError):
        return None
