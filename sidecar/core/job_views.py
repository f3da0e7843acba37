"""A job as a returning caller sees it, made from what the store has."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

from sidecar.core.job import MAY_STILL_COME, JobView
from sidecar.core.service import ImageService
from sidecar.domain import (
    MOST_IMAGES,
    ImageId,
    JobId,
    JobRecord,
    JobResult,
    StoredImage,
    StoredJob,
    owner_tag,
)
from sidecar.errors import ImageNotFound, JobNotFound
from sidecar.ports import Clock


class JobViews:
    """All methods raise JobNotFound and StorageFailure."""

    def __init__(self, images: ImageService, clock: Clock) -> None:
        self._images = images
        self._clock = clock

    def checked(self, stored: StoredJob, owner: str) -> StoredJob:
        if stored.record.owner != owner or stored.record.expires <= self._clock.now():
            raise JobNotFound
        return stored

    async def of_images(self, job_id: JobId, owner: str) -> JobView:
        """A job that completed before its id was given to a caller: only its images are kept."""
        if job_id.owner_tag != owner_tag(owner):
            raise JobNotFound
        numbers = range(1, MOST_IMAGES + 1)
        stored_images = await asyncio.gather(*(self._image(job_id.image(number)) for number in numbers))
        found = [stored if stored is not None and stored.record.owner == owner else None for stored in stored_images]
        images = tuple(stored for stored in found if stored is not None)
        if not images:
            raise JobNotFound
        total = max(number for number, stored in zip(numbers, found, strict=True) if stored is not None)
        last = images[-1].record
        return JobView(
            job_id=job_id,
            status="completed",
            model=last.request.model,
            total=total,
            created=job_id.created,
            updated=last.created + timedelta(seconds=last.queue_seconds + last.runtime_seconds),
            images=images,
            gone=total - len(images),
        )

    async def of_stored(self, stored: StoredJob) -> JobView:
        record, result = stored.record, stored.result
        view = JobView(
            job_id=record.job_id,
            status="working" if stored.begun else "queued",
            model=record.requests[0].model,
            total=len(record.requests),
            created=record.created,
            updated=record.created,
            elapsed=max(0.0, (self._clock.now() - record.created).total_seconds()),
            keyed=record.key_digest is not None,
            result_mode=record.result_mode,
        )
        return view if result is None else await self._ended(view, record, result)

    async def _ended(self, view: JobView, record: JobRecord, result: JobResult) -> JobView:
        """With the images as they are in the store now: some may have come late, others may have expired."""
        lost = {missing.number: missing for missing in result.missing}
        images, missing, gone = [], [], 0
        for number, image_id in enumerate(record.image_ids, start=1):
            why = lost.get(number)
            stored = await self._image(image_id) if why is None or why.reason in MAY_STILL_COME else None
            if stored is not None:
                images.append(stored)
            elif why is not None:
                missing.append(why)
            elif result.status == "completed":
                gone += 1
        return replace(
            view,
            status="completed" if images else result.status,
            updated=result.finished,
            images=tuple(images),
            missing=tuple(missing),
            gone=gone,
            reason=result.reason,
            message=result.message,
        )

    async def _image(self, image_id: ImageId) -> StoredImage | None:
        try:
            return await self._images.get(image_id)
        except ImageNotFound:
            return None
