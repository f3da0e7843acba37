"""Looking at a job of another pod until it has ended: once for each job and process, however many wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sidecar.core.job import look_at_failure
from sidecar.domain import JobId, StoredJob
from sidecar.errors import JobNotFound, SidecarError, StorageFailure
from sidecar.ports import Clock, JobStore

WATCH_SECONDS = 0.5
_AFTER_A_FAILURE_SECONDS = 2.0
_LINGER_LOOKS = 6  # a watch outlives its last waiter for so long, because callers wait in slices


class JobWatches:
    """The watches of one process."""

    def __init__(self, store: JobStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._watches: dict[JobId, _JobWatch] = {}

    async def wait(self, job_id: JobId, seconds: float) -> StoredJob:
        """The job once it has ended, or as it was last seen when `seconds` are over.

        A store that fails meanwhile is asked again. Raises JobNotFound, and StorageFailure where nothing was seen.
        """
        watch = self._watches.get(job_id)
        if watch is None:
            watch = _JobWatch(self._store, job_id, self._clock, lambda: self._watches.pop(job_id, None))
            self._watches[job_id] = watch
        return await watch.wait(seconds)


class _JobWatch:
    """What was last seen of one job. `forget` is called when the watch is over."""

    def __init__(self, store: JobStore, job_id: JobId, clock: Clock, forget: Callable[[], object]) -> None:
        self._store = store
        self._job_id = job_id
        self._clock = clock
        self._waiting = 0
        self._looked = asyncio.Event()
        self._latest: StoredJob | None = None
        self._failure: SidecarError | None = None
        self._task = asyncio.create_task(self._watch())
        self._task.add_done_callback(look_at_failure)
        self._task.add_done_callback(lambda _: forget())

    async def wait(self, seconds: float) -> StoredJob:
        self._waiting += 1
        try:
            await asyncio.wait({self._task}, timeout=seconds)
            await self._looked.wait()
        finally:
            self._waiting -= 1
        if self._latest is not None:
            return self._latest
        if self._failure is not None:
            raise self._failure
        raise RuntimeError("a watch that has seen nothing")

    async def _watch(self) -> None:
        idle = 0
        while idle < _LINGER_LOOKS and not self._over:
            try:
                await self._look()
            finally:
                self._looked.set()
            if not self._over:
                await self._clock.sleep(_AFTER_A_FAILURE_SECONDS if self._failure else WATCH_SECONDS)
            idle = 0 if self._waiting else idle + 1

    @property
    def _over(self) -> bool:
        ended = self._latest is not None and self._latest.result is not None
        return ended or isinstance(self._failure, JobNotFound)

    async def _look(self) -> None:
        try:
            self._latest, self._failure = await self._store.read(self._job_id), None
        except JobNotFound as error:
            self._latest, self._failure = None, error
        except StorageFailure as error:
            self._failure = error
