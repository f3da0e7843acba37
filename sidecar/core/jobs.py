"""Generations that outlive their caller, their connection and their pod.

A job is recorded in the store before anybody is given its id. Whoever takes a job holds its lease and shows that it
lives; a pod that sees a lease unchanged for three intervals, by its own clock, takes over what was not begun and
records as interrupted what was. `JobStore.begin` happens once for each job, so no job is asked of a runtime twice, and
`acknowledge` counts once, so a pod that comes back late changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from sidecar.config import JobSettings
from sidecar.core.generation import Generation, Progress
from sidecar.core.service import ImageService
from sidecar.domain import (
    ANONYMOUS,
    GenerationRequest,
    ImageId,
    JobId,
    JobRecord,
    JobResult,
    Lease,
    MissingImage,
    StoredImage,
    StoredJob,
)
from sidecar.errors import (
    ImageNotFound,
    Interrupted,
    InvalidRequest,
    JobNotFound,
    KeyConflict,
    RuntimeTimedOut,
    ShuttingDown,
    SidecarError,
    StorageFailure,
    TakenElsewhere,
)
from sidecar.events import Crashed, JobTakenOver
from sidecar.ports import Clock, JobStore, Observer

SILENT_INTERVALS = 3
WATCH_SECONDS = 0.5
_MAY_STILL_COME = frozenset({RuntimeTimedOut.reason, Interrupted.reason})
_LONG = 3600.0

JobStatus = Literal["queued", "working", "completed", "failed", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """What a caller may know of a job. `job_id` is None where it could not be recorded.

    `gone` counts images that were made and are no longer stored; `progress` is known where the job is worked on here.
    """

    job_id: JobId | None
    status: JobStatus
    model: str
    total: int
    created: datetime
    updated: datetime
    images: tuple[StoredImage, ...] = ()
    missing: tuple[MissingImage, ...] = ()
    gone: int = 0
    reason: str | None = None
    message: str | None = None
    progress: Progress | None = None
    elapsed: float = 0.0

    @property
    def ended(self) -> bool:
        return self.status in ("completed", "failed", "cancelled")


class Job:
    """A job that this process works on."""

    def __init__(self, record: JobRecord, lease: Lease, generation: Generation) -> None:
        self.record = record
        self.lease = lease
        self.generation = generation
        self.cancelled = False
        self.lost = False
        """Whether it turned out not to be ours: then somebody else says how it ended."""
        self.told = record.key_digest is not None
        """Whether somebody may come back for it: then it is not dropped when its caller leaves."""
        self.recorded: asyncio.Task[None]
        self.ending: asyncio.Task[None]
        self.result: JobResult | None = None


class JobService:
    """Submit, look at, wait for and cancel jobs; adopt those of pods that have died. `instance` names this process."""

    def __init__(
        self,
        images: ImageService,
        store: JobStore,
        settings: JobSettings,
        *,
        instance: str,
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
        self._keys: dict[str, asyncio.Lock] = {}
        self._watches: dict[JobId, _Watch] = {}
        self._seen: dict[JobId, tuple[Lease, float]] = {}

    # --- asking for images --------------------------------------------------------------------------------------------

    async def submit(
        self,
        requests: Sequence[GenerationRequest],
        *,
        owner: str = ANONYMOUS,
        key: str | None = None,
        arguments: str = "",
    ) -> JobId:
        """Take a generation on; with a `key` that was used before, the job it was used for.

        `arguments` is what the caller gave, in a form that is equal for equal calls. Raises QueueFull, StorageFull,
        ShuttingDown, StorageFailure, or KeyConflict where the key was used with other arguments.
        """
        digest = hashlib.sha256(arguments.encode()).hexdigest()
        if key is None:
            return self._take(requests, owner, None, digest).record.job_id
        key_digest = hashlib.sha256(f"{owner}\0{key}".encode()).hexdigest()
        async with self._only_one(key_digest):
            while (holder := await self._store.key_holder(key_digest)) is not None:
                try:
                    return await self._same(holder, digest)
                except JobNotFound:
                    break  # its time is over, or its pod could not take it
            job = self._take(requests, owner, key_digest, digest)
            await asyncio.shield(job.recorded)
            if job.record.job_id in self._jobs:
                return job.record.job_id
            return await self._same(await self._store.win_key(job.record), digest)

    @asynccontextmanager
    async def _only_one(self, key_digest: str) -> AsyncIterator[None]:
        """Calls with one key go one after the other here; across pods the store decides."""
        lock = self._keys.setdefault(key_digest, asyncio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():
                self._keys.pop(key_digest, None)

    async def _same(self, job_id: JobId, arguments_digest: str) -> JobId:
        local = self._jobs.get(job_id)
        record = local.record if local else (await self._store.read(job_id)).record
        if record.arguments_digest != arguments_digest:
            raise KeyConflict(
                "idempotency_key: it was used before with other arguments; use a new key for another picture, or the "
                "same arguments to get the same one."
            )
        return job_id

    def _take(
        self, requests: Sequence[GenerationRequest], owner: str, key_digest: str | None, arguments_digest: str
    ) -> Job:
        now = self._clock.now()
        record = JobRecord(
            job_id=JobId.new(now, owner),
            owner=owner,
            requests=tuple(requests),
            image_ids=self._images.mint(len(requests), owner),
            created=now,
            expires=now + timedelta(seconds=self._settings.ttl),
            holder=self._instance,
            key_digest=key_digest,
            arguments_digest=arguments_digest,
        )
        job = self._start(record, Lease(job_id=record.job_id, attempt=1, holder=self._instance))
        if job.generation.begun and key_digest is None:
            # Nobody else knows of it, so it need not wait for its own record: that is written while the runtime works.
            job.record = replace(record, begun=True)
        job.recorded = asyncio.create_task(self._record(job))
        job.recorded.add_done_callback(_look_at_failure)
        return job

    def _start(self, record: JobRecord, lease: Lease) -> Job:
        """Put a job in line here. Its admission refers to the job, which exists before any of its tasks runs."""

        async def admit() -> None:
            await self._admit(job)

        job = Job(record, lease, self._images.submit(record.requests, record.owner, record.image_ids, admit))
        self._jobs[record.job_id] = job
        job.ending = asyncio.create_task(self._see_through(job), name=f"job {record.job_id}")
        return job

    async def _record(self, job: Job) -> None:
        await self._store.offer(job.record)
        if job.record.key_digest is None:
            return
        if await self._store.win_key(job.record) != job.record.job_id:
            self._lose(job)
            await self._store.withdraw(job.record.job_id)

    def _lose(self, job: Job) -> None:
        job.lost = True
        self._jobs.pop(job.record.job_id, None)
        job.generation.abandon()

    async def _admit(self, job: Job) -> None:
        """Before the runtime is asked: raise TakenElsewhere where this job is not ours to begin."""
        if job.record.begun:
            return
        await asyncio.shield(job.recorded)
        if job.record.begun:  # another image of this job came first
            return
        if job.lost or job.cancelled or not await self._store.begin(job.lease):
            raise TakenElsewhere
        job.record = replace(job.record, begun=True)

    # --- ending -------------------------------------------------------------------------------------------------------

    async def _see_through(self, job: Job) -> None:
        """Wait for a job's images and record how it ended."""
        try:
            while not await job.generation.wait(_LONG):
                pass
            with contextlib.suppress(StorageFailure):  # what was not recorded may still be stored
                await asyncio.shield(job.recorded)
            await self._conclude(job)
        except StorageFailure:
            job.result = job.result or self._result(job)  # told to who waits here; others find its images later
        except Exception as error:
            self._observer(Crashed(what="job", error=error))
            job.result = job.result or self._result(job)
        finally:
            self._jobs.pop(job.record.job_id, None)

    async def _conclude(self, job: Job) -> None:
        if job.lost:
            return
        result = self._result(job)
        if self._images.draining and not job.record.begun and job.told and not job.cancelled:
            await self._store.renew(replace(job.lease, beat=job.lease.beat + 1, released=True))
        elif any(missing.reason == TakenElsewhere.reason for missing in result.missing):
            return  # somebody else says how it ended
        else:
            job.result = result
            await self._store.acknowledge(job.record, result)

    def _result(self, job: Job) -> JobResult:
        generation = job.generation
        if job.cancelled and not generation.images:
            return self._cancelled(job.lease)
        missing = generation.missing
        first = missing[0] if missing else None
        return JobResult(
            job_id=job.record.job_id,
            attempt=job.lease.attempt,
            status="completed" if generation.images else "failed",
            finished=self._clock.now(),
            missing=missing,
            reason=first.reason if first else None,
            message=first.message if first else None,
        )

    def leave(self, job_id: JobId) -> None:
        """Its caller has gone without an answer. What nobody can come back for is dropped where it still waits."""
        job = self._jobs.get(job_id)
        if job is None or job.told:
            return
        job.cancelled = not job.generation.begun
        job.generation.abandon()

    async def cancel(self, job_id: JobId, owner: str = ANONYMOUS) -> JobView:
        """Take a queued job out of the line; nothing stops a runtime that works. Raises JobNotFound."""
        job = self._jobs.get(job_id)
        stored = await self._stored(job_id, owner)
        if stored.result is not None or stored.begun or (job is not None and job.generation.begun):
            return await self.view(job_id, owner)
        lease = job.lease if job is not None else stored.lease
        if await self._store.begin(lease):
            await self._store.acknowledge(stored.record, self._cancelled(lease))
            if job is not None:
                job.cancelled = True
                job.generation.abandon()
                await asyncio.wait({job.ending})
        return await self.view(job_id, owner)

    def _cancelled(self, lease: Lease) -> JobResult:
        return JobResult(
            job_id=lease.job_id,
            attempt=lease.attempt,
            status="cancelled",
            finished=self._clock.now(),
            message="The generation was cancelled before the runtime had begun.",
        )

    async def drain(self, grace: float) -> None:
        """Let what is under way finish within `grace` seconds; what waits with a handle is left to the next pod."""
        await self._images.drain(grace)
        await asyncio.gather(*(job.ending for job in list(self._jobs.values())), return_exceptions=True)

    # --- looking and waiting ------------------------------------------------------------------------------------------

    async def _stored(self, job_id: JobId, owner: str) -> StoredJob:
        job = self._jobs.get(job_id)
        if job is not None:
            await asyncio.shield(job.recorded)
            stored = StoredJob(record=job.record, lease=job.lease, begun=job.record.begun, result=job.result)
        else:
            stored = await self._store.read(job_id)
        if stored.record.owner != owner or stored.record.expires <= self._clock.now():
            raise JobNotFound
        return stored

    async def handle(self, job_id: JobId, owner: str = ANONYMOUS) -> JobView:
        """The view of a job whose id its caller is about to be given: from now on it is kept. Raises StorageFailure."""
        job = self._jobs.get(job_id)
        if job is not None:
            await asyncio.shield(job.recorded)
            job.told = True
        return await self.view(job_id, owner)

    async def view(self, job_id: JobId, owner: str = ANONYMOUS) -> JobView:
        """How a job stands. Raises JobNotFound, StorageFailure."""
        job = self._jobs.get(job_id)
        if job is not None and job.result is None:
            if job.record.owner != owner:
                raise JobNotFound
            return _live_view(job)
        stored = await self._stored(job_id, owner)
        if stored.result is None:
            return JobView(
                job_id=job_id,
                status="working" if stored.begun else "queued",
                model=stored.record.requests[0].model,
                total=len(stored.record.requests),
                created=stored.record.created,
                updated=stored.record.created,
                elapsed=max(0.0, (self._clock.now() - stored.record.created).total_seconds()),
            )
        return await self._ended_view(stored.record, stored.result)

    async def _ended_view(self, record: JobRecord, result: JobResult) -> JobView:
        """With the images as they are in the store now: some may have come late, others may have expired."""
        lost = {missing.number: missing for missing in result.missing}
        images, missing, gone = [], [], 0
        for number, image_id in enumerate(record.image_ids, start=1):
            why = lost.get(number)
            stored = await self._image(image_id) if why is None or why.reason in _MAY_STILL_COME else None
            if stored is not None:
                images.append(stored)
            elif why is not None:
                missing.append(why)
            elif result.status == "completed":
                gone += 1
        return JobView(
            job_id=record.job_id,
            status="completed" if images else result.status,
            model=record.requests[0].model,
            total=len(record.requests),
            created=record.created,
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

    async def wait(self, job_id: JobId, seconds: float, owner: str = ANONYMOUS) -> JobView:
        """The view as soon as the job has ended, or after `seconds`. Raises JobNotFound, StorageFailure."""
        job = self._jobs.get(job_id)
        if job is not None:
            if job.record.owner != owner:
                raise JobNotFound
            await asyncio.wait({job.ending}, timeout=seconds)
            if job.result is not None:
                return await self._own_view(job)
        else:
            view = await self.view(job_id, owner)
            if view.ended or seconds <= 0:
                return view
            await self._watch(job_id).wait(seconds)
        return await self.view(job_id, owner)

    async def _own_view(self, job: Job) -> JobView:
        """Of a job that has just ended here: its images are at hand, and its record may have failed to be written."""
        failed = job.recorded.done() and (job.recorded.cancelled() or job.recorded.exception() is not None)
        view = _live_view(job)
        result = job.result or self._result(job)
        return replace(
            view,
            job_id=None if failed else view.job_id,
            status=result.status,
            updated=result.finished,
            missing=result.missing,
            reason=result.reason,
            message=result.message,
            progress=None,
        )

    def _watch(self, job_id: JobId) -> _Watch:
        """One for each job and process, however many wait."""
        watch = self._watches.get(job_id)
        if watch is None:
            watch = self._watches[job_id] = _Watch(self._store, job_id, lambda: self._watches.pop(job_id, None))
        return watch

    # --- other pods ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Show that this process lives, and look after the jobs of those that do not, until cancelled."""
        while True:
            for step in (self.renew, self.look_after_others):
                try:
                    await step()
                except StorageFailure:
                    pass  # counted by the store; the next interval tries again
                except Exception as error:
                    self._observer(Crashed(what=step.__name__, error=error))
            await self._clock.sleep(self._settings.lease_interval)

    async def renew(self) -> None:
        for job in list(self._jobs.values()):
            if job.recorded.done() and job.result is None:
                job.lease = replace(job.lease, beat=job.lease.beat + 1)
                await self._store.renew(job.lease)

    async def look_after_others(self) -> None:
        """Take over what has been silent for three intervals, or was given up by a pod that stopped."""
        unfinished = await self._store.unfinished()
        now = self._clock.monotonic()
        seen: dict[JobId, tuple[Lease, float]] = {}
        for stored in unfinished:
            job_id, lease = stored.record.job_id, stored.lease
            if job_id in self._jobs:
                continue
            before = self._seen.get(job_id)
            since = before[1] if before is not None and before[0] == lease else now
            seen[job_id] = (lease, since)
            if lease.released or now - since >= SILENT_INTERVALS * self._settings.lease_interval:
                await self._take_over(stored)
        self._seen = seen

    async def _take_over(self, stored: StoredJob) -> None:
        if stored.begun:
            await self._give_up(stored, "The sidecar that worked on it ended before the image was stored.")
        elif stored.record.expires <= self._clock.now():
            await self._give_up(stored, "No sidecar could take it before its time was over.")
        elif not await self._is_unwanted(stored.record):
            await self._adopt(stored)

    async def _is_unwanted(self, record: JobRecord) -> bool:
        """Whether another job won the key of this one before its pod could withdraw it."""
        if record.key_digest is None or await self._store.key_holder(record.key_digest) == record.job_id:
            return False
        await self._store.withdraw(record.job_id)
        return True

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

    async def _adopt(self, stored: StoredJob) -> None:
        """In line here first, so that a full queue leaves the job to a pod with room; then the claim decides.

        Not before the runtime is ready: after a restart of the whole pod it may load its model for minutes.
        """
        record = stored.record
        lease = Lease(job_id=record.job_id, attempt=stored.lease.attempt + 1, holder=self._instance)
        try:
            lane = self._images.lane(record.requests[0].model)
            if not (lane.ready and lane.queue.has_room):
                return
            job = self._start(record, lease)
        except (ShuttingDown, InvalidRequest, StorageFailure):
            return
        job.told = True
        job.recorded = asyncio.create_task(self._claim(job))
        job.recorded.add_done_callback(_look_at_failure)
        with contextlib.suppress(SidecarError):
            await asyncio.shield(job.recorded)

    async def _claim(self, job: Job) -> None:
        claimed = False
        try:
            claimed = await self._store.claim(job.lease)
        finally:
            if not claimed:
                self._lose(job)
        if not claimed:
            raise TakenElsewhere
        self._observer(JobTakenOver(model=job.record.requests[0].model, adopted=True))


class _Watch:
    """Looks at a job of another pod until it has ended, as long as somebody waits."""

    def __init__(self, store: JobStore, job_id: JobId, forget: Callable[[], object]) -> None:
        self._store = store
        self._job_id = job_id
        self._waiting = 0
        self._task = asyncio.create_task(self._look())
        self._task.add_done_callback(lambda _: forget())

    async def wait(self, seconds: float) -> None:
        self._waiting += 1
        try:
            await asyncio.wait({self._task}, timeout=seconds)
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._task.cancel()

    async def _look(self) -> None:
        while True:
            try:
                if (await self._store.read(self._job_id)).result is not None:
                    return
            except JobNotFound:
                return
            except StorageFailure:
                pass  # who waits is told when its own look fails
            await asyncio.sleep(WATCH_SECONDS)


def _live_view(job: Job) -> JobView:
    progress = job.generation.progress
    return JobView(
        job_id=job.record.job_id,
        status="working" if job.generation.begun else "queued",
        model=job.record.requests[0].model,
        total=len(job.record.requests),
        created=job.record.created,
        updated=job.record.created,
        images=job.generation.images,
        progress=progress,
        elapsed=progress.elapsed,
    )


def _look_at_failure(task: asyncio.Task[None]) -> None:
    """Mark a failure as seen: who needs the outcome awaits the task, but maybe nobody does."""
    if not task.cancelled():
        task.exception()
