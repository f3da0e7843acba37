"""A directory's images into a bucket: each verified by its digest on both sides, what is there already left alone.

It can be stopped and started again at any time, and beside a running sidecar. Generations are not copied: they are of
use only while they run and for as long as JOB_TTL.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from pathlib import Path

from sidecar.domain import ImageRecord, StoredImage
from sidecar.errors import ImageNotFound, SidecarError, StorageFailure
from sidecar.ports import Clock
from sidecar.storages.file import FileStorage
from sidecar.storages.s3 import S3Storage


@dataclass(slots=True)
class MigrationReport:
    """Images: copied now, there already, past their time, and those that could not be copied."""

    copied: int = 0
    there_already: int = 0
    expired: int = 0
    errors: int = 0


class Migration:
    """From `source` to `target`, oldest first. `problems` has a line for each image that resists."""

    def __init__(self, source: FileStorage, target: S3Storage, *, clock: Clock) -> None:
        self._source = source
        self._target = target
        self._clock = clock
        self.problems: list[str] = []

    async def run(self) -> MigrationReport:
        """Raises StorageFailure where either store cannot be used at all."""
        await self._target.check()
        report = MigrationReport()
        for record in await self._source.everything():
            if record.expired(self._clock.now()):
                report.expired += 1
                continue
            try:
                if await self._is_there(record):
                    report.there_already += 1
                else:
                    await self._copy(record)
                    report.copied += 1
            except SidecarError as error:
                report.errors += 1
                self.problems.append(f"{record.image_id}: {error.detail}")
        return report

    async def _is_there(self, record: ImageRecord) -> bool:
        try:
            return (await self._target.get(record.image_id)).record == record
        except ImageNotFound:
            return False

    async def _copy(self, record: ImageRecord) -> None:
        stored = await self._source.get(record.image_id)
        if stored.path is None or await asyncio.to_thread(_digest, stored.path) != record.sha256:
            raise StorageFailure("the file is not what its record says; it was not copied")
        await self._target.send(stored.path, record)
        arrived = hashlib.sha256()
        async for piece in self._target.stream(StoredImage(record=record), 0, record.size_bytes):
            arrived.update(piece)
        if arrived.hexdigest() != record.sha256:
            await self._target.delete(record.image_id)
            raise StorageFailure("what arrived is not what was sent; it was taken back")
        thumbnail = await self._source.thumbnail(record.image_id)
        if thumbnail is not None:
            await self._target.put_thumbnail(record.image_id, thumbnail)


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
