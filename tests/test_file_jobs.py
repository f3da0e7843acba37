"""Jobs in a directory keep the contract, and what only a directory has."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from sidecar.ports import SystemClock
from sidecar.storages.file import FileStorage
from sidecar.storages.file_jobs import FileJobs
from tests.job_store_contract import NOW, JobStoreContract, job, lease, result


@pytest.fixture
async def jobs(tmp_path: Path) -> AsyncIterator[FileJobs]:
    store = FileStorage(tmp_path, max_bytes=None, clock=SystemClock(), observer=lambda event: None)
    async with store.opened():
        yield store.jobs


class TestFileJobs(JobStoreContract):
    """The directory keeps the contract."""


async def test_an_ended_job_leaves_one_file(jobs: FileJobs, tmp_path: Path) -> None:
    record = job()
    await jobs.offer(record)
    await jobs.begin(lease(record))
    await jobs.renew(lease(record))
    await jobs.acknowledge(record, replace(result(record), status="completed"))
    (left,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left.name == f"{record.job_id}.json"


@pytest.mark.parametrize(("content", "is_free"), [(b"{", True), (b"", True), (b'{"schema_version": 99}', False)])
async def test_a_key_is_free_again_where_its_job_is_damaged_but_not_where_it_is_a_newer_versions(
    content: bytes, is_free: bool, jobs: FileJobs, tmp_path: Path
) -> None:
    old, new = job(key="a" * 64), job(key="a" * 64)
    await jobs.acknowledge(old, result(old))
    await jobs.win_key(old)
    (place,) = tmp_path.glob(f"jobs/done/*/{old.job_id}.json")
    place.write_bytes(content)
    assert await jobs.win_key(new) == (new if is_free else old).job_id


async def test_a_lease_left_behind_is_tidied_away_and_a_newer_versions_job_is_not(
    jobs: FileJobs, tmp_path: Path
) -> None:
    record = job()
    await jobs.offer(record)
    newer = tmp_path / f"jobs/open/{job().job_id}.json"
    newer.write_bytes(b'{"schema_version": 99}')
    stray = tmp_path / f"jobs/open/{job().job_id}.lease-1"
    stray.write_bytes(b"{}")
    for path in (newer, stray):
        os.utime(path, (0, 0))
    await jobs.delete_expired_jobs(NOW + timedelta(days=1))
    assert (newer.exists(), stray.exists()) == (True, False)
    assert [found.record for found in await jobs.unfinished()] == [record]
