"""Objects of images in a bucket that have lost their other half: an image without its record, or the reverse."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sidecar.domain import ImageId, reverse_digits
from sidecar.storages import keys, listed_keys
from sidecar.storages.listed_keys import ImageObject
from sidecar.storages.s3_bucket import Bucket
from sidecar.storages.s3_listing import Entry
from sidecar.storages.s3_lookups import Lookups


@dataclass(slots=True)
class _Listed:
    """What a listing shows of one image; `old` are the keys that may be deleted."""

    image_id: ImageId
    pictured: bool = False
    recorded: bool = False
    old: list[str] = field(default_factory=list)

    @property
    def suspect(self) -> bool:
        return bool(self.old) and not (self.pictured and self.recorded)


class Orphans:
    """Deletes what was last written before `before` and has no other half, by the listing and by a look at its key."""

    def __init__(self, bucket: Bucket, before: datetime) -> None:
        self._bucket = bucket
        self._before = before
        self._lookups = Lookups(bucket)
        self.deleted = 0

    @property
    def errors(self) -> int:
        """Suspects that could not be looked up or deleted."""
        return self._lookups.errors

    async def delete(self, shard: str, entries: Sequence[Entry[ImageObject]]) -> set[str]:
        """Of one shard's images, thumbnails and records; the keys that are gone."""
        listed: dict[ImageId, _Listed] = {}
        for entry in entries:
            image = listed.setdefault(entry.names.image_id, _Listed(entry.names.image_id))
            image.pictured = image.pictured or not entry.names.thumbnail
            self._note(image, entry.key, entry.modified)
        for owner in {image_id.owner_tag for image_id in listed}:
            prefix = f"{keys.records_of(owner)}/{reverse_digits(shard)}/"
            async for record in self._bucket.entries("inventory", prefix, listed_keys.recorded_image):
                image = listed.setdefault(record.names, _Listed(record.names))
                image.recorded = True
                self._note(image, record.key, record.modified)
        return await self._delete([image for image in listed.values() if image.suspect])

    async def delete_records_outside(self, shards: set[str]) -> None:
        """Records of the times in which no image is left. Those of `shards` were looked at with their images."""
        suspects = list[_Listed]()
        async for record in self._bucket.entries("inventory", "records/", listed_keys.recorded_image, cleans=True):
            if len(suspects) >= self._lookups.left:
                break
            if record.names.text[: keys.SHARD_DIGITS] not in shards:
                image = _Listed(record.names, recorded=True)
                self._note(image, record.key, record.modified)
                suspects += [image] if image.suspect else []
        await self._delete(suspects)

    def _note(self, image: _Listed, key: str, modified: datetime) -> None:
        if modified < self._before:
            image.old.append(key)

    async def _delete(self, suspects: Sequence[_Listed]) -> set[str]:
        gone = await self._lookups.delete_lost("inventory", suspects, self._lost)
        self.deleted += len(gone)
        return gone

    async def _lost(self, listed: _Listed) -> list[str] | None:
        """The keys of an orphan that are old indeed; None for an image that has both halves."""
        if await self._has_record(listed) and await self._has_image(listed):
            return None
        found = await asyncio.gather(*(self._bucket.head("inventory", key) for key in listed.old))
        return [
            key
            for key, about in zip(listed.old, found, strict=True)
            if about is not None and about["LastModified"] < self._before
        ]

    async def _has_record(self, listed: _Listed) -> bool:
        return listed.recorded or await self._bucket.exists("inventory", keys.record_key(listed.image_id))

    async def _has_image(self, listed: _Listed) -> bool:
        if listed.pictured:
            return True
        images = keys.every_image_key(listed.image_id)
        return any(await asyncio.gather(*(self._bucket.exists("inventory", key) for key in images)))
