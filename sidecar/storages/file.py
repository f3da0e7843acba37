"""Images in a directory: an emptyDir, or a volume that several pods share.

Whatever is visible is complete: files are written under `staging/` with this process's name on them, synced, then
renamed into place, the record last.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
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
from sidecar.ports import EXAMINED_RECORDS, Clock, ExpiredImage, Link, Observer, OpenFile, RecordFilter, StagedFile
from sidecar.storages import disk, keys
from sidecar.storages.directory import Directory
from sidecar.storages.file_inventory import ShardCount, ShardInventory
from sidecar.storages.file_jobs import FileJobs
from sidecar.storages.open_files import OpenFiles
from sidecar.storages.recent import RecentImages
from sidecar.storages.records import decode_record, encode_record
from sidecar.storages.staging import ASIDE, LocalFile, Staging

_STREAMED_BYTES = 256 * 1024


class FileStorage:
    """The `Storage` port on a directory. `max_bytes` bounds it; None leaves that to the volume.

    With `free_share`, None stands for what it holds and that share of what is free when it is first found writable.
    """

    backend = Directory.backend

    def __init__(
        self, root: Path, *, max_bytes: int | None, free_share: float | None = None, clock: Clock, observer: Observer
    ) -> None:
        self._root = root
        self._directory = Directory(root, observer)
        self._max_bytes = max_bytes
        self._free_share = free_share
        self._clock = clock
        self._observer = observer
        self._inventory = ShardInventory(root)
        self.staging = Staging(self._directory)
        self._open_files = OpenFiles(self._directory)
        self._recent = RecentImages(clock)
        self._used = 0
        self._reserved = 0

    @property
    def jobs(self) -> FileJobs:
        """The generations kept beside the images."""
        return FileJobs(self._directory)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[FileStorage]:
        """The store between start and stop. A directory that cannot be written yet is `check`'s to report."""
        try:
            with contextlib.suppress(StorageFailure):
                await self.check()
                if self._max_bytes is not None:
                    await self.take_inventory(self._clock.now())
            yield self
        finally:
            self._directory.close()

    # --- an image on its way in ---------------------------------------------------------------------------------------

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        if self._max_bytes is not None and size > self.room:
            raise StorageFull(
                f"The image store is full: {self._used:,} of {self._max_bytes:,} bytes are used and {self._reserved:,} "
                "are reserved. Delete images that are no longer needed, or try again when some have expired.",
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
        return math.inf if self._max_bytes is None else self._max_bytes - self._used - self._reserved

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
        image_id = record.image_id
        final = self._path(record)
        record_path = self._root / keys.record_key(image_id)
        placed = [record_path, final]
        try:
            staged.finish()
            self._directory.place(image.path, final)
            staged.moved = True
            if record.expires is not None:
                placed.append(self._root / keys.expiry_key(record.expires, image_id))
                self._directory.in_directory(placed[-1], Path.touch)
            disk.sync(final.parent)
            self._directory.write(record_path, encode_record(record))
        except BaseException:
            with contextlib.suppress(OSError):  # the record first: while it resists, what it speaks of stays
                for path in placed:
                    path.unlink(missing_ok=True)
            raise
        return StoredImage(record=record, path=final)

    async def finish(self, path: Path) -> None:
        """Make a staged file complete, for somebody who takes its bytes elsewhere."""
        await self._directory.run("stage", self.staging.file(path).finish)

    async def put_aside(self, file: LocalFile) -> None:
        """Let a finished staged file go when the next process starts, if not before."""
        await self._directory.run("stage", file.put_aside)

    async def delete_aside(self) -> None:
        """What a process that was killed has put aside."""
        await self._directory.run("delete", self._delete_aside)

    def _delete_aside(self) -> None:
        for path in (self._root / "staging").glob(f"*{ASIDE}"):
            path.unlink(missing_ok=True)

    async def discard(self, file: LocalFile) -> None:
        """Remove a staged file that somebody has taken over."""
        await self._directory.run("discard", file.discard)

    # --- reading ------------------------------------------------------------------------------------------------------

    async def get(self, image_id: ImageId) -> StoredImage:
        stored = self._recent.recall(image_id)
        if stored is None:
            stored = await self._directory.run("get", self._read, image_id)
            self._recent.remember(stored)
        if stored.record.expired(self._clock.now()):
            raise ImageNotFound
        return stored

    def _read(self, image_id: ImageId) -> StoredImage:
        record = self._read_record(image_id)
        path = self._path(record)
        if not path.exists():
            raise ImageNotFound
        return StoredImage(record=record, path=path)

    def _read_record(self, image_id: ImageId) -> ImageRecord:
        try:
            return decode_record((self._root / keys.record_key(image_id)).read_bytes())
        except (FileNotFoundError, ValueError):
            self._directory.require_volume()
            raise ImageNotFound from None

    def _path(self, record: ImageRecord) -> Path:
        return self._root / keys.image_key(record.image_id, record.picture.media_type)

    async def open(self, stored: StoredImage, head: int) -> OpenFile:
        return await self._open_files.open(self._path(stored.record), head)

    async def stream(self, stored: StoredImage, start: int, length: int) -> AsyncIterator[bytes]:
        """For whoever does not take the file itself."""
        path = self._path(stored.record)
        while length > 0:
            data = await self._directory.run("get", disk.part_or_none, path, start, min(length, _STREAMED_BYTES))
            if not data:
                raise ImageNotFound
            yield data
            start, length = start + len(data), length - len(data)

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
        return await self._directory.run("get", disk.bytes_or_none, self._root / keys.thumbnail_key(image_id))

    async def put_thumbnail(self, image_id: ImageId, data: bytes) -> None:
        path = self._root / keys.thumbnail_key(image_id)
        with self.reserve(len(data)):
            replaced = await self._directory.run("commit", self._replace, path, data)
        self._used += len(data) - replaced

    def _replace(self, path: Path, data: bytes) -> int:
        """Bytes of what was there before."""
        before = disk.size_or_none(path)
        self._directory.write(path, data)
        return before or 0

    async def page(
        self, owner: str, *, limit: int, cursor: str | None = None, matches: RecordFilter | None = None
    ) -> RecordPage:
        tag = owner_tag(owner)
        if cursor is not None and not keys.is_cursor(cursor, tag):
            raise InvalidRequest("cursor: not one that this server gave; leave it out to start with the newest image.")
        return await self._directory.run("list", self._page, tag, limit, cursor, matches)

    def _page(self, tag: str, limit: int, cursor: str | None, matches: RecordFilter | None) -> RecordPage:
        self._directory.require_volume()
        now = self._clock.now()
        records: list[ImageRecord] = []
        last = None
        for examined, name in enumerate(self._record_names(tag, cursor)):
            if len(records) == limit or examined == EXAMINED_RECORDS:
                return RecordPage(records=tuple(records), cursor=last)
            last = name
            with contextlib.suppress(FileNotFoundError, IsADirectoryError, ValueError):
                record = decode_record(self._record_path(tag, name).read_bytes())
                if not record.expired(now) and (matches is None or matches(record)):
                    records.append(record)
        return RecordPage(records=tuple(records))

    def _record_names(self, tag: str, cursor: str | None) -> Iterator[str]:
        """Names of one owner's records after the cursor, newest first, one shard read at a time."""
        shards = self._root / keys.records_of(tag)
        for shard in disk.names(shards):
            if cursor is not None and shard < cursor[: keys.SHARD_DIGITS]:
                continue
            for name in disk.names(shards / shard):
                stem = name.removesuffix(".json")
                if (cursor is None or stem > cursor) and keys.is_cursor(stem, tag):
                    yield stem

    def _record_path(self, tag: str, name: str) -> Path:
        return self._root / keys.records_of(tag) / name[: keys.SHARD_DIGITS] / f"{name}.json"

    async def everything(self) -> list[ImageRecord]:
        """Every record of every owner that can be read, whether its time is up or not, oldest first."""
        return await self._directory.run("list", self._everything)

    def _everything(self) -> list[ImageRecord]:
        self._directory.require_volume()
        found = []
        for path in sorted((self._root / "records").glob("*/*/*.json")):
            with contextlib.suppress(OSError, ValueError):
                found.append(decode_record(path.read_bytes()))
        return sorted(found, key=lambda record: record.image_id.text)

    # --- deleting -----------------------------------------------------------------------------------------------------

    async def delete(self, image_id: ImageId) -> Deletion:
        return self._forget(image_id, await self._directory.run("delete", self._delete, image_id))

    def _delete(self, image_id: ImageId) -> Deletion:
        try:
            expires = self._read_record(image_id).expires
        except ImageNotFound:
            return Deletion(first=False)
        return self._remove(image_id, keys.expiry_key(expires, image_id) if expires else None)

    async def delete_expired(self, expired: Sequence[ExpiredImage]) -> list[Deletion | BaseException]:
        return await asyncio.gather(*(self._delete_one_expired(one) for one in expired), return_exceptions=True)

    async def _delete_one_expired(self, expired: ExpiredImage) -> Deletion:
        deletion = await self._directory.run("delete", self._remove, expired.image_id, expired.key)
        return self._forget(expired.image_id, deletion)

    def _remove(self, image_id: ImageId, expiry_key: str | None) -> Deletion:
        """The record first: from then on nobody sees the image. Whoever removes the record has deleted the image."""
        first = disk.unlink(self._root / keys.record_key(image_id)) is not None
        files = [*keys.every_image_key(image_id), keys.thumbnail_key(image_id)]
        freed = sum(disk.unlink(self._root / key) or 0 for key in files)
        if expiry_key is not None:
            disk.unlink(self._root / expiry_key)
        return Deletion(first=first, freed_bytes=freed)

    def _forget(self, image_id: ImageId, deletion: Deletion) -> Deletion:
        self._recent.forget(image_id)
        self._used = max(0, self._used - deletion.freed_bytes)
        return deletion

    # --- upkeep -------------------------------------------------------------------------------------------------------

    async def expired(self, now: datetime) -> AsyncIterator[ExpiredImage]:
        last_shard = sortable_time(now)[: keys.SHARD_DIGITS]
        for shard in await self._directory.run("list", disk.names, self._root / "expiry"):
            if shard > last_shard:
                return
            directory = self._root / "expiry" / shard
            for name in await self._directory.run("list", disk.names, directory):
                entry = keys.expiry_of_name(name)
                if entry is not None and entry[0] <= now:
                    yield ExpiredImage(entry[1], f"expiry/{shard}/{name}")
            await self._directory.run("list", disk.remove_if_old_and_empty, directory, now.timestamp())

    async def delete_leftovers(self, now: datetime) -> int:
        return await self._directory.run("delete", self._delete_leftovers, now.timestamp() - disk.LEFTOVER_SECONDS)

    def _delete_leftovers(self, before: float) -> int:
        staging = self._root / "staging"
        return sum(disk.unlink_older(staging / name, before) for name in disk.names(staging))

    async def take_inventory(self, now: datetime) -> Inventory:
        total = ShardCount()
        used_before = self._used
        for shard in await self._directory.run("list", self._inventory.shards):
            total += await self._directory.run("inventory", self._inventory.count, shard, now.timestamp())
        free_bytes = await self.free_bytes()
        self._used = total.size + max(0, self._used - used_before)  # what came meanwhile may not have been counted
        return Inventory(
            images=total.images,
            size_bytes=total.size,
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
        await self._directory.run("check", self._directory.check)
        if self._max_bytes is None and self._free_share is not None:
            inventory = await self.take_inventory(self._clock.now())
            self._max_bytes = inventory.size_bytes + int(self._free_share * (inventory.free_bytes or 0))
