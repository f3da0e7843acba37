"""A directory's images into a bucket, each verified by its digest on both sides, then how its generations ended.

It can be stopped and started again at any time, and beside a running sidecar; what is there already is left alone.
Generations that have not ended stay where they are: two sidecars would paint them twice.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from sidecar.domain import ImageRecord, StoredImage, StoredJob
from sidecar.errors import ImageDamaged, ImageNotFound, JobNotFound, SidecarError, StorageFailure
from sidecar.ports import Clock, Storage
from sidecar.storages.file import FileStorage
from sidecar.storages.s3 import S3Storage


@dataclass(slots=True)
class GenerationsReport:
    """Generations: copied now, there already, past their time, could not be copied, and left for not having ended."""

    copied: int = 0
    there_already: int = 0
    expired: int = 0
    errors: int = 0
    unfinished: int = 0


@dataclass(slots=True)
class MigrationReport:
    """Images: copied now, there already, past their time, and those that could not be copied; then generations."""

    copied: int = 0
    there_already: int = 0
    expired: int = 0
    errors: int = 0
    generations: GenerationsReport = field(default_factory=GenerationsReport)

    @property
    def failed(self) -> bool:
        return bool(self.errors or self.generations.errors)


class Migration:
    """From `source` to `target`, oldest first. `notes` has a line for everything that was not copied."""

    def __init__(self, source: FileStorage, target: S3Storage, *, clock: Clock) -> None:
        self._source = source
        self._target = target
        self._clock = clock
        self.notes: list[str] = []

    async def run(self) -> MigrationReport:
        """Raises StorageFailure where either store cannot be used at all."""
        await self._target.check()
        report = MigrationReport()
        await self._images(report)
        await self._generations(report.generations)
        return report

    # --- images -------------------------------------------------------------------------------------------------------

    async def _images(self, report: MigrationReport) -> None:
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
                self.notes.append(f"{record.image_id}: {error.detail}")

    async def _is_there(self, record: ImageRecord) -> bool:
        try:
            return (await self._target.get(record.image_id)).record == record
        except ImageNotFound:
            return False

    async def _copy(self, record: ImageRecord) -> None:
        stored = await self._source.get(record.image_id)
        if stored.path is None or await _digest(self._source, stored) != record.sha256:
            raise StorageFailure("the file is not what its record says; it was not copied")
        await self._target.send(stored.path, record)
        if await _digest(self._target, StoredImage(record=record)) != record.sha256:
            await self._target.delete(record.image_id)
            raise StorageFailure("what arrived is not what was sent; it was taken back")
        thumbnail = await self._source.thumbnail(record.image_id)
        if thumbnail is not None:
            await self._target.put_thumbnail(record.image_id, thumbnail)

    # --- generations --------------------------------------------------------------------------------------------------

    async def _generations(self, report: GenerationsReport) -> None:
        async for job in self._source.jobs.ended():
            if job.record.expires <= self._clock.now():
                report.expired += 1
                continue
            try:
                if await self._copy_generation(job):
                    report.copied += 1
                else:
                    report.there_already += 1
            except SidecarError as error:
                report.errors += 1
                self.notes.append(f"{job.record.job_id}: {error.detail}")
        report.unfinished = len(await self._source.jobs.unfinished())
        if report.unfinished:
            self.notes.append(
                f"generations left because they have not ended: {report.unfinished}. Copied, they could be painted "
                "twice. Once the directory's sidecar has ended them, migrate again."
            )

    async def _copy_generation(self, job: StoredJob) -> bool:
        """Whether it was not there before. Its key comes last, because a key is worth nothing without its job."""
        new = not await self._has_ended_there(job)
        if new and job.result is not None:
            await self._target.jobs.acknowledge(job.record, job.result)
        digest = job.record.key_digest
        if digest is not None and await self._source.jobs.key_holder(digest) == job.record.job_id:
            await self._target.jobs.win_key(job.record)  # unless it was used anew there: that stands
        return new

    async def _has_ended_there(self, job: StoredJob) -> bool:
        try:
            return (await self._target.jobs.read(job.record.job_id)).result is not None
        except JobNotFound:
            return False


async def _digest(store: Storage, stored: StoredImage) -> str:
    """Empty where the store itself says that the image is damaged."""
    digest = hashlib.sha256()
    try:
        async for piece in store.stream(stored, 0, stored.record.size_bytes):
            digest.update(piece)
    except ImageDamaged:
        return ""
    return digest.hexdigest()
