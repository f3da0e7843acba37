"""The jobs of pods that have died or have left: what was not begun is taken over, what was is recorded as interrupted.

A lease lapses when it was seen unchanged at three more looks, an interval apart. Looks are counted and not seconds, for
the clocks of pods differ, and a pod that was stopped itself has not seen that others were silent meanwhile. They must
follow each other: where the store fails in between, it may have refused the holder's renewals too.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from sidecar.core.clock_guard import ClockGuard
from sidecar.core.job import Job
from sidecar.core.service import ImageService
from sidecar.domain import ImageId, JobId, JobRecord, JobResult, Lease, MissingImage, StoredImage, StoredJob
from sidecar.errors import ImageNotFound, Interrupted, SidecarError, StorageFailure, StoreAway
from sidecar.events import Crashed, EndForgotten, JobEnded, JobTakenOver
from sidecar.ports import Clock, JobStore, Observer

SILENT_INTERVALS = 3
UNWANTED_INTERVALS = 40  # ten minutes by default: no pod has the model of a job any more

MOST_REFUSALS = 100
"""Of one take-over, an hour or two by default; then the store will not take it from this process."""

_ENDED_BEFORE = "The sidecar that worked on it ended before the image was stored."
_TOO_LATE = "No sidecar could take it before its time was over."
_NO_MODEL = "No sidecar here has its model any more."


@dataclass(frozen=True, slots=True)
class _Sighting:
    """A lease, and how many looks since the first have found it unchanged."""

    lease: Lease
    looks: int = 0


class JobTakeover:
    """Looks at what others hold. `start` puts a job in line here, `lose` takes it out again where it is not ours."""

    def __init__(
        self,
        images: ImageService,
        store: JobStore,
        *,
        instance: str,
        holds: Callable[[JobId], bool],
        start: Callable[[JobRecord, Lease], Job],
        lose: Callable[[Job], None],
        guard: ClockGuard,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._images = images
        self._guard = guard
        self._store = store
        self._instance = instance
        self._holds = holds
        self._start = start
        self._lose = lose
        self._clock = clock
        self._observer = observer
        self._seen: dict[JobId, _Sighting] = {}
        self._refusals: Counter[JobId] = Counter()
        """How often the store has refused to let this process take over each job that is still open."""

    async def look(self) -> None:
        """Look once. A job that makes trouble does not keep the others. Raises StorageFailure."""
        try:
            unfinished = await self._store.unfinished()
        except StorageFailure:
            self.forget()
            raise
        others = [stored for stored in unfinished if not self._holds(stored.record.job_id)]
        self._seen = {stored.record.job_id: self._sighting(stored) for stored in others}
        self._refusals = Counter({job_id: self._refusals[job_id] for job_id in self._seen.keys() & self._refusals})
        for stored in others:
            sighting = self._seen.get(stored.record.job_id)
            if self._refusals[stored.record.job_id] >= MOST_REFUSALS:
                continue
            if sighting is not None and (stored.lease.released or sighting.looks >= SILENT_INTERVALS):
                await self._try_to_take_over(stored, sighting.looks)

    def forget(self) -> None:
        """The store is in trouble: every holder has three intervals again to renew its lease."""
        self._seen = {}

    def _sighting(self, stored: StoredJob) -> _Sighting:
        before = self._seen.get(stored.record.job_id)
        if before is None or before.lease != stored.lease:
            return _Sighting(stored.lease)
        return replace(before, looks=before.looks + 1)

    async def _try_to_take_over(self, stored: StoredJob, intervals: int) -> None:
        try:
            await self._take_over(stored, intervals)
        except SidecarError as error:
            self._seen.pop(stored.record.job_id, None)  # counted by the store, which may refuse renewals as well
            if isinstance(error, StorageFailure) and not isinstance(error, StoreAway):
                self._refused(stored, error)
        except Exception as error:
            self._observer(Crashed(what="taking over a job", error=error))

    def _refused(self, stored: StoredJob, failure: StorageFailure) -> None:
        """Not for ever: a job that no pod may end would cost every pod some requests a minute until it is deleted."""
        self._refusals[stored.record.job_id] += 1
        if self._refusals[stored.record.job_id] == MOST_REFUSALS:
            age = (self._clock.now() - stored.record.created).total_seconds()
            model = stored.record.requests[0].model
            self._observer(
                EndForgotten(model=model, status="unknown", hours=round(age / 3600, 1), detail=failure.detail)
            )

    async def _take_over(self, seen: StoredJob, intervals: int) -> None:
        """After one more look at this job alone, for those before it may have taken a while."""
        record = seen.record
        stored = await self._store.read(record.job_id)
        if stored.result is not None:  # its record came to the store only after its end
            await self._store.withdraw(record.job_id)
        elif stored.lease != seen.lease:
            return
        elif stored.begun:
            await self._give_up(stored, _ENDED_BEFORE)
        elif record.expires <= self._clock.now():
            if await self._guard.doubt() is None:
                await self._give_up(stored, _TOO_LATE)
        elif await self._is_unwanted(record):
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
            self._observer(JobEnded(record=record, result=result))

    async def _image(self, image_id: ImageId) -> StoredImage | None:
        try:
            return await self._images.get(image_id)
        except ImageNotFound:
            return None
