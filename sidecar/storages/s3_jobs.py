"""Generations in a bucket, by the keys the directory has them under (file_jobs.py says what each is).

Every "once" is a PUT with `If-None-Match: *`, of which a store lets exactly one succeed. A generation that began before
it was recorded costs two PUTs here: the job, and the job with its result.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, Literal, TypeVar

from sidecar.domain import JobCount, JobId, JobRecord, JobResult, Lease, StoredJob
from sidecar.errors import JobNotFound, StorageFailure, StoreAway
from sidecar.ports import Clock, Observer
from sidecar.storages import keys, listed_keys
from sidecar.storages.disk import LEFTOVER_SECONDS
from sidecar.storages.job_records import (
    decode_job,
    decode_key,
    decode_lease,
    encode_job,
    encode_key,
    encode_lease,
    expiry_of_job,
)
from sidecar.storages.job_tally import JobTally, is_disposable
from sidecar.storages.listed_keys import JobPart
from sidecar.storages.s3_bucket import Bucket
from sidecar.storages.s3_errors import Damaged
from sidecar.storages.s3_listing import Entry
from sidecar.storages.s3_lookups import Lookups

_T = TypeVar("_T")

_LATER_ATTEMPTS = 2  # leases that others may have taken since this one; what is beyond is swept
_DELETIONS_PER_PASS = 10_000
_COUNT_SECONDS = 3600.0
_TRIES = 10  # to win a key that is being given up, and to take a mark back


class S3Jobs:
    """The `JobStore` port on a bucket."""

    def __init__(self, bucket: Bucket, clock: Clock, observer: Observer) -> None:
        self._bucket = bucket
        self._tally = JobTally(observer)
        self._clock = clock
        self._counted_at = -math.inf
        self._read_before: dict[str, tuple[str, Any]] = {}
        """ETag and decoded content of the open objects, by key."""
        self._regretted: dict[tuple[str, str], int] = {}
        """Keys and marks of what must not have been made and may be there, or arrive yet; how often it was refused."""

    # --- one job ------------------------------------------------------------------------------------------------------

    async def offer(self, record: JobRecord) -> None:
        data = encode_job(record)
        await self._bucket.put("offer", keys.open_job_key(record.job_id), data)
        self._tally.offered(record, len(data))

    async def withdraw(self, job_id: JobId) -> None:
        await self._remove_open("withdraw", job_id, 1)
        self._tally.withdrawn(job_id)

    async def win_key(self, record: JobRecord) -> JobId:
        """One that fails has not won: what it may have written is taken back, and its job must not be begun."""
        key = keys.idempotency_key(record.key_digest or "")
        async with self._taken_back_on_failure("win_key", key) as mark:
            for _ in range(_TRIES):
                if await self._bucket.create_once("win_key", key, encode_key(record.job_id), mark):
                    return record.job_id
                data = await self._bytes("win_key", key)
                if data is None:
                    continue  # given up in this moment; another call may be winning it
                holder = _holder_in(data)
                if holder is not None and await self._lives(holder, record.created):
                    return holder
                if await self._bytes("win_key", key) == data:  # S3 has no delete that depends on the content
                    await self._bucket.delete("win_key", [key])
            raise StorageFailure(
                "The image store has not decided between several calls with this idempotency key. Repeat the call with "
                "the same key.",
                retry_after=1,
            )

    @asynccontextmanager
    async def _taken_back_on_failure(self, operation: str, key: str) -> AsyncIterator[str]:
        """The mark to create `key` with. When the context fails, what carries it goes, at once or at a later look.

        A PUT whose answer was lost may have been made, or be made yet; its mark tells it from those of other
        calls. A look that finds nothing may have come too early for it, so `unfinished` looks once more.
        """
        mark = secrets.token_hex(8)
        try:
            yield mark
        except BaseException:
            self._regretted[key, mark] = 0
            with contextlib.suppress(StorageFailure):
                if await self._bucket.take_back(operation, key, mark):
                    self._regretted.pop((key, mark), None)
            raise

    async def _take_back_regretted(self) -> None:
        """Raises StoreAway. A mark that the store refuses to let go is tried some times more and keeps nothing else."""
        for regret, tries in list(self._regretted.items()):
            try:
                await self._bucket.take_back("list", *regret)
            except StoreAway:
                raise
            except StorageFailure:
                self._regretted[regret] = tries + 1
                if tries + 1 < _TRIES:
                    continue
            self._regretted.pop(regret, None)

    async def key_holder(self, key_digest: str) -> JobId | None:
        return await self._decoded("key_holder", keys.idempotency_key(key_digest), decode_key)

    async def _lives(self, job_id: JobId, now: datetime) -> bool:
        for key in (keys.open_job_key(job_id), keys.done_job_key(job_id)):
            expires = await self._decoded("read", key, expiry_of_job)
            if expires is not None:
                return expires > now
        return False

    async def claim(self, lease: Lease) -> bool:
        """`begin` makes its mark and then looks for a later claim; `claim` makes its own and then looks for `begun`."""
        key = keys.lease_key(lease.job_id, lease.attempt)
        if not await self._bucket.create_once("claim", key, encode_lease(lease)):
            return False
        begun = await self._there("claim", keys.begun_key(lease.job_id))
        if not begun and await self._there("claim", keys.open_job_key(lease.job_id)):
            return True
        await self._bucket.delete("claim", [key])
        return False

    async def renew(self, lease: Lease) -> bool:
        """A lease that outlives its job for having been renewed in that moment is swept."""
        if not await self._is_current("renew", lease):
            return False
        await self._bucket.put("renew", keys.lease_key(lease.job_id, lease.attempt), encode_lease(lease))
        return True

    async def begin(self, lease: Lease) -> bool:
        """First the mark, then a look: a job that has ended, was withdrawn or was claimed anew cannot begin.

        If it raises, the job has not begun: the caller must not ask the runtime, and the mark is taken back.
        """
        key = keys.begun_key(lease.job_id)
        async with self._taken_back_on_failure("begin", key) as mark:
            if not await self._bucket.create_once("begin", key, encode_lease(lease), mark):
                return False
            if await self._is_current("begin", lease):
                return True
            await self._bucket.delete("begin", [key])
            return False

    async def _is_current(self, operation: str, lease: Lease) -> bool:
        """Whether the job is there and no later attempt has claimed it."""
        if await self._there(operation, keys.lease_key(lease.job_id, lease.attempt + 1)):
            return False
        return await self._there(operation, keys.open_job_key(lease.job_id))

    async def _there(self, operation: str, key: str) -> bool:
        return await self._bucket.exists(operation, key)

    async def _bytes(self, operation: str, key: str) -> bytes | None:
        """A whole object, None where there is none. One that is too large is empty, which no decoder takes."""
        try:
            return await self._bucket.get(operation, key)
        except Damaged:
            return b""

    async def _decoded(self, operation: str, key: str, decode: Callable[[bytes], _T]) -> _T | None:
        """None where there is no object, or none that this version can read."""
        with contextlib.suppress(Damaged):
            return await self._bucket.read(operation, key, decode)
        return None

    async def acknowledge(self, record: JobRecord, result: JobResult) -> bool:
        """A job that was begun cannot be claimed, so only one that was not needs a look for a later attempt."""
        newer = keys.lease_key(record.job_id, result.attempt + 1)
        if not record.begun and await self._there("acknowledge", newer):
            return False
        data = encode_job(record, result)
        ours = await self._bucket.create_once("acknowledge", keys.done_job_key(record.job_id), data)
        if ours and result.status != "completed":
            mark = keys.failed_job_key(record.job_id, kept=not is_disposable(record, result))
            with contextlib.suppress(StorageFailure):  # without it, it only stays until its time is over
                await self._bucket.put("acknowledge", mark, b"")
        await self._remove_open("acknowledge", record.job_id, result.attempt)
        if ours:
            self._tally.ended(result, len(data))
        return ours

    async def _remove_open(self, operation: str, job_id: JobId, attempt: int) -> None:
        """The job itself first, so that no pod takes it over and `begin` sees that it is gone."""
        await self._bucket.delete(operation, [keys.open_job_key(job_id)])
        leases = [keys.lease_key(job_id, number) for number in range(1, attempt + _LATER_ATTEMPTS + 1)]
        await self._bucket.delete(operation, [*leases, keys.begun_key(job_id)])

    # --- looking ------------------------------------------------------------------------------------------------------

    async def read(self, job_id: JobId) -> StoredJob:
        """Twice, because a job that is being acknowledged moves from one place to the other."""
        for _ in range(2):
            if (done := await self._read_done(job_id)) is not None:
                return done
            if (unfinished := await self._read_open(job_id)) is not None:
                return unfinished
        raise JobNotFound

    async def _read_done(self, job_id: JobId) -> StoredJob | None:
        found = await self._decoded("read", keys.done_job_key(job_id), _decoder_of(job_id))
        if found is None:
            return None
        record, result = found
        lease = Lease(job_id=job_id, attempt=result.attempt if result else 1, holder=record.holder)
        return StoredJob(record=record, lease=lease, begun=True, result=result)

    async def _read_open(self, job_id: JobId) -> StoredJob | None:
        """One listing shows everything there is of an open job, unless it leaves something out."""
        entries = self._bucket.entries("read", f"{keys.OPEN_JOBS}/{job_id}.", listed_keys.open_job_part)
        parts = {entry.names.part: entry async for entry in entries}
        if "job" in parts:
            return await self._job_of(job_id, parts, "read")
        found = await self._decoded("read", keys.open_job_key(job_id), _decoder_of(job_id))
        return None if found is None else await self._with_lease(found[0], parts, "read")

    async def unfinished(self) -> list[StoredJob]:
        """What has not changed since the last look is not read again."""
        await self._take_back_regretted()
        by_job = await self._open_jobs("list")
        listed = {entry.key for parts in by_job.values() for entry in parts.values()}
        self._read_before = {key: known for key, known in self._read_before.items() if key in listed}
        oldest_first = sorted((job_id for job_id, parts in by_job.items() if "job" in parts), key=str)
        found = await asyncio.gather(*(self._job_of(job_id, by_job[job_id], "list") for job_id in oldest_first))
        return [job for job in found if job is not None]

    async def _open_jobs(self, operation: str, *, cleans: bool = False) -> dict[JobId, _Parts]:
        """Everything below `jobs/open/`, by job."""
        by_job: dict[JobId, _Parts] = {}
        prefix = f"{keys.OPEN_JOBS}/"
        async for entry in self._bucket.entries(operation, prefix, listed_keys.open_job_part, cleans=cleans):
            by_job.setdefault(entry.names.job_id, {})[entry.names.part] = entry
        return by_job

    async def _job_of(self, job_id: JobId, parts: _Parts, operation: str) -> StoredJob | None:
        """The open job with its latest lease; None for what is no job of this id."""
        found = await self._listed(parts["job"], operation, _decoder_of(job_id))
        return None if found is None else await self._with_lease(found[0], parts, operation)

    async def _with_lease(self, record: JobRecord, parts: _Parts, operation: str) -> StoredJob:
        job_id = record.job_id
        attempt = max((part for part in parts if isinstance(part, int)), default=1)
        lease: Lease | None = None
        if (entry := parts.get(attempt)) is not None:
            lease = await self._listed(entry, operation, lambda data: decode_lease(job_id, attempt, data))
        if lease is None:
            lease = Lease(job_id=job_id, attempt=attempt, holder=record.holder)
        return StoredJob(record=record, lease=lease, begun=record.begun or "begun" in parts)

    async def _listed(self, entry: Entry[JobPart], operation: str, decode: Callable[[bytes], _T]) -> _T | None:
        """A listed object decoded, read again only once it has changed; None where it is gone or cannot be read."""
        known = self._read_before.get(entry.key)
        if known is not None and known[0] == entry.etag:
            found: _T | None = known[1]
            return found
        found = None
        with contextlib.suppress(Damaged):
            found = await self._bucket.read(operation, entry.key, decode)
            if found is None:
                return None
        self._read_before[entry.key] = (entry.etag, found)
        return found

    # --- upkeep -------------------------------------------------------------------------------------------------------

    async def delete_expired_jobs(self, now: datetime) -> int:
        """Oldest first, up to the first job whose time has not come: the rest is younger still."""
        await self._tidy_open(now)
        deleted = 0
        batch: list[str] = []
        async for entry in self._bucket.entries("list", f"{keys.DONE_JOBS}/", listed_keys.done_job, cleans=True):
            expired = await self._expired(entry, now)
            if expired is False or deleted >= _DELETIONS_PER_PASS:
                break
            if expired is not None:
                await self._give_up_key(expired)
                batch += [entry.key, *keys.failed_job_keys(expired.job_id)]
                deleted += 1
        await self._delete(batch)
        return deleted

    async def _delete(self, batch: list[str]) -> None:
        """Then the next inventory is due at once."""
        if batch:
            await self._bucket.delete("delete", batch)
            self._counted_at = -math.inf

    async def delete_failed_jobs(self, *, keep: int, ended_before: datetime) -> int:
        """By the marks, so that no other job is read."""
        entries = self._bucket.entries("list", f"{keys.FAILED_JOBS}/", listed_keys.failed_mark, cleans=True)
        names = [entry.names async for entry in entries]
        batch: list[str] = []
        deleted = 0
        for job_id in keys.surplus(names, keep, ended_before)[:_DELETIONS_PER_PASS]:
            data = await self._bytes("delete", keys.done_job_key(job_id))
            if data is None or _may_go(data, job_id, ended_before):
                batch += [keys.done_job_key(job_id), *keys.failed_job_keys(job_id)]
                deleted += data is not None
        await self._delete(batch)
        return deleted

    async def take_inventory(self) -> JobCount | None:
        """Once an hour, and after deletions: it lists every record."""
        if self._clock.monotonic() - self._counted_at < _COUNT_SECONDS:
            return None
        before = self._tally.count
        ended = failed = opened = size = 0
        async for entry in self._bucket.entries("inventory", "jobs/", listed_keys.job_object):
            size += entry.size
            ended += entry.names == "ended"
            failed += entry.names == "failed"
            opened += entry.names == "open"
        self._counted_at = self._clock.monotonic()
        found = JobCount(open=opened, completed=max(0, ended - failed), failed=failed, size_bytes=size)
        return self._tally.counted(found, before)

    async def _expired(self, entry: Entry[JobId], now: datetime) -> JobRecord | Literal[False] | None:
        """The job to delete; False for one that lives, None for what is no job of this id."""
        found = await self._decoded("delete", entry.key, _decoder_of(entry.names))
        if found is None:
            return None
        return False if found[0].expires > now else found[0]

    async def _give_up_key(self, record: JobRecord) -> None:
        """At once after the look, job by job: a new job may win the key of one whose time is up."""
        if record.key_digest is not None and await self.key_holder(record.key_digest) == record.job_id:
            await self._bucket.delete("delete", [keys.idempotency_key(record.key_digest)])

    async def _tidy_open(self, now: datetime) -> None:
        """Leases renewed in the moment their job ended."""
        before = now - timedelta(seconds=LEFTOVER_SECONDS)
        by_job = await self._open_jobs("list", cleans=True)
        alone = {
            job_id: old
            for job_id, parts in by_job.items()
            if "job" not in parts and (old := [entry.key for entry in parts.values() if entry.modified < before])
        }

        async def left_by(job_id: JobId) -> list[str] | None:
            return None if await self._there("delete", keys.open_job_key(job_id)) else alone[job_id]

        await Lookups(self._bucket).delete_lost("delete", alone, left_by)


_Parts = dict[Literal["job", "begun"] | int, Entry[JobPart]]
"""What a listing shows of one open job."""


def _decoder_of(job_id: JobId) -> Callable[[bytes], tuple[JobRecord, JobResult | None]]:
    """Decodes the record of this job; raises ValueError for anything else."""

    def decode(data: bytes) -> tuple[JobRecord, JobResult | None]:
        found = decode_job(data)
        if found[0].job_id != job_id:
            raise ValueError("another job's record")
        return found

    return decode


def _may_go(data: bytes, job_id: JobId, ended_before: datetime) -> bool:
    with contextlib.suppress(ValueError):
        record, result = _decoder_of(job_id)(data)
        return result is not None and result.finished <= ended_before and is_disposable(record, result)
    return False


def _holder_in(data: bytes) -> JobId | None:
    """None for what is no key of ours."""
    with contextlib.suppress(ValueError):
        return decode_key(data)
    return None
