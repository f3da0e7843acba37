"""Images that pass from the bucket through this process to clients that may be slow.

An image is fetched in ranges. A range is in memory before any of it is given on, so a slow reader holds some memory and
no connection to the store: the store's own time-out for slow connections does not apply, and other downloads find a
connection free. An image of usual size is one range.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncGenerator, Iterator

from sidecar.domain import ImageRecord
from sidecar.errors import ImageNotFound, StoreAway
from sidecar.storages import keys
from sidecar.storages.s3_bucket import Bucket, Fetch
from sidecar.storages.s3_errors import Damaged, Unreached

_MEMORY_BYTES = 32 * 1024 * 1024
_RANGE_BYTES = 4 * 1024 * 1024
_LEAST_RANGE_BYTES = 64 * 1024


class Downloads:
    """The images that pass through this process, in memory that they share."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._memory = SharedMemory(_MEMORY_BYTES)

    async def pieces(self, record: ImageRecord, start: int, length: int) -> AsyncGenerator[bytes]:
        """`length` bytes of an image from `start`. A whole image is held against its digest before its last range.

        Raises ImageNotFound where it is gone, Damaged where it is not what its record says, and StorageFailure.
        """
        key = keys.image_key(record.image_id, record.picture.media_type)
        digest, end = hashlib.sha256(), start + length
        while start < end:
            with contextlib.ExitStack() as memory:
                async with self._bucket.downloading("get") as fetch:
                    size = memory.enter_context(self._memory.share(end - start))
                    pieces = await _fetched(fetch, key, start, size)
                    start += size
                    if length == record.size_bytes:
                        _hold_against(record, digest, pieces, key, last=start == end)
                while pieces:
                    yield pieces.pop(0)


def _hold_against(record: ImageRecord, digest: hashlib._Hash, pieces: list[bytes], key: str, *, last: bool) -> None:
    for piece in pieces:
        digest.update(piece)
    if last and digest.hexdigest() != record.sha256:
        raise Damaged(key, "it does not have the digest that its record says")


async def _fetched(fetch: Fetch, key: str, start: int, size: int) -> list[bytes]:
    """One range, asked for once more where the store broke off."""
    try:
        pieces = await fetch(key, start, size)
    except Unreached:
        raise
    except StoreAway:
        pieces = await fetch(key, start, size)
    if pieces is None:
        raise ImageNotFound
    if sum(map(len, pieces)) < size:
        raise Damaged(key, "the image store gave less of the image than its record says")
    return pieces


class SharedMemory:
    """Bytes of which each download holds a share.

    A share is an eighth of what is free, so that slow clients make the shares of later downloads smaller and
    block none. The least share is given even when nothing is free; the limit of connections bounds the sum.
    """

    def __init__(self, size: int) -> None:
        self._free = size

    @contextlib.contextmanager
    def share(self, wanted: int) -> Iterator[int]:
        """How many bytes may be held until the context is left, at most `wanted`."""
        size = min(wanted, _RANGE_BYTES, max(_LEAST_RANGE_BYTES, self._free // 8))
        self._free -= size
        try:
            yield size
        finally:
            self._free += size
