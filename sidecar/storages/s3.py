"""Images in a bucket that many pods share.

The keys are those of the directory (keys.py), so a plain listing shows the newest records first and the earliest expiry
first. An image is staged on local disk, sent with its known length, and visible once its record is there. While the
store is away, finished images go to a directory store beside it, the spool: this pod serves them at the same address
and sends them on when the store is back, also after a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sidecar.config import S3Settings, StorageSettings
from sidecar.domain import (
    Deletion,
    GeneratedImage,
    ImageId,
    ImageRecord,
    Inventory,
    RecordPage,
    StoredImage,
    owner_tag,
)
from sidecar.errors import ImageNotFound, InvalidRequest, StorageFailure
from sidecar.ports import (
    EXAMINED_RECORDS,
    Clock,
    ExpiredImage,
    Findings,
    Link,
    Observer,
    OpenFile,
    RecordFilter,
    StagedFile,
)
from sidecar.storages import keys, listed_keys, s3_links
from sidecar.storages.disk import LEFTOVER_SECONDS
from sidecar.storages.file import FileStorage
from sidecar.storages.recent import RecentImages
from sidecar.storages.records import encode_record
from sidecar.storages.s3_bucket import BACKEND, Bucket
from sidecar.storages.s3_check import StoreCheck
from sidecar.storages.s3_client import opened_bucket
from sidecar.storages.s3_deletions import CLAIMS, BucketDeletions
from sidecar.storages.s3_download import Downloads
from sidecar.storages.s3_errors import Damaged
from sidecar.storages.s3_inventory import BucketInventory
from sidecar.storages.s3_jobs import S3Jobs
from sidecar.storages.s3_local import LocalRoom
from sidecar.storages.s3_records import BucketRecords, told_as_of_the_image
from sidecar.storages.s3_spool import WaitingImages, tell
from sidecar.storages.undisturbed import to_its_end

_SPOOL_SHARE = 0.5
"""Of what is free on the spool's volume: its bound where none was given."""


@asynccontextmanager
async def opened_s3(
    settings: StorageSettings, *, clock: Clock, observer: Observer, sends: bool = True
) -> AsyncIterator[S3Storage]:
    """The store between start and stop. A bucket that cannot be used yet is `check`'s to report.

    `sends` False leaves alone what waits in the spool, which may be another process's.
    """
    if settings.s3 is None:
        raise ValueError("no bucket was configured")
    spool = FileStorage(
        settings.s3.spool, max_bytes=settings.max_bytes, free_share=_SPOOL_SHARE, clock=clock, observer=observer
    )
    async with spool.opened() as local, opened_bucket(settings.s3, clock, observer) as bucket:
        storage = S3Storage(bucket, local, settings, settings.s3, clock=clock, observer=observer)
        sending = []
        if sends:
            with contextlib.suppress(StorageFailure):  # the readiness check asks again until it answers
                await local.delete_aside()
                await storage.waiting.recall()
            sending.append(asyncio.create_task(storage.waiting.keep_sending()))
        try:
            yield storage
        finally:
            for task in sending:
                task.cancel()
            await asyncio.gather(*sending, return_exceptions=True)
            await storage.just_sent.close()
            if not bucket.away:
                await bucket.forget_probe(storage.instance)


class S3Storage:
    """The `Storage` port on a bucket, with a local directory for what is under way to it."""

    backend = BACKEND

    def __init__(
        self,
        bucket: Bucket,
        spool: FileStorage,
        settings: StorageSettings,
        s3: S3Settings,
        *,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self.instance = secrets.token_hex(6)
        self._bucket = bucket
        self._spool = spool
        self._s3 = s3
        self._cache_control = f"private, max-age={int(settings.cache_max_age)}"
        self._base_url = s3_links.base_url(s3.public_endpoint_url or bucket.endpoint, s3.bucket, s3.addressing_style)
        self._clock = clock
        self._observer = observer
        self._recent = RecentImages(clock)
        self._records = BucketRecords(bucket)
        self._inventory = BucketInventory(bucket)
        self._deletions = BucketDeletions(bucket, self._records, self._forget)
        self._downloads = Downloads(bucket)
        self.waiting = WaitingImages(spool, self.send, clock=clock, observer=observer)
        self._check = StoreCheck(bucket, spool, self.waiting, instance=self.instance, clock=clock)
        self._local = LocalRoom(spool, lambda: self.held, clock)
        self.just_sent = self._local.just_sent
        self.jobs = S3Jobs(bucket, clock, observer)
        """The generations kept beside the images."""

    # --- an image on its way in ---------------------------------------------------------------------------------------

    def reserve(self, size: int) -> contextlib.AbstractContextManager[None]:
        """Room on the local disk, where every image is staged and may have to wait."""
        return self._local.reserve(size)

    def stage(self, image_id: ImageId, expected: int) -> contextlib.AbstractAsyncContextManager[StagedFile]:
        return self._local.stage(image_id, expected)

    async def commit(self, image: GeneratedImage, record: ImageRecord) -> StoredImage:
        """Of an image that has cost a GPU's time nothing is lost: what cannot be sent now waits in the spool.

        That holds for a caller that is cancelled, too: this pod, or the next container of it, sends the image later.
        """
        try:
            await to_its_end(self._spool.finish(image.path, record))
            await self.send(image.path, record)
        except Exception as error:
            tell(self._observer, "sending an image", error)
            return await to_its_end(self.waiting.hold(image, record))
        except BaseException:
            with contextlib.suppress(StorageFailure):
                await to_its_end(self.waiting.hold(image, record))
            raise
        stored = StoredImage(record=record)
        self._recent.remember(stored)
        await self._local.keep(record.image_id, image.path, image.size_bytes)
        return stored

    async def send(self, file: Path, record: ImageRecord) -> None:
        """A local file with its place in the expiry index, then its record, from which on it is seen."""
        if self._bucket.away:  # a small request finds out sooner than an upload whether the store is back
            await self._bucket.check(self.instance, was_writable=False)
        image_key = keys.image_key(record.image_id, record.picture.media_type)
        about: dict[str, Any] = {
            "ContentType": record.picture.media_type,
            "CacheControl": self._cache_control,
            "Metadata": {"sha256": record.sha256},
        }
        sending = [self._bucket.upload("commit", image_key, file, record.size_bytes, **about)]
        if record.expires is not None:
            expiry_key = keys.expiry_key(record.expires, record.image_id)
            sending.append(self._bucket.put("commit", expiry_key, b"", "application/octet-stream"))
        for outcome in await asyncio.gather(*sending, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
        await self._bucket.put("commit", keys.record_key(record.image_id), encode_record(record))

    @property
    def held(self) -> int:
        return len(self.waiting)

    async def send_held(self) -> None:
        await self.waiting.send_all()

    # --- reading ------------------------------------------------------------------------------------------------------

    async def get(self, image_id: ImageId) -> StoredImage:
        if image_id in self.waiting:
            with contextlib.suppress(ImageNotFound):  # unless it was sent in this moment
                return replace(await self._spool.get(image_id), held=True)
        stored = self._recent.recall(image_id)
        if stored is None:
            stored = await self._read(image_id)
            self._recent.remember(stored)
        if stored.record.expired(self._clock.now()):
            raise ImageNotFound
        return stored

    async def _read(self, image_id: ImageId) -> StoredImage:
        """Both halves must be there: either may have been deleted behind our back."""
        with told_as_of_the_image():
            record = await self._records.read(image_id, "get")
            if record is None or not await self._bucket.holds(
                "get", keys.image_key(image_id, record.picture.media_type), record.size_bytes
            ):
                raise ImageNotFound
        return StoredImage(record=record)

    async def open(self, stored: StoredImage, head: int) -> OpenFile:
        return await self._spool.open(stored, head)

    async def stream(self, stored: StoredImage, start: int, length: int) -> AsyncGenerator[bytes]:
        record = stored.record
        sent = 0
        if record.image_id in self.waiting:
            with contextlib.suppress(ImageNotFound):  # what was sent in this moment goes on from the bucket
                async for piece in self._spool.stream(stored, start, length):
                    sent += len(piece)
                    yield piece
        if sent == length:
            return
        with told_as_of_the_image():
            async with contextlib.aclosing(self._downloads.pieces(record, start + sent, length - sent)) as pieces:
                async for piece in pieces:
                    yield piece

    async def link(self, stored: StoredImage) -> Link | None:
        if self._s3.delivery == "proxy" or stored.record.image_id in self.waiting:
            return None
        now = self._clock.now()
        link = s3_links.link(
            self._base_url,
            self._bucket.prefix + keys.image_key(stored.record.image_id, stored.record.picture.media_type),
            await self._bucket.signer(),
            region=self._bucket.region,
            life=self._s3.url_ttl,
            now=now,
            until=stored.record.expires or now + timedelta(seconds=s3_links.LONGEST),
        )
        return link if link.expires > now + timedelta(seconds=1) else None

    @property
    def link_origin(self) -> str | None:
        parts = urlsplit(self._base_url)
        return None if self._s3.delivery == "proxy" else f"{parts.scheme}://{parts.netloc}"

    def at_hand(self, image_id: ImageId) -> Path | None:
        return self.just_sent.path(image_id)

    async def thumbnail(self, image_id: ImageId) -> bytes | None:
        if image_id in self.waiting:
            return await self._spool.thumbnail(image_id)
        with contextlib.suppress(Damaged):  # made anew
            return await self._bucket.get("get", keys.thumbnail_key(image_id))
        return None

    async def put_thumbnail(self, image_id: ImageId, data: bytes) -> None:
        if image_id in self.waiting:
            await self._spool.put_thumbnail(image_id, data)
        else:
            await self._bucket.put("commit", keys.thumbnail_key(image_id), data, "image/webp")
            self.just_sent.drop(image_id)

    async def page(
        self, owner: str, *, limit: int, cursor: str | None = None, matches: RecordFilter | None = None
    ) -> RecordPage:
        tag = owner_tag(owner)
        if cursor is not None and not keys.is_cursor(cursor, tag):
            raise InvalidRequest("cursor: not one that this server gave; leave it out to start with the newest image.")
        now = self._clock.now()
        records: list[ImageRecord] = []
        last, examined = None, 0
        async for name, record in self._listed_records(tag, cursor, limit + 1):
            if len(records) == limit or examined == EXAMINED_RECORDS:
                return RecordPage(records=tuple(records), cursor=last)
            last, examined = name, examined + 1
            if record is not None and not record.expired(now) and (matches is None or matches(record)):
                records.append(record)
        return RecordPage(records=tuple(records))

    async def _listed_records(
        self, tag: str, cursor: str | None, at_once: int
    ) -> AsyncIterator[tuple[str, ImageRecord | None]]:
        """One owner's records after the cursor, newest first, so many read side by side."""
        prefix = f"{keys.records_of(tag)}/"
        after = f"{prefix}{cursor[: keys.SHARD_DIGITS]}/{cursor}.json" if cursor else ""
        names: list[str] = []
        page = min(1000, at_once)
        async for entry in self._bucket.entries("list", prefix, listed_keys.recorded_image, after=after, page=page):
            names.append(keys.record_name(entry.names))
            if len(names) == at_once:
                for pair in await self._read_records(names):
                    yield pair
                names = []
        for pair in await self._read_records(names):
            yield pair

    async def _read_records(self, names: list[str]) -> list[tuple[str, ImageRecord | None]]:
        found = await asyncio.gather(*(self._listed_record(keys.image_id_of_record_name(name)) for name in names))
        return list(zip(names, found, strict=True))

    async def _listed_record(self, image_id: ImageId) -> ImageRecord | None:
        """Records never change: one that was read before is not read again."""
        known = self._recent.known(image_id)
        if known is not None:
            return known.record
        record = await self._records.read_if_whole(image_id, "list")
        if record is not None:
            self._recent.learn(StoredImage(record=record))
        return record

    # --- deleting -----------------------------------------------------------------------------------------------------

    async def delete(self, image_id: ImageId) -> Deletion:
        if image_id in self.waiting:
            async with self.waiting.alone_with(image_id):
                if image_id in self.waiting:
                    return await self._delete_waiting(image_id)
        return await self._deletions.one(image_id)

    async def _delete_waiting(self, image_id: ImageId) -> Deletion:
        """Also in the bucket, where it may be after all: the answer to its sending may have been lost."""
        expires = None
        with contextlib.suppress(ImageNotFound):
            expires = (await self._spool.get(image_id)).record.expires
        deletion = await self.waiting.delete(image_id)
        with contextlib.suppress(StorageFailure):
            await self._deletions.remove([(image_id, keys.expiry_key(expires, image_id) if expires else None)])
        return deletion

    async def delete_expired(self, expired: Sequence[ExpiredImage]) -> list[Deletion | BaseException]:
        return await self._deletions.expired(expired)

    def _forget(self, image_id: ImageId) -> None:
        self._recent.forget(image_id)
        self.just_sent.drop(image_id)

    # --- upkeep -------------------------------------------------------------------------------------------------------

    async def expired(self, now: datetime) -> AsyncIterator[ExpiredImage]:
        async for entry in self._bucket.entries("list", "expiry/", listed_keys.expiry_entry, cleans=True):
            if entry.names.expires > now:
                return
            yield ExpiredImage(entry.names.image_id, entry.key)

    async def delete_leftovers(self, now: datetime) -> int:
        """Staged files, and the marks of pods that have died."""
        before = now - timedelta(seconds=LEFTOVER_SECONDS)
        marks: tuple[tuple[str, Callable[[str], object]], ...] = (
            (CLAIMS, listed_keys.deletion_claim),
            ("probe/", listed_keys.probing_instance),
        )
        left = [
            entry.key
            for prefix, names in marks
            async for entry in self._bucket.entries("list", prefix, names, cleans=True)
            if entry.modified < before and entry.names != self.instance
        ]
        await self._bucket.delete("delete", left)
        return await self._spool.delete_leftovers(now)

    async def clock_offset(self) -> float | None:
        return await self._bucket.clock_offset()

    async def take_inventory(self, now: datetime | None) -> Inventory | None:
        return None if now is None else await self._inventory.take(now)

    async def check(self) -> None:
        """The bucket, and the spool, without which no image can be taken.

        Raises StoreAway where images are taken all the same, and StorageFailure where they are not.
        """
        await self._check.run()

    @property
    def findings(self) -> Findings | None:
        return self._check.findings
