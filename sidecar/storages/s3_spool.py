"""Images that wait on this pod for a bucket that is away, in a directory store, and are sent when it is back.

What an earlier process of the pod could not send is recalled and sent as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from weakref import WeakValueDictionary

from sidecar.domain import Deletion, GeneratedImage, ImageId, ImageRecord, StoredImage
from sidecar.errors import ImageNotFound, SidecarError, StoreAway
from sidecar.events import Crashed, Spooled, SpooledImageLost
from sidecar.ports import Clock, Observer
from sidecar.storages.file import FileStorage

_SEND_AGAIN_SECONDS = 5.0

Send = Callable[[Path, ImageRecord], Awaitable[None]]
"""How a local file gets to where it stays."""


class WaitingImages:
    """Those in `files` that `send` has not brought away yet."""

    def __init__(self, files: FileStorage, send: Send, *, clock: Clock, observer: Observer) -> None:
        self._files = files
        self._send = send
        self._clock = clock
        self._observer = observer
        self._waiting: dict[ImageId, str] = {}
        """With the models that made them."""
        self._locks: WeakValueDictionary[ImageId, asyncio.Lock] = WeakValueDictionary()
        self._recalled = False
        self._store_is_back = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, image_id: ImageId) -> bool:
        return image_id in self._waiting

    async def hold(self, image: GeneratedImage, record: ImageRecord) -> StoredImage:
        """Keep a staged image until it is sent. Raises StorageFailure."""
        waiting = await self._files.commit(image, record)
        self._waits(record)
        self._observer(Spooled(images=len(self._waiting)))
        return replace(waiting, held=True)

    def _waits(self, record: ImageRecord) -> None:
        self._waiting[record.image_id] = record.request.model

    def alone_with(self, image_id: ImageId) -> asyncio.Lock:
        """The lock for sending or deleting a waiting image: a deleted image must not be sent afterwards."""
        return self._locks.setdefault(image_id, asyncio.Lock())

    async def delete(self, image_id: ImageId) -> Deletion:
        """Raises StorageFailure; then the image waits as before."""
        deletion = await self._files.delete(image_id)
        self._waiting.pop(image_id, None)
        self._observer(Spooled(images=len(self._waiting)))
        return deletion

    async def recall(self) -> None:
        """What an earlier process could not send. Raises StorageFailure."""
        if not self._recalled:
            for record in await self._files.everything():
                self._waits(record)
            self._recalled = True
            self._observer(Spooled(images=len(self._waiting)))

    async def keep_sending(self) -> None:
        """Send what waits, at each interval and as soon as the store was seen, until cancelled."""
        while True:
            try:
                await self.recall()
                await self.send_all()
            except Exception as error:
                tell(self._observer, "sending what waits", error)
            await self._until_the_next_try()

    async def _until_the_next_try(self) -> None:
        waits = [
            asyncio.ensure_future(self._store_is_back.wait()),
            asyncio.ensure_future(self._clock.sleep(_SEND_AGAIN_SECONDS)),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            self._store_is_back.clear()

    def store_is_back(self) -> None:
        """Another call reached the store: try again at once."""
        if self._waiting:
            self._store_is_back.set()

    async def send_all(self) -> None:
        """Everything that waits but for what cannot be sent, which the rest must not suffer from. Raises StoreAway."""
        for image_id in sorted(self._waiting, key=str):
            try:
                async with self.alone_with(image_id):
                    if image_id in self._waiting:
                        await self._send_one(image_id)
            except StoreAway:
                raise
            except Exception as error:
                tell(self._observer, "sending what waits", error)

    async def _send_one(self, image_id: ImageId) -> None:
        """It waits until nothing is left of it here: what cannot be deleted is sent once more, which is no harm."""
        model = self._waiting[image_id]
        try:
            stored = await self._files.get_even_expired(image_id)  # the clock may be ahead: the bucket's sweep decides
        except ImageNotFound:
            self._observer(SpooledImageLost(model=model))
        else:
            if stored.path is not None:
                await self._send(stored.path, stored.record)
        await self.delete(image_id)


def tell(observer: Observer, what: str, error: Exception) -> None:
    """Report an unexpected error. What a store in trouble raises is reported elsewhere."""
    if not isinstance(error, SidecarError):
        observer(Crashed(what=what, error=error))
