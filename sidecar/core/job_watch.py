"""Looking at a job of another pod until it has ended: once for each job and process, however many wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sidecar.core.job import look_at_failure
from sidecar.domain import JobId, StoredJob
from sidecar.errors import SidecarError
from sidecar.ports import JobStore

WATCH_SECONDS = 0.5
_LINGER_LOOKS = 6  # a watch outlives its last waiter for so long, because who waits comes back in slices


class JobWatch:
    """What was last seen of one job. `forget` is called when the watch is over."""

    def __init__(self, store: JobStore, job_id: JobId, forget: Callable[[], object]) -> None:
        self._store = store
        self._job_id = job_id
        self._waiting = 0
        self._seen = asyncio.Event()
        self._latest: StoredJob | None = None
        self._failure: SidecarError | None = None
        self._task = asyncio.create_task(self._look())
        self._task.add_done_callback(look_at_failure)
        self._task.add_done_callback(lambda _: forget())

    async def wait(self, seconds: float) -> StoredJob:
        """The job once it has ended, or as it is after `seconds`. Raises JobNotFound, StorageFailure."""
        self._waiting += 1
        try:
            await asyncio.wait({self._task}, timeout=seconds)
            await self._seen.wait()
        finally:
            self._waiting -= 1
        if self._failure is not None:
            raise self._failure
        if self._latest is None:
            raise RuntimeError("a watch that has seen nothing")
        return self._latest

    async def _look(self) -> None:
        idle = 0
        while idle < _LINGER_LOOKS:
            try:
                self._latest, self._failure = await self._store.read(self._job_id), None
            except SidecarError as error:
                self._failure = error
                return
            finally:
                self._seen.set()
            if self._latest.result is not None:
                return
            await asyncio.sleep(WATCH_SECONDS)
            idle = 0 if self._waiting else idle + 1
