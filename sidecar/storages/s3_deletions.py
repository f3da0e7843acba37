"""Deleting images from a bucket that several pods share: one of them counts each image, all of them remove it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from sidecar.domain import Deletion, ImageId, ImageRecord
from sidecar.ports import ExpiredImage
from sidecar.storages import keys
from sidecar.storages.s3_bucket import Bucket
from sidecar.storages.s3_errors import Damaged
from sidecar.storages.s3_records import BucketRecords

CLAIMS = "deleting/"


class BucketDeletions:
    """`forget` drops what this process has cached of an image. All methods raise StorageFailure."""

    def __init__(self, bucket: Bucket, records: BucketRecords, forget: Callable[[ImageId], None]) -> None:
        self._bucket = bucket
        self._records = records
        self._forget = forget

    async def one(self, image_id: ImageId) -> Deletion:
        """Also where its record is damaged. Then its expiry entry stays until a sweep finds it."""
        record: ImageRecord | None = None
        with contextlib.suppress(Damaged):
            record = await self._records.read(image_id, "delete")
            if record is None:
                return Deletion(first=False)
        deletion = await self._claimed(image_id, record)
        expiry_key = keys.expiry_key(record.expires, image_id) if record is not None and record.expires else None
        await self.remove([(image_id, expiry_key)], [image_id] if deletion.first else [])
        return deletion

    async def expired(self, expired: Sequence[ExpiredImage]) -> list[Deletion | BaseException]:
        """In batches; what happened to each, in their order.

        An entry of the index that contradicts its image's record is removed alone: the record decides.
        """
        found = await asyncio.gather(*(self._claim_expired(one) for one in expired), return_exceptions=True)
        work = [(one, outcome) for one, outcome in zip(expired, found, strict=True) if isinstance(outcome, Deletion)]
        await self.remove(
            [(one.image_id, one.key) for one, _ in work],
            [one.image_id for one, outcome in work if outcome.first],
        )
        stray = [one.key for one, outcome in zip(expired, found, strict=True) if outcome is None]
        await self._remove_stray(stray)
        return [Deletion(first=False) if outcome is None else outcome for outcome in found]

    async def _claim_expired(self, expired: ExpiredImage) -> Deletion | None:
        """None for an entry that is not the one which belongs to its image's record."""
        record = await self._records.read_if_whole(expired.image_id, "delete")
        if record is None:
            return Deletion(first=False)
        if record.expires is None or keys.expiry_key(record.expires, record.image_id) != expired.key:
            return None
        return await self._claimed(expired.image_id, record)

    async def _remove_stray(self, entries: Sequence[str]) -> None:
        if entries:
            await self._bucket.delete("delete", entries)
            self._bucket.skipped("record_still_there", len(entries), "an expiry entry contradicts its image's record")

    async def _claimed(self, image_id: ImageId, record: ImageRecord | None) -> Deletion:
        """Of several pods that delete an image one gets the claim, which counts only while the record is there."""
        claim = f"{CLAIMS}{image_id}"
        if not await self._bucket.create_once("delete", claim, b"{}"):
            return Deletion(first=False)
        if await self._bucket.head("delete", keys.record_key(image_id)) is None:
            await self._bucket.delete("delete", [claim])
            return Deletion(first=False)
        thumbnail = await self._bucket.size("delete", keys.thumbnail_key(image_id))
        return Deletion(first=True, freed_bytes=(record.size_bytes if record else 0) + (thumbnail or 0))

    async def remove(self, images: Sequence[tuple[ImageId, str | None]], claims: Sequence[ImageId] = ()) -> None:
        """Images with their keys in the expiry index.

        The records first, so that the images become invisible. The claims last, when nothing is left to claim.
        """
        for image_id, _ in images:
            self._forget(image_id)
        await self._bucket.delete("delete", [keys.record_key(image_id) for image_id, _ in images])
        rest = [key for image_id, expiry_key in images for key in _keys_besides(image_id, expiry_key)]
        await self._bucket.delete("delete", rest)
        await self._bucket.delete("delete", [f"{CLAIMS}{image_id}" for image_id in claims])


def _keys_besides(image_id: ImageId, expiry_key: str | None) -> list[str]:
    """All keys of an image but its record's, for every media type."""
    images = [*keys.every_image_key(image_id), keys.thumbnail_key(image_id)]
    return [*images, expiry_key] if expiry_key else images
