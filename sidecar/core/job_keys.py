"""Of all calls with one idempotency key one is taken on, and the others get its job."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from sidecar.core.job import Job, unknown_without_the_store
from sidecar.core.key_locks import KeyLocks
from sidecar.domain import JobId, JobRecord
from sidecar.errors import GenerationUnknown, JobNotFound, KeyConflict, StorageFailure
from sidecar.ports import Clock, JobStore

_UNKNOWN = (
    "The image store cannot be asked at the moment whether a generation with this idempotency_key exists. Nothing was "
    "begun by this call."
)
_TRIES = 5  # where a key is lost to a job that gives it up again


class JobKeys:
    """`jobs` are those under way here. `take` puts a job in line here, `keep` has it recorded and wins its key."""

    def __init__(
        self,
        store: JobStore,
        jobs: Mapping[JobId, Job],
        *,
        take: Callable[[JobRecord], Job],
        keep: Callable[[Job], Awaitable[None]],
        clock: Clock,
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._take = take
        self._keep = keep
        self._clock = clock
        self._locks = KeyLocks()

    async def job_of(self, record: JobRecord, key_digest: str) -> JobId:
        """The job that has the key: one that was there, or else the one of this record.

        Raises GenerationUnknown while the store cannot say which job has the key, StorageFailure where it does not
        take a new one, KeyConflict where the key was used with other arguments, and what `take` raises.
        """
        async with self._locks.alone(key_digest):
            for _ in range(_TRIES):
                with unknown_without_the_store(_UNKNOWN, None):
                    holder = await self._store.key_holder(key_digest)
                if holder is not None:
                    with contextlib.suppress(JobNotFound):  # it has expired, or its pod could not take it
                        return await self._same(holder, record.arguments_digest)
                if await self._takes(record):
                    return record.job_id
                record = _with_another_id(record)
        raise GenerationUnknown(_UNKNOWN, job_id=None, retry_after=1)

    async def _takes(self, record: JobRecord) -> bool:
        """Take a job on; whether it has won its key."""
        job = self._take(record)
        try:
            await self._keep(job)
        except StorageFailure:
            job.leave()  # its caller is told so, and does not come back for this one
            raise
        return not job.lost

    async def _same(self, job_id: JobId, arguments_digest: str) -> JobId:
        local = self._jobs.get(job_id)
        with unknown_without_the_store(_UNKNOWN, job_id):
            record = local.record if local else (await self._store.read(job_id)).record
        if record.expires <= self._clock.now():
            raise JobNotFound
        if record.arguments_digest != arguments_digest:
            raise KeyConflict(
                "idempotency_key: it was used before with other arguments; use a new key for another picture, or the "
                "same arguments to get the same one."
            )
        return job_id


def _with_another_id(record: JobRecord) -> JobRecord:
    """The job before it, which has been withdrawn, may still be on its way out."""
    job_id = JobId.new(record.created, record.owner)
    return replace(record, job_id=job_id, image_ids=job_id.images(len(record.requests)))
