"""Generations that outlive their caller, their connection and their pod.

A job is recorded in the store before a caller is given its id while it is under way. Most are never recorded: callers
wait for the images, and a completed job is found by its images alone (job_views). The process that takes a recorded job
holds its lease and renews it (job_upkeep); job_takeover looks after jobs whose holder has died. `JobStore.begin`
happens once for each of them, so none is asked of a runtime twice, and `acknowledge` counts once and for the newest
attempt only, so a pod that comes back late changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial

from sidecar.config import JobSettings
from sidecar.core.clock_guard import ClockGuard
from sidecar.core.job import Job, JobView, cancellation, look_at_failure, unknown_without_the_store
from sidecar.core.job_keys import JobKeys
from sidecar.core.job_takeover import JobTakeover
from sidecar.core.job_upkeep import JobUpkeep
from sidecar.core.job_views import JobViews
from sidecar.core.job_watch import JobWatches
from sidecar.core.service import ImageService
from sidecar.domain import (
    ANONYMOUS,
    GenerationRequest,
    JobId,
    JobRecord,
    Lease,
    StoredJob,
    owner_tag,
)
from sidecar.errors import (
    JobNotFound,
    SidecarError,
    StorageFailure,
    TakenElsewhere,
)
from sidecar.events import Crashed, JobEnded
from sidecar.ports import Clock, JobStore, Observer

_LONG = 3600.0
_RECORDING_SECONDS = 5.0  # beyond RESPONSE_BUDGET, for a store that is slow to take a record
_UNKNOWN = "The image store cannot be asked at the moment, so it is not known how this generation stands."
_NOT_CANCELLED = "The image store cannot be asked at the moment, so the generation was not cancelled."


class JobService:
    """Submit, look at, wait for and cancel jobs. `instance` names this process, `guard` is the sweeper's."""

    def __init__(
        self,
        images: ImageService,
        store: JobStore,
        settings: JobSettings,
        *,
        instance: str,
        guard: ClockGuard,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._images = images
        self._store = store
        self._settings = settings
        self._instance = instance
        self._clock = clock
        self._observer = observer
        self._jobs: dict[JobId, Job] = {}
        self._keys = JobKeys(store, self._jobs, take=self._take, keep=self._keep, clock=clock)
        self._watches = JobWatches(store, clock)
        self._leaving = False
        self._handing_over: dict[JobId, Job] = {}
        self._views = JobViews(images, clock)
        self.takeover = JobTakeover(
            images,
            store,
            instance=instance,
            holds=lambda job_id: job_id in self._jobs or job_id in self.upkeep.unacknowledged,
            start=partial(self._start, adopted=True),
            lose=self._lose,
            guard=guard,
            clock=clock,
            observer=observer,
        )
        self.upkeep = JobUpkeep(
            store,
            self._jobs,
            self.takeover,
            interval=settings.lease_interval,
            record=self._record,
            lose=self._lose,
            clock=clock,
            observer=observer,
        )

    async def run(self) -> None:
        """Show that this process lives, and look after the jobs of those that do not, until cancelled."""
        await self.upkeep.run()

    # --- asking for images --------------------------------------------------------------------------------------------

    async def submit(
        self,
        requests: Sequence[GenerationRequest],
        *,
        owner: str = ANONYMOUS,
        key: str | None = None,
        arguments: str = "",
        result_mode: str | None = None,
    ) -> JobId:
        """Take a generation on; with a `key` that was used before, the job it was used for.

        `arguments` is what the caller gave, in a form that is equal for equal calls. Raises QueueFull, StorageFull,
        ShuttingDown, StorageFailure, or KeyConflict where the key was used with other arguments.
        """
        now = self._clock.now()
        job_id = JobId.new(now, owner)
        record = JobRecord(
            job_id=job_id,
            owner=owner,
            requests=tuple(requests),
            image_ids=job_id.images(len(requests)),
            created=now,
            expires=now + timedelta(seconds=self._settings.ttl),
            holder=self._instance,
            key_digest=None if key is None else hashlib.sha256(f"{owner}\0{key}".encode()).hexdigest(),
            arguments_digest=hashlib.sha256(arguments.encode()).hexdigest(),
            result_mode=result_mode,
        )
        if record.key_digest is None:
            return self._take(record).job_id
        return await self._keys.job_of(record, record.key_digest)

    def _take(self, record: JobRecord) -> Job:
        return self._start(record, Lease(job_id=record.job_id, attempt=1, holder=self._instance))

    def _start(self, record: JobRecord, lease: Lease, *, adopted: bool = False) -> Job:
        """Put a job in line here. Its admission refers to the job, which exists before any of its tasks runs."""

        async def admit() -> None:
            await self._admit(job)

        generation = self._images.submit(record.requests, record.owner, record.image_ids, admit, adopted=adopted)
        job = self._jobs[record.job_id] = Job(record, lease, generation)
        job.ending = asyncio.create_task(self._see_through(job), name=f"job {record.job_id}")
        return job

    async def _keep(self, job: Job) -> None:
        """Have it recorded, because its caller may come back for it. Raises StorageFailure."""
        if job.recorded is None and job.result is None:
            job.record_by(self._record(job))
        if job.recorded is not None:
            await asyncio.shield(job.recorded)

    async def _record(self, job: Job) -> None:
        await self._store.offer(job.record)
        if job.record.key_digest is not None and await self._store.win_key(job.record) != job.job_id:
            self._lose(job)
            await self._store.withdraw(job.job_id)

    def _lose(self, job: Job) -> None:
        self._jobs.pop(job.job_id, None)
        job.lose()

    async def _admit(self, job: Job) -> None:
        """Once for all images of a job, before the runtime is asked. Raises TakenElsewhere where it is not ours."""
        if not job.told:
            job.record = replace(job.record, begun=True)  # no other process knows of it
        if job.record.begun:
            return
        if job.beginning is None:
            job.beginning = asyncio.create_task(self._begin(job))
            job.beginning.add_done_callback(look_at_failure)
        await asyncio.shield(job.beginning)

    async def _begin(self, job: Job) -> None:
        await self._keep(job)
        if job.lost or job.released or job.cancelled:
            raise TakenElsewhere
        try:
            ours = await self._store.begin(job.lease)
        except StorageFailure:
            self._lose(job)  # not begun, and kept in the store for a pod that can reach it
            raise
        if not ours:
            self._lose(job)
            raise TakenElsewhere
        job.record = replace(job.record, begun=True)

    # --- ending -------------------------------------------------------------------------------------------------------

    async def _see_through(self, job: Job) -> None:
        """Wait for a job's images and record how it ended."""
        try:
            while not await job.generation.wait(_LONG):
                pass
            result = job.outcome(self._clock.now())  # at once: what was given up says why only until it is gone
            while job.recorded is not None and not job.recorded.done():
                await asyncio.wait({job.recorded})
            if not (job.lost or job.released):
                job.result = result
                self._observer(JobEnded(record=job.record, result=result))
                if job.needs_a_record:
                    await self._store.acknowledge(job.record, job.result)
        except StorageFailure:
            if not job.nobody_asks:
                self.upkeep.acknowledge_later(job)  # the waiting caller is told all the same
        except Exception as error:
            self._observer(Crashed(what="job", error=error))
        finally:
            self._jobs.pop(job.job_id, None)

    def leave(self, job_id: JobId) -> None:
        """Its caller disconnected without an answer. Without a key it cannot be asked for again: drop it if queued."""
        job = self._jobs.get(job_id)
        if job is not None and job.record.key_digest is None:
            job.leave()

    async def cancel(self, job_id: JobId, owner: str = ANONYMOUS) -> JobView:
        """Take a queued job out of the queue; a runtime that works cannot be stopped.

        Raises JobNotFound, and GenerationUnknown while the store does not answer: then it may not be cancelled.
        """
        job = self._own(job_id, owner)
        begun = job is not None and job.record.begun
        with unknown_without_the_store(_NOT_CANCELLED, job_id):
            if not begun and await self._stored(job_id, owner) is not None:
                cancelling = asyncio.create_task(self._cancel(job_id))  # begun, it must end, also if its caller leaves
                cancelling.add_done_callback(look_at_failure)
                await asyncio.shield(cancelling)
        return await self.view(job_id, owner)

    async def _cancel(self, job_id: JobId) -> None:
        """Begin it in the runtime's place. Its holder finds out at its turn, or when it next renews its lease."""
        job = self._jobs.get(job_id)
        stored = await self._store.read(job_id)
        if stored.result is not None or stored.begun or (job is not None and job.generation.begun):
            return
        if not await self._store.begin(stored.lease):
            return
        await self._store.acknowledge(stored.record, cancellation(stored.lease, self._clock.now()))
        if job is not None:
            job.cancelled = True
            job.generation.abandon()
            await asyncio.wait({job.ending})

    async def drain(self, grace: float, *, store_seconds: float | None = None) -> None:
        """Let what is under way finish within `grace` seconds; what waits with a handle is left to the next process.

        Telling the store of either takes `store_seconds` at most, None for as long as the store takes.
        """
        await self._images.settle(grace)
        self._leaving = True
        with contextlib.suppress(TimeoutError):  # then leases lapse
            async with asyncio.timeout(store_seconds):
                await self._hand_over_what_waits()
        await self._images.drain(0.0)
        if endings := [job.ending for job in self._jobs.values()]:
            await asyncio.wait(endings, timeout=store_seconds)
        for ending in endings:
            ending.cancel()
        await asyncio.gather(*endings, return_exceptions=True)

    async def _hand_over_what_waits(self) -> None:
        cut_short = list(self._handing_over.values())
        while waiting := [*cut_short, *self._to_hand_over()]:  # more may have been told of meanwhile
            cut_short = []
            for job in waiting:
                self._handing_over[job.job_id] = job
                job.release()
            await asyncio.gather(*(self._hand_over(job) for job in waiting))

    def _to_hand_over(self) -> list[Job]:
        jobs = self._jobs.values()
        return [job for job in jobs if job.told and not (job.left or job.released or job.generation.begun)]

    async def _hand_over(self, job: Job) -> None:
        with contextlib.suppress(SidecarError):  # then its lease lapses
            await self._keep(job)
            await self._store.renew(replace(job.lease, beat=job.lease.beat + 1, released=True))
        self._handing_over.pop(job.job_id, None)

    # --- looking and waiting ------------------------------------------------------------------------------------------

    def _own(self, job_id: JobId, owner: str) -> Job | None:
        """A job that is worked on here. Raises JobNotFound where its id is another owner's."""
        if job_id.owner_tag != owner_tag(owner):
            raise JobNotFound
        job = self._jobs.get(job_id) or self.upkeep.unacknowledged.get(job_id)
        if job is not None and job.record.owner != owner:
            raise JobNotFound
        return job

    async def _stored(self, job_id: JobId, owner: str) -> StoredJob | None:
        """None for a job of which only its images are kept. Raises JobNotFound, StorageFailure."""
        job = self._own(job_id, owner)
        if job is not None:
            await self._keep(job)
        try:
            return self._views.checked(await self._store.read(job_id), owner)
        except JobNotFound:
            return None

    async def handle(self, job_id: JobId, owner: str = ANONYMOUS) -> JobView:
        """The view of a job at the moment its first caller is given its id: from now on it is kept.

        What the runtime has begun is told of even where the store takes no record, for it will be painted: it is known
        here, its record is tried again, and its images tell of it. What only waits is given up then. Raises
        StorageFailure.
        """
        job = self._own(job_id, owner)
        if job is not None:
            try:
                async with asyncio.timeout(_RECORDING_SECONDS):
                    await self._keep(job)
            except (StorageFailure, TimeoutError) as error:
                if not job.record.begun:
                    self.leave(job_id)
                    raise _not_kept(error) from error
        return await self.view(job_id, owner)

    async def view(self, job_id: JobId, owner: str = ANONYMOUS) -> JobView:
        """How a job stands. Raises JobNotFound, GenerationUnknown."""
        with unknown_without_the_store(_UNKNOWN, job_id):
            return await self._view(job_id, owner)

    async def _view(self, job_id: JobId, owner: str) -> JobView:
        job = self._own(job_id, owner)
        if job is not None and (job.result is not None or job.generation.begun or not job.told):
            return job.view
        try:
            stored = await self._stored(job_id, owner)
        except StorageFailure:
            if job is None or job.unrecorded:
                raise
            return job.view  # where it waits is known here
        if stored is None:
            return await self._views.of_images(job_id, owner)
        if stored.result is None and job is not None:
            return job.view
        if job is not None:
            self._lose(job)  # another pod has ended it while it waited here
        return await self._views.of_stored(stored)

    async def wait(self, job_id: JobId, seconds: float, owner: str = ANONYMOUS) -> JobView:
        """The view as soon as the job has ended, or after `seconds`. Raises JobNotFound, GenerationUnknown."""
        with unknown_without_the_store(_UNKNOWN, job_id):
            return await self._wait(job_id, seconds, owner)

    async def _wait(self, job_id: JobId, seconds: float, owner: str) -> JobView:
        job = self._own(job_id, owner)
        if job is not None:
            await asyncio.wait({job.ending}, timeout=seconds)
            return job.view if job.result is not None or job.released else await self._view(job_id, owner)
        if self._leaving:  # a process that is about to end lets no caller wait
            return replace(await self._view(job_id, owner), handed_over=True)
        try:
            stored = self._views.checked(await self._watches.wait(job_id, seconds), owner)
        except JobNotFound:
            return await self._views.of_images(job_id, owner)
        return await self._views.of_stored(stored)


def _not_kept(error: Exception) -> StorageFailure:
    if isinstance(error, StorageFailure):
        return error
    return StorageFailure(
        "The image store is slow at the moment, so the generation was not begun. Repeat the call.", retry_after=5
    )
