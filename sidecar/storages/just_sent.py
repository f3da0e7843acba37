"""Local files of images that were sent a moment ago, so that what a result shows of them need not be fetched back.

Bounded in bytes and in time. A file may go at any moment; its image is then read from the store.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from sidecar.domain import ImageId
from sidecar.errors import StorageFailure
from sidecar.ports import Clock
from sidecar.storages.staging import LocalFile

KEPT_BYTES = 32 * 1024 * 1024
"""What is kept at most; the oldest goes first."""
KEPT_SECONDS = 120.0
"""Enough for the images of one generation, which are made one after the other and shown together."""


@dataclass(frozen=True, slots=True)
class _Kept:
    file: LocalFile
    size: int
    end: asyncio.Task[None]


class JustSent:
    """Takes staged files over; `discard` removes one from the disk."""

    def __init__(self, clock: Clock, discard: Callable[[LocalFile], Awaitable[None]]) -> None:
        self._clock = clock
        self._discard = discard
        self._kept: dict[ImageId, _Kept] = {}
        self.size = 0
        """Bytes of all that is kept."""
        self._going: set[asyncio.Task[None]] = set()

    def keep(self, image_id: ImageId, file: LocalFile, size: int) -> None:
        """Take over a staged file of `size` bytes, unless it is too large: then it goes with its stage."""
        if size > KEPT_BYTES:
            return
        file.moved = True
        self._kept[image_id] = _Kept(file, size, asyncio.create_task(self._end(image_id)))
        self.size += size
        self.shrink(KEPT_BYTES)

    def shrink(self, size: float) -> None:
        """Let go of the oldest until no more than `size` bytes are kept."""
        while self._kept and self.size > size:
            self.drop(next(iter(self._kept)))

    def path(self, image_id: ImageId) -> Path | None:
        """Where the file is, while it is there."""
        kept = self._kept.get(image_id)
        return None if kept is None else kept.file.path

    def drop(self, image_id: ImageId) -> None:
        """Let go of one now."""
        kept = self._kept.pop(image_id, None)
        if kept is None:
            return
        self.size -= kept.size
        kept.end.cancel()
        going = asyncio.create_task(self._remove(kept.file))
        self._going.add(going)
        going.add_done_callback(self._going.discard)

    async def close(self) -> None:
        """Let go of everything."""
        for image_id in list(self._kept):
            self.drop(image_id)
        await asyncio.gather(*self._going)

    async def _end(self, image_id: ImageId) -> None:
        await self._clock.sleep(KEPT_SECONDS)
        self.drop(image_id)

    async def _remove(self, file: LocalFile) -> None:
        with contextlib.suppress(StorageFailure):  # swept with the leftovers
            await self._discard(file)
