"""Images in a directory: an emptyDir, or a volume that several pods share.

Every visible file is complete: files are written under `staging/` with this process's name on them, synced, then
renamed into place, the record last. What a killed process has left unfinished is finished by the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import stat
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path

from sidecar.domain import (
    Deletion,
    GeneratedImage,
    ImageId,
    ImageRecord,
    Inventory,
    RecordPage,
    StoredImage,
    owner_tag,
    sortable_time,
)
from sidecar.errors import ImageNotFound, InvalidRequest, StorageFailure, StorageFull
from sidecar.events import CleanupSkipped, ImageRecovered
from sidecar.ports import Clock, ExpiredImage, Link, Observer, OpenFile, RecordFilter, StagedFile
from sidecar.storages import keys
from sidecar.storages.directory import Directory
from sidecar.storages.disk import LEFTOVER_SECONDS, DamagedFile
from sidecar.storages.file_deletions import FileDeletions
from sidecar.storages.file_inventory import ShardCount, ShardInventory
from sidecar.storages.file_jobs import FileJobs
from sidecar.storages.file_records import FileRecords
from sidecar.storages.once import OnceFiles
from sidecar.storages.open_files import OpenFiles
from sidecar.storages.recent import RecentImages
from sidecar.storages.records import encode_record
from sidecar.storages.staging import ASIDE, LocalFile, Staging
from sidecar.storages.unfinished import SETTLED_SECONDS, finish, publish, unfinished

_STREAMED_BYTES = 256 * 1024
_MAX_THUMBNAIL_BYTES = 1024 * 1024
_JOBS_SHARE = 0.25
"""Of the bound: what the records of generations may take before no more are taken on that need one."""


class FileStorage:
    """The `Storage` port on a directory. `max_bytes` bounds it; None leaves that to the volume.

    With `free_share`, None stands for what it holds and that share of what is free when it is first found writable.
    """

    backend = Directory.backend
    findings = None

    def __init__(
        self, root: Path, *, max_bytes: int | None, free_share: float | None = None, clock: Clock, observer: Observer
    ) -> None:
        self._root = root
        self._directory = Directory(root, observer)
        self._tree = self._directory.tree
        self._max_bytes = max_bytes
        self._free_share = free_share
        self._clock = clock
        self._observer = observer
        self._records = FileRecords(self._directory)
        self._deletions = FileDeletions(self._directory, self._records)
        self._inventory = ShardInventory(self._tree)
        self.staging = Staging(self._directory)
        self._open_files = OpenFiles(self._directory)
        self._recent = RecentImages(clock)
        self._used = 0
        self._reserved = 0
        self.jobs = FileJobs(self._directory, observer, admit=self._admit_job)
        """The generations kept beside the images."""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[FileStorage]:
        """The store between start and stop. A directory that cannot be written yet is `check`'s to report."""
        try:
            with contextlib.suppress(StorageFailure):
                await self.check()
                if self._max_bytes is not None:
                    await self.jobs.take_inventory()
                    await self.take_inventory(None)
            yield self
        finally:
            self._directory.close()

    # --- an image on its way in ---------------------------------------------------------------------------------------

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        if self._max_bytes is not None and size > self.room:
            raise StorageFull(
                f"The image store is full: {self._used + self.jobs.size_bytes:,} of {self._max_bytes:,} bytes are used "
                f"and {self._reserved:,} are reserved. Delete images that are no longer needed, or try again when some "
                "have expired.",
                retry_after=60,
            )
        self._reserved += size
        try:
            yield
        finally:
            self._reserved -= size

    @property
    def room(self) -> float:
        """What is neither used nor reserved of the bound, in bytes."""
        if self._max_bytes is None:
            return math.inf
        return self._max_bytes - self._used - self.jobs.size_bytes - self._reserved

    def _admit_job(self, size: int) -> None:
        """Many records must not keep images from being made. Raises StorageFull."""
        if self._max_bytes is not None and self.jobs.size_bytes + size > _JOBS_SHARE * self._max_bytes:
            raise StorageFull(
                "The image store has no room for the record of another generation, which this call needs. Try again "
                "later, or without an idempotency_key.",
                retry_after=60,
                detail=f"The records of generations take {self.jobs.size_bytes:,} bytes and may take {_JOBS_SHARE:.0%} "
                f"of STORAGE_MAX_BYTES ({self._max_bytes:,}).",
            )

    @asynccontextmanager
    async def stage(self, image_id: ImageId, expected: int) -> AsyncIterator[StagedFile]:
        async with self.staging.stage(image_id, expected, self.reserve) as staged:
            yield staged

    async def commit(self, image: GeneratedImage, record: ImageRecord) -> StoredImage:
        stored = await self._directory.run("commit", self._commit, self.staging.file(image.path), image, record)
        self._used += image.size_bytes
        self._recent.remember(stored)
        return stored

    def _commit(self, staged: LocalFile, image: GeneratedImage, record: ImageRecord) -> StoredImage:
        """A disk that stalls may outlast its caller's patience; the image is stored all the same once it goes on."""
        final = self._image_key(record)
        record_key = keys.record_key(record.image_id)
        staged.take_over()
        try:
            staged.finish(encode_record(record))
            publish(self._directory, staged.key, staged.record_key, record)
        except BaseException:
            placed = [record_key, final]
            if record.expires is not None:
                placed.append(keys.expiry_key(record.expires, record.image_id))
            with contextlib.suppress(OSError):  # the record first: while it resists, what it speaks of stays
                for key in placed:
                    self._tree.unlink(key)
            with contextlib.suppress(OSError):
                staged.discard()
            raise
        return StoredImage(record=record, path=self._root / final)

    async def finish(self, path: Path, record: ImageRecord) -> None:
        """Make a staged file complete and durable before it is sent to another store."""
        await self._directory.run("stage", self.staging.file(path).finish, encode_record(record))

    async def put_aside(self, file: LocalFile) -> None:
        """Let a finished staged file go when the next process starts, if not before."""
        await self._directory.run("stage", file.put_aside)

    async def delete_aside(self) -> None:
        """What a process that was killed has put aside."""
        await self._directory.run("delete", self._delete_aside)

    def _delete_aside(self) -> None:
        for name in self._tree.names("staging"):
            if name.endswith(ASIDE):
                self._tree.unlink(f"staging/{name}")

    async def discard(self, file: LocalFile) -> None:
        """Remove a staged file that has been sent to another store."""
        await self._directory.run("discard", file.discard)

    # --- reading ------------------------------------------------------------------------------------------------------

    async def get(self, image_id: ImageId) -> StoredImage:
        stored = await self.get_even_expired(image_id)
        if stored.record.expired(self._clock.now()):
            raise ImageNotFound
        return stored

    async def get_even_expired(self, image_id: ImageId) -> StoredImage:
        """Raises ImageNotFound for what is not there at all."""
        stored = self._recent.recall(image_id)
        if stored is None:
            stored = await self._directory.run("get", self._read, image_id)
            self._recent.remember(stored)
        return stored

    def _read(self, image_id: ImageId) -> StoredImage:
        record = self._records.read(image_id)
        key = self._image_key(record)
        status = self._tree.status(key)
        if status is None:
            raise ImageNotFound
        if not stat.S_ISREG(status.st_mode) or status.st_size != record.size_bytes:
            raise self._records.damaged(key, "not a file of the size that its record says")
        return StoredImage(record=record, path=self._root / key)

    def _image_key(self, record: ImageRecord) -> str:
        return keys.image_key(record.image_id, record.picture.media_type)

    async def open(self, stored: StoredImage, head: int) -> OpenFile:
        return await self._open_files.open(self._image_key(stored.record), head)

    async def stream(self, stored: StoredImage, start: int, length: int) -> AsyncIterator[bytes]:
        """For callers that cannot send the file itself."""
        key = self._image_key(stored.record)
        while length > 0:
            data = await self._directory.run("get", self._part, key, start, min(length, _STREAMED_BYTES))
            if not data:
                raise ImageNotFound
            yield data
            start, length = start + len(data), length - len(data)

    def _part(self, key: str, start: int, length: int) -> bytes | None:
        try:
            return self._tree.part(key, start, length)
        except DamagedFile as error:
            raise self._records.damaged(key, error) from None

    async def link(self, stored: StoredImage) -> Link | None:
        return None

    @property
    def held(self) -> int:
        return 0

    async def send_held(self) -> None:
        """Nothing waits here: what is committed is where it stays."""

    @property
    def link_origin(self) -> str | None:
        return None

    def at_hand(self, image_id: ImageId) -> Path | None:
        return None

    async def thumbnail(self, image_id: ImageId) -> bytes | None:
        return await self._directory.run("get", self._thumbnail, keys.thumbnail_key(image_id))

    def _thumbnail(self, key: str) -> bytes | None:
        """A damaged one counts as none, so another is made."""
        try:
            return self._tree.read(key, _MAX_THUMBNAIL_BYTES)
        except DamagedFile as error:
            self._directory.damaged(key, error)
            return None

    async def put_thumbnail(self, image_id: ImageId, data: bytes) -> None:
        key = keys.thumbnail_key(image_id)
        with self.reserve(len(data)):
            replaced = await self._directory.run("commit", self._replace, key, data)
        self._used += len(data) - replaced

    def _replace(self, key: str, data: bytes) -> int:
        """Bytes of what was there before."""
        before = self._tree.status(key)
        self._directory.write(key, data)
        return before.st_size if before is not None and stat.S_ISREG(before.st_mode) else 0

    async def page(
        self, owner: str, *, limit: int, cursor: str | None = None, matches: RecordFilter | None = None
    ) -> RecordPage:
        if cursor is not None and not keys.is_cursor(cursor, owner_tag(owner)):
            raise InvalidRequest("cursor: not one that this server gave; leave it out to start with the newest image.")
        return await self._directory.run("list", self._records.page, owner, limit, cursor, matches, self._clock.now())

    async def everything(self) -> list[ImageRecord]:
        """Every record of every owner that can be read, whether its time is up or not, oldest first."""
        return await self._directory.run("list", self._records.everything)

    # --- deleting -----------------------------------------------------------------------------------------------------

    async def delete(self, image_id: ImageId) -> Deletion:
        return self._forget(image_id, await self._directory.run("delete", self._deletions.one, image_id))

    async def delete_expired(self, expired: Sequence[ExpiredImage]) -> list[Deletion | BaseException]:
        return await asyncio.gather(*(self._delete_one_expired(one) for one in expired), return_exceptions=True)

    async def _delete_one_expired(self, expired: ExpiredImage) -> Deletion:
        deletion = await self._directory.run("delete", self._deletions.expired, expired)
        if deletion is None:
            self._kept(1, "an expiry entry contradicts its image's record")
            return Deletion(first=False)
        return self._forget(expired.image_id, deletion)

    def _kept(self, count: int, detail: str) -> None:
        if count:
            self._observer(CleanupSkipped(reason="record_still_there", count=count, detail=detail))

    def _forget(self, image_id: ImageId, deletion: Deletion) -> Deletion:
        self._recent.forget(image_id)
        self._used = max(0, self._used - deletion.freed_bytes)
        return deletion

    # --- upkeep -------------------------------------------------------------------------------------------------------

    async def expired(self, now: datetime) -> AsyncIterator[ExpiredImage]:
        last_shard = sortable_time(now)[: keys.SHARD_DIGITS]
        for shard in await self._directory.run("list", self._tree.names, "expiry"):
            if shard > last_shard:
                return
            directory = f"expiry/{shard}"
            for name in await self._directory.run("list", self._tree.names, directory):
                entry = keys.expiry_of_name(name)
                if entry is not None and entry[0] <= now:
                    yield ExpiredImage(entry[1], f"{directory}/{name}")
            before = now.timestamp() - LEFTOVER_SECONDS
            await self._directory.run("list", self._tree.remove_if_old_and_empty, directory, before)

    async def delete_leftovers(self, now: datetime) -> int:
        await self._finish_commits(now.timestamp() - SETTLED_SECONDS)
        return await self._directory.run("delete", self._delete_leftovers, now.timestamp() - LEFTOVER_SECONDS)

    def _delete_leftovers(self, before: float) -> int:
        """Of other processes only: this one knows which files it is writing, even if the clock is wrong."""
        once = OnceFiles(self._directory)
        names = [name for name in self._tree.names("staging") if not self._directory.owns(name)]
        return sum(once.remove_older(f"staging/{name}", before) for name in names)

    async def _finish_commits(self, before: float | None) -> None:
        """Those that killed processes have left; see `unfinished`."""
        for key in await self._directory.run("list", unfinished, self._directory, before):
            record = await self._directory.run("commit", finish, self._directory, key, self._clock.now())
            if record is not None:
                self._used += record.size_bytes
                self._observer(ImageRecovered(backend=self.backend, record=record))

    async def clock_offset(self) -> float | None:
        return await self._directory.run("check", self._clock_offset)

    def _clock_offset(self) -> float | None:
        """By the mtime of a fresh file, which the volume sets (the server, on NFS). None where the volume is full."""
        self._directory.require_volume()
        key = f"staging/{self._directory.instance}-clock-probe.part"
        started = time.time()
        try:
            self._tree.unlink(key)  # of a pass that was cut off
            descriptor = self._tree.create(key)
        except OSError:
            return None
        try:
            return os.fstat(descriptor).st_mtime - (started + time.time()) / 2
        finally:
            os.close(descriptor)
            self._tree.unlink(key)

    async def take_inventory(self, now: datetime | None) -> Inventory:
        moment = -math.inf if now is None else now.timestamp()
        total = ShardCount()
        used_before = self._used
        for shard in await self._directory.run("list", self._inventory.shards):
            total += await self._directory.run("inventory", self._inventory.count, shard, moment)
        self._kept(total.kept, "a listing left out what is there")
        free_bytes = await self.free_bytes()
        self._used = total.size + max(0, self._used - used_before)  # what came meanwhile may not have been counted
        return Inventory(
            images=total.images,
            size_bytes=total.size + self.jobs.size_bytes,
            free_bytes=free_bytes,
            orphans_deleted=total.orphans,
            errors=total.errors,
        )

    async def free_bytes(self) -> int:
        """What the volume has left."""
        return await self._directory.run("inventory", self._free_bytes)

    def _free_bytes(self) -> int:
        self._directory.require_volume()
        room = os.statvfs(self._root)
        return room.f_bavail * room.f_frsize

    async def check(self) -> None:
        was_writable = self._directory.was_writable
        await self._directory.run("check", self._directory.check)
        if not was_writable:
            with contextlib.suppress(StorageFailure):  # a clean-up pass tries again
                await self._finish_commits(None)
        if self._max_bytes is None and self._free_share is not None:
            inventory = await self.take_inventory(None)
            self._max_bytes = inventory.size_bytes + int(self._free_share * (inventory.free_bytes or 0))
