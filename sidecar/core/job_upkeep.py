"""What a process does at each interval for the jobs it holds, and for those that nobody holds any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

from sidecar.core.job import Job
from sidecar.core.job_takeover import JobTakeover
from sidecar.domain import JobId
from sidecar.errors import StorageFailure
from sidecar.events import Crashed
from sidecar.ports import Clock, JobStore, Observer


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

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            for step in (self.acknowledge, self.renew, self._takeover.look):
                try:
                    await step()
                except StorageFailure:
                    pass  # counted by the store; the next interval tries again
                except Exception as error:
                    self._observer(Crashed(what=step.__name__, error=error))
            await self._clock.sleep(self._interval)

    def acknowledge_later(self, job: Job) -> None:
        self.unacknowledged[job.job_id] = job

    async def acknowledge(self) -> None:
        for job_id, job in list(self.unacknowledged.items()):
            if job.result is not None:
                await self._store.acknowledge(job.record, job.result)
            del self.unacknowledged[job_id]

    async def renew(self) -> None:
        """A lease that is no longer ours tells that another pod has ended the job or taken it over.

        What could not be recorded when its id was given out is recorded now.
        """
        jobs = [job for job in self._jobs.values() if job.is_recorded and job.result is None and not job.released]
        renewed = await asyncio.gather(*(self._renew(job) for job in jobs), return_exceptions=True)
        for job, ours in zip(jobs, renewed, strict=True):
            if ours is False and job.result is None and job.job_id in self._jobs:
                self._lose(job)

    async def _renew(self, job: Job) -> bool:
        if job.unrecorded:
            if job.record.begun:
                job.record_by(self._record(job))
            return True
        job.lease = replace(job.lease, beat=job.lease.beat + 1)
        return await self._store.renew(job.lease)
