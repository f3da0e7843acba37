"""The use cases: generate, show, list, delete. Knows only ports."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import stat
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from sidecar.config import StorageSettings
from sidecar.core.generation import Admission, Generation, Lane, Predict
from sidecar.core.thumbnails import THUMBNAIL_BYTES, Thumbnails
from sidecar.domain import (
    ANONYMOUS,
    GeneratedImage,
    GenerationRequest,
    ImageId,
    ImageRecord,
    RecordPage,
    StoredImage,
    expiry,
    owner_tag,
)
from sidecar.errors import ImageDamaged, InvalidRequest, ShuttingDown, SidecarError, StorageFailure, TakenElsewhere
from sidecar.events import Crashed, FileDamaged, GenerationEnded, ImageLost, ImageStored, PredictEnded, PredictStarted
from sidecar.ports import Clock, Link, Observer, OpenFile, StagedFile, Storage, Thumbnailer
from sidecar.spans import span

_LOOK_SECONDS = 2.0


class ImageService:
    """Holds the lanes, one per model, and every predict in flight."""

    def __init__(
        self,
        *,
        lanes: Mapping[str, Lane],
        storage: Storage,
        thumbnailer: Thumbnailer,
        settings: StorageSettings,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self.lanes = lanes
        self._storage = storage
        self._settings = settings
        self._clock = clock
        self._observer = observer
        self._predicts: set[asyncio.Task[StoredImage]] = set()
        self._thumbnailer = thumbnailer
        self._thumbnails = Thumbnails(storage, thumbnailer, self.read, clock)
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False

    # --- generating ---------------------------------------------------------------------------------------------------

    def lane(self, model: str | None) -> Lane:
        """The lane of a model by name, the default one for None. Raises InvalidRequest naming the models there are."""
        if model is None:
            return next(iter(self.lanes.values()))
        if model not in self.lanes:
            raise InvalidRequest(f"model: there is no model of this name; available: {', '.join(self.lanes)}")
        return self.lanes[model]

    def submit(
        self,
        requests: Sequence[GenerationRequest],
        owner: str,
        image_ids: Sequence[ImageId],
        admit: Admission,
        *,
        adopted: bool = False,
    ) -> Generation:
        """Queue one generation of one image per request, all of one model. The images get `image_ids`.

        `admit` is awaited when an image's turn has come, before its runtime is asked; it raises to keep that from
        happening. Raises QueueFull, StorageFull or ShuttingDown before any work is begun.
        """
        lane = self.lane(requests[0].model)
        try:
            return self._submit(lane, requests, owner, image_ids, admit)
        except SidecarError as error:
            if not adopted:  # whose caller was told long ago that it is taken
                self._observer(
                    GenerationEnded(model=lane.settings.name, outcome="rejected", seconds=0.0, reason=error.reason)
                )
            raise

    def _submit(
        self,
        lane: Lane,
        requests: Sequence[GenerationRequest],
        owner: str,
        image_ids: Sequence[ImageId],
        admit: Admission,
    ) -> Generation:
        if self.draining:
            raise ShuttingDown("The sidecar is shutting down and takes no new generations.", retry_after=30)
        with ExitStack() as undo:
            reservations = [
                undo.enter_context(self._storage.reserve(self._expected_bytes(lane, request))) for request in requests
            ]
            place = lane.queue.join(len(requests), retry_after=lane.retry_after)
            rooms = undo.pop_all()
        del reservations
        predicts = [
            self._begin(lane, Predict(image_id, request, place.next_turn(), admit), owner)
            for image_id, request in zip(image_ids, requests, strict=True)
        ]
        whole = asyncio.gather(*(predict.task for predict in predicts), return_exceptions=True)
        whole.add_done_callback(lambda _: rooms.close())
        return Generation(lane, place, predicts, self._clock, self._observer)

    def _expected_bytes(self, lane: Lane, request: GenerationRequest) -> int:
        """What an image of this size takes at most as four uncompressed channels of eight bits."""
        width, height = lane.settings.default_size
        return min(self._settings.max_image_bytes, 4 * (request.width or width) * (request.height or height) + 65536)

    def _begin(self, lane: Lane, predict: Predict, owner: str) -> Predict:
        predict.task = asyncio.create_task(self._make(lane, predict, owner), name=f"predict {predict.image_id}")
        self._predicts.add(predict.task)
        self._idle.clear()
        predict.task.add_done_callback(lambda task: self._ended(lane, predict, task))
        return predict

    def _ended(self, lane: Lane, predict: Predict, task: asyncio.Task[StoredImage]) -> None:
        if predict.started is None and predict.turn.done() and not predict.turn.cancelled():
            lane.queue.release()  # the slot came in the moment of cancellation
        self._predicts.discard(task)
        if not self._predicts:
            self._idle.set()
        error = predict.error  # also marks the task's exception as seen
        if error is not None and not isinstance(error, SidecarError):
            self._observer(Crashed(what="predict", error=error))
        if isinstance(error, TakenElsewhere):
            return
        if predict.abandoned and predict.started is not None and error is not None:
            reason = error.reason if isinstance(error, SidecarError) else "internal"
            self._observer(ImageLost(model=predict.request.model, reason=reason, message=str(error)))

    async def _make(self, lane: Lane, predict: Predict, owner: str) -> StoredImage:
        queued = self._clock.monotonic()
        with span("queue", model=lane.settings.name):
            await predict.turn
        predict.started = self._clock.monotonic()
        waited = predict.started - queued
        with ExitStack() as slot:
            slot.callback(lane.queue.release)
            await predict.admit()
            self._observer(PredictStarted(model=lane.settings.name, waited=waited))
            expected = self._expected_bytes(lane, predict.request)
            async with self._storage.stage(predict.image_id, expected) as staged:
                with span("runtime", model=lane.settings.name):
                    image, seconds = await self._predict(lane, predict, staged)
                slot.close()  # the runtime is free; storing need not hold it up
                black = await self._is_black(image)
                record = self._record(predict, image, owner, waited, seconds, black=black)
                with span("store", backend=self._storage.backend, bytes=image.size_bytes):
                    stored = await self._storage.commit(image, record)
        self._observer(ImageStored(backend=self._storage.backend, record=record, late=predict.abandoned))
        return stored

    async def _predict(self, lane: Lane, predict: Predict, staged: StagedFile) -> tuple[GeneratedImage, float]:
        started = self._clock.monotonic()
        outcome = "internal"
        try:
            image = await lane.runtime.generate(predict.request, staged)
            outcome = "completed"
            lane.recent_seconds.append(self._clock.monotonic() - started)
        except SidecarError as error:
            outcome = error.reason
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            seconds = self._clock.monotonic() - started
            self._observer(PredictEnded(model=lane.settings.name, outcome=outcome, seconds=seconds))
        return image, seconds

    async def _is_black(self, image: GeneratedImage) -> bool:
        """What cannot be told in a moment is not black. Only sparse files are decoded for it."""
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                return image.sparse is not None and await self._thumbnailer.is_black(image.sparse)
        except (SidecarError, OSError):  # a time-out is an OSError
            return False

    def _record(
        self, predict: Predict, image: GeneratedImage, owner: str, waited: float, seconds: float, *, black: bool
    ) -> ImageRecord:
        created = predict.image_id.created
        return ImageRecord(
            image_id=predict.image_id,
            owner=owner,
            request=predict.request,
            picture=image.picture,
            size_bytes=image.size_bytes,
            sha256=image.sha256,
            seed_applied=image.seed_applied,
            dropped_parameters=image.dropped_parameters,
            created=created,
            expires=expiry(self._clock.now(), self._settings.image_ttl),
            queue_seconds=waited,
            runtime_seconds=seconds,
            black=black,
        )

    # --- ending -------------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether anything is queued or in flight."""
        return bool(self._predicts)

    async def drained(self) -> None:
        """Return once nothing is queued or in flight."""
        await self._idle.wait()

    async def settle(self, grace: float) -> None:
        """Refuse new generations, and let those under way finish within `grace` seconds."""
        self.draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self.drained()

    async def drain(self, grace: float) -> None:
        """Settle, then give up the rest."""
        await self.settle(grace)
        rest = list(self._predicts)
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def send_held(self, seconds: float) -> int:
        """Send what waits on this pod, which may be its last chance; how many images stay."""
        if self._storage.held and seconds > 0:
            with contextlib.suppress(TimeoutError, StorageFailure):
                async with asyncio.timeout(seconds):
                    await self._storage.send_held()
        return self._storage.held

    # --- showing ------------------------------------------------------------------------------------------------------

    async def get(self, image_id: ImageId) -> StoredImage:
        """Raises ImageNotFound for unknown and expired images, StorageFailure for a store in trouble."""
        return await self._storage.get(image_id)

    async def open(self, stored: StoredImage, head: int) -> OpenFile:
        """The local file of an image that has one. Raises ImageNotFound, StorageFailure."""
        return await self._storage.open(stored, head)

    def stream(self, stored: StoredImage, start: int, length: int) -> AsyncIterator[bytes]:
        """Part of an image's bytes. Raises ImageNotFound, StorageFailure."""
        return self._storage.stream(stored, start, length)

    async def read(self, stored: StoredImage) -> bytes:
        """A whole image, for those that are small enough. Raises ImageNotFound, ImageDamaged, StorageFailure."""
        record = stored.record
        path = self._storage.at_hand(record.image_id)
        data = None if path is None else await asyncio.to_thread(_local_bytes, path, record.size_bytes)
        if data is None:
            data = await self._stored_bytes(stored)
        if not await asyncio.to_thread(_fits, data, record):
            what = f"image {record.image_id}"
            reason = "its bytes do not fit its digest"
            self._observer(FileDamaged(backend=self._storage.backend, key=what, reason=reason))
            raise ImageDamaged(reason)
        return data

    async def _stored_bytes(self, stored: StoredImage) -> bytes:
        size = stored.record.size_bytes
        if stored.path is None:
            return b"".join([data async for data in self.stream(stored, 0, size)])
        file = await self._storage.open(stored, 0)
        try:
            return await asyncio.to_thread(_whole, file.fileno(), size)
        except OSError as error:
            raise StorageFailure("The image store cannot be used at the moment.", retry_after=30) from error
        finally:
            file.release()

    async def link(self, stored: StoredImage) -> Link | None:
        """Where a client gets the image without the sidecar, if that is possible and wanted."""
        return await self._storage.link(stored)

    @property
    def link_origin(self) -> str | None:
        """Where those links lead, for the policies of the pages that show images."""
        return self._storage.link_origin

    async def list_images(
        self,
        *,
        limit: int,
        cursor: str | None = None,
        model: str | None = None,
        prompt_contains: str | None = None,
        owner: str = ANONYMOUS,
    ) -> RecordPage:
        """One owner's images, newest first; `prompt_contains` without regard to case.

        A short page may still carry a cursor. Raises InvalidRequest for a cursor that is none.
        """
        wanted = prompt_contains.casefold() if prompt_contains else None

        def matches(record: ImageRecord) -> bool:
            return (model is None or record.request.model == model) and (
                wanted is None or wanted in record.request.prompt.casefold()
            )

        return await self._storage.page(owner, limit=limit, cursor=cursor, matches=matches if model or wanted else None)

    async def delete(self, image_id: ImageId, owner: str = ANONYMOUS) -> bool:
        """Remove image, thumbnail and record; whether the owner had one. Raises StorageFailure."""
        if image_id.owner_tag != owner_tag(owner):
            return False
        self._thumbnails.forget(image_id)
        return (await self._storage.delete(image_id)).first

    async def thumbnail(self, image_id: ImageId, max_bytes: int = THUMBNAIL_BYTES) -> bytes:
        """A WebP of at most 512 px and `max_bytes`.

        Raises ImageNotFound, UndecodablePicture, NoPreview, DecoderUnavailable or StorageFailure.
        """
        return await self._thumbnails.get(image_id, max_bytes)


def _whole(descriptor: int, size: int) -> bytes:
    """The first `size` bytes of a file, or as many as it has. Blocks; raises OSError."""
    pieces, read = [], 0
    while read < size and (piece := os.pread(descriptor, size - read, read)):
        pieces.append(piece)
        read += len(piece)
    return b"".join(pieces)


def _local_bytes(path: Path, size: int) -> bytes | None:
    """A file of that size; None where it has gone in this moment, or something else is in its place. Blocks."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        return file.read(size) if stat.S_ISREG(status.st_mode) and status.st_size == size else None


def _fits(data: bytes, record: ImageRecord) -> bool:
    return hashlib.sha256(data).hexdigest() == record.sha256
