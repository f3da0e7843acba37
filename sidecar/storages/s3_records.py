"""The records of images in a bucket, read and believed only under their own keys."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sidecar.domain import ImageId, ImageRecord
from sidecar.errors import ImageDamaged
from sidecar.storages import keys
from sidecar.storages.records import decode_record
from sidecar.storages.s3_bucket import Bucket
from sidecar.storages.s3_errors import Damaged


class BucketRecords:
    """Both methods raise StorageFailure, and return None where there is no record, or a newer version's."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    async def read(self, image_id: ImageId, operation: str) -> ImageRecord | None:
        """Raises Damaged for what is not the record of this very image."""
        return await self._bucket.read(operation, keys.record_key(image_id), lambda data: _decoded(data, image_id))

    async def read_if_whole(self, image_id: ImageId, operation: str) -> ImageRecord | None:
        """None for a damaged one, too: lists leave it out, and it does not keep its image from being deleted."""
        with contextlib.suppress(Damaged):
            return await self.read(image_id, operation)
        return None


def _decoded(data: bytes, image_id: ImageId) -> ImageRecord:
    record = decode_record(data)
    if record.image_id != image_id:
        raise ValueError("another image's record")
    return record


@contextlib.contextmanager
def told_as_of_the_image() -> Iterator[None]:
    """Turn what is said of an object into what is said of its image. The log has the object's key by then."""
    try:
        yield
    except Damaged as error:
        raise ImageDamaged(error.detail) from error
