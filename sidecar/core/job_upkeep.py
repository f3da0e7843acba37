"""What a process does at each interval for the jobs it holds, and for those whose holder has died."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sidecar.core.job import Job
from sidecar.core.job_takeover import SILENT_INTERVALS, JobTakeover
from sidecar.domain import JobId
from sidecar.errors import StorageFailure, StoreAway
from sidecar.events import Crashed, EndForgotten
from sidecar.ports import Clock, JobStore, Observer

AT_ONCE = 16
"""Ends that are told to the store at once."""
MOST_UNACKNOWLEDGED = 1000
"""Each keeps a generation with its prompts in memory."""
REFUSED_SECONDS = 6 * 3600.0
"""How long a store that can be reached may refuse to record an end before this process gives up."""
_LONGEST_PAUSE_SECONDS = 300.0


@dataclass(slots=True)
class _Unrecorded:
    """Since when (monotonic) an end waits for the store, and since when the store has refused it, if it does."""

    since: float
    refused_since: float | None = None


class JobUpkeep:
    """`jobs` are those under way here. `record` writes one's record, `lose` gives one up that is not ours any more."""

    def __init__(
        self,
        store: JobStore,
        jobs: Mapping[JobId, Job],
        takeover: JobTakeover,
        *,
        interval: float,
        record: Callable[[Job], Coroutine[Any, Any, None]],
        lose: Callable[[Job], None],
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._takeover = takeover
        self._interval = interval
        self._record = record
        self._lose = lose
        self._clock = clock
        self._observer = observer
        self.unacknowledged: dict[JobId, Job] = {}
        """Those that have ended and whose end the store could not take yet."""
        self._unrecorded: dict[JobId, _Unrecorded] = {}

    async def run(self) -> None:
        """Until cancelled. Each duty goes its own way, so that none waits for a store that is slow with another.

        Renewals that failed are repeated sooner: a store that is back must hear of us long before we are given up.
        """
        soon = self._interval / SILENT_INTERVALS
        async with asyncio.TaskGroup() as duties:
            duties.create_task(self._again_and_again(self.renew, after_a_failure=soon))
            duties.create_task(
                self._again_and_again(
                    self.acknowledge, after_a_failure=self._interval, longest_pause=_LONGEST_PAUSE_SECONDS
                )
            )
            duties.create_task(self._again_and_again(self._takeover.look, after_a_failure=self._interval))

    async def _again_and_again(
        self, duty: Callable[[], Awaitable[None]], *, after_a_failure: float, longest_pause: float = 0.0
    ) -> None:
        """Pauses grow up to `longest_pause` where the store answers and refuses: unlike an outage, that lasts."""
        refusals = 0
        while True:
            pause = self._interval
            try:
                await duty()
                refusals = 0
            except StoreAway:
                pause = after_a_failure  # counted by the store
            except StorageFailure:
                pause = max(after_a_failure, min(longest_pause, after_a_failure * 2.0**refusals))
                refusals = min(refusals + 1, 10)
            except Exception as error:
                self._observer(Crashed(what="looking after jobs", error=error))
            await self._clock.sleep(pause)

    # --- leases -------------------------------------------------------------------------------------------------------

    async def renew(self) -> None:
        """Show that the jobs here are held. One that is no longer ours was ended or taken over by another pod.

        What could not be recorded when its id was given out is recorded now. Raises StorageFailure where the store
        takes no renewal at all: then others may be unable to renew as well.
        """
        jobs = self._held()
        outcomes = await asyncio.gather(*(self._renew(job) for job in jobs), return_exceptions=True)
        for job, ours in zip(jobs, outcomes, strict=True):
            if ours is False and job.result is None and job.job_id in self._jobs:
                self._lose(job)
        try:
            self._look_at(outcomes, "renewing a lease")
        except StorageFailure:
            self._takeover.forget()
            raise

    def _held(self) -> list[Job]:
        under_way = [job for job in self._jobs.values() if job.is_recorded and job.result is None and not job.released]
        return under_way + [job for job in self.unacknowledged.values() if job.is_recorded]

    async def _renew(self, job: Job) -> bool:
        if not job.unrecorded:
            job.lease = replace(job.lease, beat=job.lease.beat + 1)
            return await self._store.renew(job.lease)
        if job.record.begun and job.result is None:
            job.record_by(self._record(job))
        return True

    # --- ends that the store could not take ---------------------------------------------------------------------------

    def acknowledge_later(self, job: Job) -> None:
        """Of too many the oldest is forgotten: what it has come to is then told by its images."""
        self.unacknowledged.pop(job.job_id, None)
        self.unacknowledged[job.job_id] = job
        self._unrecorded.setdefault(job.job_id, _Unrecorded(self._clock.monotonic()))
        while len(self.unacknowledged) > MOST_UNACKNOWLEDGED:
            self._forget(next(iter(self.unacknowledged)))

    def _forget(self, job_id: JobId) -> None:
        self.unacknowledged.pop(job_id, None)
        self._unrecorded.pop(job_id, None)

    async def acknowledge(self) -> None:
        """Tell the store how they ended, some at once; what fails stands behind the others then.

        Raises StorageFailure where it takes none of some: then it is not asked for all the others either.
        """
        waiting = list(self.unacknowledged.values())
        for start in range(0, len(waiting), AT_ONCE):
            batch = waiting[start : start + AT_ONCE]
            outcomes = await asyncio.gather(*(self._acknowledge(job) for job in batch), return_exceptions=True)
            self._look_at(outcomes, "acknowledging a job")

    async def _acknowledge(self, job: Job) -> None:
        try:
            if job.result is not None:
                await self._store.acknowledge(job.record, job.result)
        except StorageFailure as failure:
            self._failed(job, failure)
            raise
        except Exception:
            self.acknowledge_later(job)
            raise
        self._forget(job.job_id)

    def _failed(self, job: Job, failure: StorageFailure) -> None:
        """Try again later, but not for ever: not past the job's own life, and not for days where the store refuses."""
        self.acknowledge_later(job)
        waits, now = self._unrecorded[job.job_id], self._clock.monotonic()
        if isinstance(failure, StoreAway):
            waits.refused_since = None
        elif waits.refused_since is None:
            waits.refused_since = now
        refused = 0.0 if waits.refused_since is None else now - waits.refused_since
        life = (job.record.expires - job.record.created).total_seconds()
        if refused < REFUSED_SECONDS and now - waits.since < life:
            return
        self._forget(job.job_id)
        self._observer(
            EndForgotten(
                model=job.model,
                status=job.result.status if job.result else "unknown",
                hours=round((now - waits.since) / 3600, 1),
                detail=failure.detail,
            )
        )

    def _look_at(self, outcomes: Sequence[object], what: str) -> None:
        """Raises StorageFailure where the store has failed every one of them."""
        for outcome in outcomes:
            if isinstance(outcome, Exception) and not isinstance(outcome, StorageFailure):
                self._observer(Crashed(what=what, error=outcome))
        failures = [outcome for outcome in outcomes if isinstance(outcome, StorageFailure)]
        if failures and len(failures) == len(outcomes):
            raise failures[0]
