"""The room that the records of generations take in a directory: counted, and bounded where generations fail."""

from __future__ import annotations

import contextlib
from datetime import datetime

from sidecar.domain import JobCount, JobId, JobRecord, JobResult
from sidecar.storages import keys
from sidecar.storages.directory import Directory
from sidecar.storages.job_records import MAX_JOB_BYTES, decode_job
from sidecar.storages.job_tally import is_disposable
from sidecar.storages.once import OnceFiles

_DELETIONS_PER_PASS = 10_000


class FileJobRoom:
    """Beside `FileJobs`, on the same directory. Everything but `count` blocks; all raise OSError or StorageFailure."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._tree = directory.tree
        self._once = OnceFiles(directory)

    async def count(self) -> JobCount:
        """Shard by shard, so that no thread is held for long. What is open first: a job that ends meanwhile counts."""
        opened, open_bytes = await self._directory.run("inventory", self._sizes, keys.OPEN_JOBS)
        done = size = 0
        for shard in await self._directory.run("list", self._tree.names, keys.DONE_JOBS):
            number, bytes_there = await self._directory.run("inventory", self._sizes, f"{keys.DONE_JOBS}/{shard}")
            done, size = done + number, size + bytes_there
        _, key_bytes = await self._directory.run("inventory", self._sizes, keys.JOB_KEYS)
        failed = len(await self._directory.run("list", self._tree.names, keys.FAILED_JOBS))
        return JobCount(
            open=opened, completed=max(0, done - failed), failed=failed, size_bytes=size + open_bytes + key_bytes
        )

    def _sizes(self, directory: str) -> tuple[int, int]:
        """How many jobs or keys there are in a directory, and the bytes of all its files."""
        number = size = 0
        for name, bytes_there in self._once.sizes(directory):
            size += bytes_there
            number += name.endswith(".json")
        return number, size

    def mark_failed(self, record: JobRecord, result: JobResult) -> None:
        """What cannot be marked, on a full disk, only stays until its time is over."""
        key = keys.failed_job_key(record.job_id, kept=not is_disposable(record, result))
        with contextlib.suppress(OSError):
            self._directory.write(key, b"")

    def unmark(self, job_id: JobId) -> None:
        for key in keys.failed_job_keys(job_id):
            self._tree.unlink(key)

    def delete_failed(self, keep: int, ended_before: datetime) -> int:
        """By the marks, so that no other job is read."""
        surplus = keys.surplus(self._tree.names(keys.FAILED_JOBS), keep, ended_before)
        return sum(self._delete_if_disposable(job_id, ended_before) for job_id in surplus[:_DELETIONS_PER_PASS])

    def _delete_if_disposable(self, job_id: JobId, ended_before: datetime) -> bool:
        """A mark whose job is gone goes as well."""
        key = keys.done_job_key(job_id)
        try:
            data = self._once.read(key, MAX_JOB_BYTES)
            record, result = (None, None) if data is None else decode_job(data)
        except (ValueError, NotADirectoryError):
            return False
        if record is not None and not _may_go(record, result, ended_before):
            return False
        deleted = self._once.remove(key)
        self.unmark(job_id)
        return deleted


def _may_go(record: JobRecord, result: JobResult | None, ended_before: datetime) -> bool:
    return result is not None and result.finished <= ended_before and is_disposable(record, result)
