"""Thumbnails: each is made the first time a client asks for it, once however many ask, and kept in the store.

That a picture has none is remembered too, so that asking again costs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from sidecar.domain import ImageId, StoredImage
from sidecar.errors import NoPreview, StorageFailure, UndecodablePicture
from sidecar.ports import Clock, Storage, Thumbnailer

THUMBNAIL_PIXELS = 512
THUMBNAIL_BYTES = 75_000  # 100,000 characters in base64
_CACHED_BYTES = 4 * 1024 * 1024
_WHOLE_IMAGES = 1
"""That are fetched at once to be made small. More would wait in memory, because one is decoded at a time."""
_REMEMBERED_REFUSALS = 4096


class Thumbnails:
    """`read` gives a whole image, its digest checked, rather than a file that may be swapped meanwhile."""

    def __init__(
        self,
        storage: Storage,
        thumbnailer: Thumbnailer,
        read: Callable[[StoredImage], Awaitable[bytes]],
        clock: Clock,
    ) -> None:
        self._storage = storage
        self._thumbnailer = thumbnailer
        self._read = read
        self._cache = _ByteCache(_CACHED_BYTES)
        self._refusals = _Refusals(clock)
        self._under_way: dict[ImageId, asyncio.Task[bytes]] = {}
        self._whole_images = asyncio.Semaphore(_WHOLE_IMAGES)

    async def get(self, image_id: ImageId, max_bytes: int) -> bytes:
        """A WebP of at most 512 px and `max_bytes`.

        Raises ImageNotFound, UndecodablePicture, NoPreview, DecoderUnavailable or StorageFailure.
        """
        stored = await self._storage.get(image_id)  # an expired image has no thumbnail either
        self._refusals.check(image_id)
        data = self._cache.get(image_id)
        if data is None:
            task = self._under_way.get(image_id)
            if task is None:
                task = asyncio.create_task(self._make(stored))
                self._under_way[image_id] = task
                task.add_done_callback(lambda _: self._under_way.pop(image_id))
            data = await asyncio.shield(task)
        if len(data) > max_bytes:
            return await self._thumbnailer.thumbnail(data, pixels=THUMBNAIL_PIXELS, max_bytes=max_bytes)
        return data

    def forget(self, image_id: ImageId) -> None:
        """Its image is deleted."""
        self._cache.drop(image_id)
        self._refusals.drop(image_id)

    async def _make(self, stored: StoredImage) -> bytes:
        image_id = stored.record.image_id
        data = None if self._storage.at_hand(image_id) else await self._storage.thumbnail(image_id)
        if data is None:
            try:
                async with self._whole_images:
                    data = await self._thumbnailer.thumbnail(
                        await self._read(stored), pixels=THUMBNAIL_PIXELS, max_bytes=THUMBNAIL_BYTES
                    )
            except (UndecodablePicture, NoPreview) as refusal:
                self._refusals.remember(image_id, refusal)
                raise
            with contextlib.suppress(StorageFailure):  # a full disk still shows what is there
                await self._storage.put_thumbnail(image_id, data)
        self._cache.put(image_id, data)
        return data


class _Refusals:
    """Why pictures have no thumbnail: the most recent ones, each as long as its `retry_after` says, or for good."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._entries: OrderedDict[ImageId, tuple[UndecodablePicture | NoPreview, float]] = OrderedDict()

    def remember(self, image_id: ImageId, refusal: UndecodablePicture | NoPreview) -> None:
        seconds = math.inf if refusal.retry_after is None else refusal.retry_after
        self._entries[image_id] = copy.copy(refusal), self._clock.monotonic() + seconds
        while len(self._entries) > _REMEMBERED_REFUSALS:
            self._entries.popitem(last=False)

    def check(self, image_id: ImageId) -> None:
        """Raises what was raised before; a copy, because an error grows with each place it passes."""
        refusal, until = self._entries.get(image_id, (None, 0.0))
        if refusal is not None and self._clock.monotonic() < until:
            raise copy.copy(refusal)

    def drop(self, image_id: ImageId) -> None:
        self._entries.pop(image_id, None)


class _ByteCache:
    """The most recently used thumbnails, bounded by their bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._entries: OrderedDict[ImageId, bytes] = OrderedDict()

    def get(self, image_id: ImageId) -> bytes | None:
        data = self._entries.get(image_id)
        if data is not None:
            self._entries.move_to_end(image_id)
        return data

    def drop(self, image_id: ImageId) -> None:
        self._size -= len(self._entries.pop(image_id, b""))

    def put(self, image_id: ImageId, data: bytes) -> None:
        self._size += len(data) - len(self._entries.pop(image_id, b""))
        self._entries[image_id] = data
        while self._size > self._limit:
            self._size -= len(self._entries.popitem(last=False)[1])
