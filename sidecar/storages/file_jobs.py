"""Generations in a directory, beside the images.

    jobs/open/{job}.json             what to do; written once
    jobs/open/{job}.lease-{attempt}  its holder and heartbeat; until the first renewal the job's own holder
    jobs/open/{job}.begun            made once, before the runtime is asked; its maker decides what happens
    jobs/done/{shard}/{job}.json     the job with its result; made once, and only then the open files go
    jobs/failed/{job}                an empty mark of a job that ended without an image (see file_job_room.py)
    jobs/keys/{digest}.json          which job an idempotency key belongs to; made once

Every "once" is one of `OnceFiles`, so of several pods exactly one succeeds.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from datetime import datetime
from typing import TypeVar

from sidecar.domain import (
    TIME_DIGITS,
    JobCount,
    JobId,
    JobRecord,
    JobResult,
    Lease,
    StoredJob,
    is_image_id,
    time_from_sortable,
)
from sidecar.errors import JobNotFound
from sidecar.ports import Observer
from sidecar.storages import keys
from sidecar.storages.directory import Directory
from sidecar.storages.disk import LEFTOVER_SECONDS
from sidecar.storages.file_job_room import FileJobRoom
from sidecar.storages.job_records import (
    MAX_JOB_BYTES,
    MAX_LEASE_BYTES,
    decode_job,
    decode_key,
    decode_lease,
    encode_job,
    encode_key,
    encode_lease,
    expiry_of_job,
)
from sidecar.storages.job_tally import JobTally
from sidecar.storages.once import OnceFiles
from sidecar.storages.records import OtherVersion

_T = TypeVar("_T")
_DELETIONS_PER_PASS = 10_000


class FileJobs:
    """The `JobStore` port on a directory.

    `admit` is asked for room for a record of so many bytes before the job is taken; it raises StorageFull.
    """

    def __init__(
        self,
        directory: Directory,
        observer: Observer = lambda event: None,
        *,
        admit: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._directory = directory
        self._tree = directory.tree
        self._once = OnceFiles(directory)
        self._admit = admit
        self._tally = JobTally(observer)
        self._room = FileJobRoom(directory)

    @property
    def size_bytes(self) -> int:
        """What all that is kept of generations takes, as far as is known here."""
        return self._tally.count.size_bytes

    def _decoded(self, key: str, limit: int, decode: Callable[[bytes], _T]) -> _T | None:
        """What a small file says; None where there is none, or nothing that this version can read."""
        try:
            data = self._once.read(key, limit)
            return None if data is None else decode(data)
        except OtherVersion:
            return None
        except (ValueError, NotADirectoryError) as error:
            self._directory.damaged(key, error)
            return None

    def _job(self, key: str, job_id: JobId) -> tuple[JobRecord, JobResult | None] | None:
        def decode(data: bytes) -> tuple[JobRecord, JobResult | None]:
            found = decode_job(data)
            if found[0].job_id != job_id:
                raise ValueError("another job's record")
            return found

        return self._decoded(key, MAX_JOB_BYTES, decode)

    # --- one job ------------------------------------------------------------------------------------------------------

    async def offer(self, record: JobRecord) -> None:
        """What the runtime has begun is recorded even where there is no room for another job."""
        data = encode_job(record)
        if not record.begun:
            self._admit(len(data))
        await self._directory.run("offer", self._offer, record, data)
        self._tally.offered(record, len(data))

    def _offer(self, record: JobRecord, data: bytes) -> None:
        self._once.create(keys.open_job_key(record.job_id), data)

    async def withdraw(self, job_id: JobId) -> None:
        await self._directory.run("withdraw", self._remove_open, job_id)
        self._tally.withdrawn(job_id)

    async def win_key(self, record: JobRecord) -> JobId:
        return await self._directory.run("win_key", self._win_key, record)

    def _win_key(self, record: JobRecord) -> JobId:
        key = keys.idempotency_key(record.key_digest or "")
        while not self._once.create(key, encode_key(record.job_id)):
            holder = self._key_holder(key)
            if holder is not None and self._lives(holder, record.created):
                return holder
            self._take_away(key, holder)
        return record.job_id

    def _take_away(self, key: str, holder: JobId | None) -> None:
        """Remove the key of a job that is gone, unless another job has won it meanwhile."""
        private = self._once.take_away(key)
        if private is None:
            return
        if self._key_holder(private) != holder:
            self._once.put_back(private, key)
        else:
            self._once.remove(private)

    async def key_holder(self, key_digest: str) -> JobId | None:
        return await self._directory.run("key_holder", self._find_key_holder, key_digest)

    def _find_key_holder(self, key_digest: str) -> JobId | None:
        holder = self._key_holder(keys.idempotency_key(key_digest))
        if holder is None:
            self._directory.require_volume()
        return holder

    def _key_holder(self, key: str) -> JobId | None:
        return self._decoded(key, MAX_LEASE_BYTES, decode_key)

    def _lives(self, job_id: JobId, now: datetime) -> bool:
        for key in (keys.open_job_key(job_id), keys.done_job_key(job_id)):
            expires = self._decoded(key, MAX_JOB_BYTES, expiry_of_job)
            if expires is not None:
                return expires > now
        return False

    async def claim(self, lease: Lease) -> bool:
        return await self._directory.run("claim", self._claim, lease)

    def _claim(self, lease: Lease) -> bool:
        """`begin` makes its file and then looks for a later claim; `claim` makes its own and then looks for `begun`."""
        key = keys.lease_key(lease.job_id, lease.attempt)
        if not self._once.create(key, encode_lease(lease)):
            return False
        if self._is_open(lease.job_id) and not self._begun(lease.job_id):
            return True
        self._once.remove(key)
        return False

    async def renew(self, lease: Lease) -> bool:
        return await self._directory.run("renew", self._renew, lease)

    def _renew(self, lease: Lease) -> bool:
        if not self._is_current(lease):
            return False
        self._once.replace(keys.lease_key(lease.job_id, lease.attempt), encode_lease(lease))
        return True

    async def begin(self, lease: Lease) -> bool:
        return await self._directory.run("begin", self._begin, lease)

    def _begin(self, lease: Lease) -> bool:
        """A job that has ended, was withdrawn, or was claimed anew cannot begin, also if that happened meanwhile."""
        key = keys.begun_key(lease.job_id)
        if not self._is_current(lease) or not self._once.create(key, encode_lease(lease)):
            return False
        if self._is_current(lease):
            return True
        self._once.remove(key)
        return False

    def _is_open(self, job_id: JobId) -> bool:
        return self._once.exists(keys.open_job_key(job_id))

    def _begun(self, job_id: JobId) -> bool:
        return self._once.exists(keys.begun_key(job_id))

    def _is_current(self, lease: Lease) -> bool:
        """Whether the job is there and no later attempt has claimed it."""
        later = keys.lease_key(lease.job_id, lease.attempt + 1)
        return self._is_open(lease.job_id) and not self._once.exists(later)

    async def acknowledge(self, record: JobRecord, result: JobResult) -> bool:
        data = encode_job(record, result)
        ours = await self._directory.run("acknowledge", self._acknowledge, record, result, data)
        if ours:
            self._tally.ended(result, len(data))
        return ours

    def _acknowledge(self, record: JobRecord, result: JobResult, data: bytes) -> bool:
        if self._once.exists(keys.lease_key(record.job_id, result.attempt + 1)):
            return False
        ours = self._once.create(keys.done_job_key(record.job_id), data)
        if ours and result.status != "completed":
            self._room.mark_failed(record, result)
        self._remove_open(record.job_id)
        return ours

    def _remove_open(self, job_id: JobId) -> None:
        """The job itself first, so that no pod takes it over."""
        self._once.remove(keys.open_job_key(job_id))
        attempt = 1
        while self._once.remove(keys.lease_key(job_id, attempt)) or attempt == 1:
            attempt += 1
        self._once.remove(keys.begun_key(job_id))

    # --- looking ------------------------------------------------------------------------------------------------------

    async def read(self, job_id: JobId) -> StoredJob:
        return await self._directory.run("read", self._read, job_id)

    def _read(self, job_id: JobId) -> StoredJob:
        """Twice, because a job that is being acknowledged moves from one place to the other."""
        for _ in range(2):
            if (done := self._read_done(job_id)) is not None:
                return done
            if (unfinished := self._read_open(job_id, self._attempt(job_id))) is not None:
                return unfinished
        self._directory.require_volume()
        raise JobNotFound

    def _read_done(self, job_id: JobId) -> StoredJob | None:
        found = self._job(keys.done_job_key(job_id), job_id)
        if found is None:
            return None
        record, result = found
        lease = Lease(job_id=job_id, attempt=result.attempt if result else 1, holder=record.holder)
        return StoredJob(record=record, lease=lease, begun=True, result=result)

    def _attempt(self, job_id: JobId) -> int:
        """The newest lease's number; the first one is always there in spirit."""
        attempt = 1
        while self._once.exists(keys.lease_key(job_id, attempt + 1)):
            attempt += 1
        return attempt

    def _read_open(self, job_id: JobId, attempt: int) -> StoredJob | None:
        found = self._job(keys.open_job_key(job_id), job_id)
        if found is None:
            return None
        record = found[0]
        begun = record.begun or self._begun(job_id)
        return StoredJob(record=record, lease=self._lease(record, attempt), begun=begun)

    def _lease(self, record: JobRecord, attempt: int) -> Lease:
        def decode(data: bytes) -> Lease:
            return decode_lease(record.job_id, attempt, data)

        lease = self._decoded(keys.lease_key(record.job_id, attempt), MAX_LEASE_BYTES, decode)
        return lease or Lease(job_id=record.job_id, attempt=attempt, holder=record.holder)

    async def unfinished(self) -> list[StoredJob]:
        return await self._directory.run("list", lambda: list(self._unfinished()))

    def _unfinished(self) -> Iterator[StoredJob]:
        names = self._tree.names(keys.OPEN_JOBS)
        attempts = _attempts(names)
        for name in names:
            text = name.removesuffix(".json")
            if text == name or not is_image_id(text):
                continue
            job = self._read_open(JobId(text), attempts.get(text, 1))
            if job is not None:
                yield job

    async def ended(self) -> AsyncIterator[StoredJob]:
        """Every job with a result, oldest first, read shard by shard."""
        for shard in await self._directory.run("list", self._tree.names, keys.DONE_JOBS):
            for job in await self._directory.run("list", self._ended_in, shard):
                yield job

    def _ended_in(self, shard: str) -> list[StoredJob]:
        names = [name.removesuffix(".json") for name in self._tree.names(f"{keys.DONE_JOBS}/{shard}")]
        found = [self._read_done(JobId(name)) for name in names if is_image_id(name)]
        return [job for job in found if job is not None]

    # --- upkeep -------------------------------------------------------------------------------------------------------

    async def delete_expired_jobs(self, now: datetime) -> int:
        return await self._directory.run("delete", self._delete_expired, now)

    async def delete_failed_jobs(self, *, keep: int, ended_before: datetime) -> int:
        return await self._directory.run("delete", self._room.delete_failed, keep, ended_before)

    async def take_inventory(self) -> JobCount:
        before = self._tally.count
        return self._tally.counted(await self._room.count(), before)

    def _delete_expired(self, now: datetime) -> int:
        """Oldest first, up to the first shard with a job whose time has not come: the rest is younger still."""
        self._tidy_open(now)
        deleted = 0
        for name in self._old_shards(now):
            shard = f"{keys.DONE_JOBS}/{name}"
            outcomes = [self._delete_if_expired(f"{shard}/{entry}", now) for entry in self._tree.names(shard)]
            deleted += outcomes.count(True)
            if False in outcomes or deleted >= _DELETIONS_PER_PASS:
                break
            self._tree.remove_if_old_and_empty(shard, now.timestamp() - LEFTOVER_SECONDS)
        return deleted

    def _tidy_open(self, now: datetime) -> None:
        """Leases renewed in the moment their job ended, and what is left of a file that was half removed."""
        names = self._tree.names(keys.OPEN_JOBS)
        jobs = {name.removesuffix(".json") for name in names if name.endswith(".json")}
        for name in names:
            text, key = name.split(".", 1)[0], f"{keys.OPEN_JOBS}/{name}"
            if is_image_id(text) and (text not in jobs or not self._once.exists(key)):
                self._once.remove_older(key, now.timestamp() - LEFTOVER_SECONDS)

    def _old_shards(self, now: datetime) -> Iterator[str]:
        """No job is deleted in the shard it was made in."""
        for name in self._tree.names(keys.DONE_JOBS):
            if keys.is_shard(name) and time_from_sortable(name.ljust(TIME_DIGITS, "z")) < now:
                yield name

    def _delete_if_expired(self, key: str, now: datetime) -> bool | None:
        """Whether it was deleted; None for what is no job of ours."""
        found = self._decoded(key, MAX_JOB_BYTES, decode_job)
        if found is None:
            return None
        record = found[0]
        if record.expires > now:
            return False
        if record.key_digest is not None:
            idempotency_key = keys.idempotency_key(record.key_digest)
            if self._key_holder(idempotency_key) == record.job_id:
                self._once.remove(idempotency_key)
        self._room.unmark(record.job_id)
        return self._once.remove(key)


def _attempts(names: Iterable[str]) -> dict[str, int]:
    """The newest attempt of each job that has a lease file."""
    attempts: dict[str, int] = {}
    for name in names:
        text, _, number = name.partition(".lease-")
        if number.isdecimal():
            attempts[text] = max(attempts.get(text, 1), int(number))
    return attempts
