"""The jobs of pods that have died or have left: what was not begun is taken over, what was is recorded as interrupted.

A lease lapses when it was seen unchanged for three intervals by this process's own monotonic clock, because the clocks
of pods differ.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from sidecar.core.job import Job
from sidecar.core.service import ImageService
from sidecar.domain import ImageId, JobId, JobRecord, JobResult, Lease, MissingImage, StoredImage, StoredJob
from sidecar.errors import ImageNotFound, Interrupted, SidecarError, StorageFailure
from sidecar.events import Crashed, JobTakenOver
from sidecar.ports import Clock, JobStore, Observer

SILENT_INTERVALS = 3
UNWANTED_INTERVALS = 40  # ten minutes by default: no pod has the model of a job any more

_ENDED_BEFORE = "The sidecar that worked on it ended before the image was stored."
_TOO_LATE = "No sidecar could take it before its time was over."
_NO_MODEL = "No sidecar here has its model any more."


@dataclass(frozen=True, slots=True)
class _Sighting:
    lease: Lease
    since: float


class JobTakeover:
    """Looks at what others hold. `start` puts a job in line here, `lose` takes it out again where it is not ours."""

    def __init__(
        self,
        images: ImageService,
        store: JobStore,
        *,
        instance: str,
        interval: float,
        holds: Callable[[JobId], bool],
        start: Callable[[JobRecord, Lease], Job],
        lose: Callable[[Job], None],
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._images = images
        self._store = store
        self._instance = instance
        self._interval = interval
        self._holds = holds
        self._start = start
        self._lose = lose
        self._clock = clock
        self._observer = observer
        self._seen: dict[JobId, _Sighting] = {}

    async def look(self) -> None:
        """Look once. A job that makes trouble does not keep the others. Raises StorageFailure."""
        now = self._clock.monotonic()
        seen: dict[JobId, _Sighting] = {}
        for stored in await self._store.unfinished():
            job_id = stored.record.job_id
            if self._holds(job_id):
                continue
            before = self._seen.get(job_id)
            sighting = before if before is not None and before.lease == stored.lease else _Sighting(stored.lease, now)
            seen[job_id] = sighting
            intervals = (now - sighting.since) / self._interval
            if stored.lease.released or intervals >= SILENT_INTERVALS:
                try:
                    await self._take_over(stored, intervals)
                except SidecarError:
                    continue  # counted by the store; the next look tries again
                except Exception as error:
                    self._observer(Crashed(what="taking over a job", error=error))
        self._seen = seen

    async def _take_over(self, stored: StoredJob, intervals: float) -> None:
        record = stored.record
        if stored.begun:
            await self._give_up(stored, _ENDED_BEFORE)
        elif record.expires <= self._clock.now():
            await self._give_up(stored, _TOO_LATE)
        elif await self._has_ended(record) or await self._is_unwanted(record):
            await self._store.withdraw(record.job_id)
        elif record.requests[0].model not in self._images.lanes:
            if intervals >= UNWANTED_INTERVALS:
                await self._give_up(stored, _NO_MODEL)
        elif (claiming := self._adopt(stored)) is not None:
            await claiming

    def _adopt(self, stored: StoredJob) -> asyncio.Task[None] | None:
        """In line here first, so that a full queue leaves the job to a pod with room; then the claim decides.

        Not before the runtime is ready: after a restart of the whole pod it may load its model for minutes.
        """
        record = stored.record
        lane = self._images.lane(record.requests[0].model)
        if self._images.draining or not (lane.ready and lane.queue.has_room):
            return None
        lease = Lease(job_id=record.job_id, attempt=stored.lease.attempt + 1, holder=self._instance)
        try:
            job = self._start(record, lease)
        except StorageFailure:
            return None
        return job.record_by(self._claim(job))

    async def _claim(self, job: Job) -> None:
        claimed = False
        try:
            claimed = await self._store.claim(job.lease)
        finally:
            if not claimed:
                self._lose(job)
        if claimed:
            self._observer(JobTakenOver(model=job.model, adopted=True))

    async def _has_ended(self, record: JobRecord) -> bool:
        """Whether its record came to the store only after its end, told as a failure of the store's."""
        return (await self._store.read(record.job_id)).result is not None

    async def _is_unwanted(self, record: JobRecord) -> bool:
        """Whether another job won the key of this one before its pod could withdraw it."""
        return record.key_digest is not None and await self._store.key_holder(record.key_digest) != record.job_id

    async def _give_up(self, stored: StoredJob, why: str) -> None:
        """Record a job as interrupted, less the images that had been stored."""
        record = stored.record
        there = [await self._image(image_id) for image_id in record.image_ids]
        missing = tuple(
            MissingImage(number=number, seed=request.seed, reason=Interrupted.reason, message=why)
            for number, (request, image) in enumerate(zip(record.requests, there, strict=True), start=1)
            if image is None
        )
        result = JobResult(
            job_id=record.job_id,
            attempt=stored.lease.attempt,
            status="completed" if any(there) else "failed",
            finished=self._clock.now(),
            missing=missing,
            reason=Interrupted.reason if missing else None,
            message=why if missing else None,
        )
        if await self._store.acknowledge(record, result):
            self._observer(JobTakenOver(model=record.requests[0].model, adopted=False))

    async def _image(self, image_id: ImageId) -> StoredImage | None:
        try:
            return await self._images.get(image_id)
        except ImageNotFound:
            return None
