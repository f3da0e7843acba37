"""The local disk of a pod whose images go to a bucket: room for those under way and waiting, and for those just sent.

Files that were just sent may take only room that nothing else needs.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from sidecar.domain import ImageId
from sidecar.errors import StorageFailure, StorageFull
from sidecar.ports import Clock, StagedFile
from sidecar.storages.file import FileStorage
from sidecar.storages.just_sent import JustSent

_KEPT_SHARE = 0.25
"""Of what is free on the spool's volume: what may be kept of images that were just sent."""


class LocalRoom:
    """`held` tells how many images wait in the spool."""

    def __init__(self, spool: FileStorage, held: Callable[[], int], clock: Clock) -> None:
        self._spool = spool
        self._held = held
        self.just_sent = JustSent(clock, spool.discard)

    @contextlib.contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Where every image is staged and may have to wait. Raises StorageFull."""
        with contextlib.ExitStack() as room:
            try:
                room.enter_context(self._spool.reserve(size))
            except StorageFull as error:
                held = self._held()
                waiting = f": {held} finished images wait on it until the image store takes them" if held else ""
                raise StorageFull(
                    f"This server has no room for another image of this size{waiting}. Try again later.",
                    retry_after=error.retry_after,
                    detail=f"The spool (SPOOL_PATH) is full, {held} images wait in it: {error.detail}",
                ) from error
            self.just_sent.shrink(self._spool.room)
            yield

    @asynccontextmanager
    async def stage(self, image_id: ImageId, expected: int) -> AsyncIterator[StagedFile]:
        async with contextlib.AsyncExitStack() as stack:
            try:
                staged = await stack.enter_async_context(self._spool.staging.stage(image_id, expected, self.reserve))
            except StorageFull:  # the disk is
                await self.just_sent.close()
                staged = await stack.enter_async_context(self._spool.staging.stage(image_id, expected, self.reserve))
            yield staged

    async def keep(self, image_id: ImageId, path: Path, size: int) -> None:
        """Take over the staged file of an image that was sent, if there is room to spare."""
        with contextlib.suppress(StorageFailure):
            file = self._spool.staging.file(path)
            await self._spool.put_aside(file)
            spare = _KEPT_SHARE * (await self._spool.free_bytes() + self.just_sent.size)
            self.just_sent.keep(image_id, file, size)
            self.just_sent.shrink(min(self._spool.room, spare))
