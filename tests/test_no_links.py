"""A volume without hard links, such as SMB or Azure Files: the contracts, and pods that differ about it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from sidecar.domain import JobId
from sidecar.ports import SystemClock
from sidecar.storages import keys
from sidecar.storages.file import FileStorage
from sidecar.storages.file_jobs import FileJobs
from sidecar.storages.once import OnceFiles
from tests.job_store_contract import NOW, JobStoreContract, job, lease, result
from tests.no_links import without_links
from tests.storage_contract import HeldClock, StorageContract


def a_store(root: Path, clock: Any = None) -> FileStorage:
    return FileStorage(root, max_bytes=None, clock=clock or SystemClock(), observer=lambda event: None)


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock()


@pytest.fixture
async def store(tmp_path: Path, clock: HeldClock) -> AsyncIterator[FileStorage]:
    async with without_links(a_store(tmp_path, clock)).opened() as opened:
        yield opened


@pytest.fixture
async def jobs(tmp_path: Path) -> AsyncIterator[FileJobs]:
    async with without_links(a_store(tmp_path)).opened() as opened:
        yield opened.jobs


class TestImagesWithoutLinks(StorageContract):
    """Images keep the contract."""

    async def lay(self, store: FileStorage, key: str, data: bytes) -> None:
        path = store._root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


class TestJobsWithoutLinks(JobStoreContract):
    """Jobs keep the contract."""


async def test_the_kernel_really_refuses(store: FileStorage, tmp_path: Path) -> None:
    (tmp_path / "one").touch()
    threads = store._directory.threads
    with pytest.raises(PermissionError):
        await asyncio.get_running_loop().run_in_executor(threads, os.link, tmp_path / "one", tmp_path / "two")


async def test_it_is_found_out_at_startup(tmp_path: Path) -> None:
    async with a_store(tmp_path).opened() as linking, without_links(a_store(tmp_path)).opened() as other:
        assert (linking._directory.has_links, other._directory.has_links) == (True, False)
        assert list((tmp_path / "staging").iterdir()) == []


async def test_an_ended_job_leaves_nothing_but_itself(jobs: FileJobs, tmp_path: Path) -> None:
    record = job()
    await jobs.offer(record)
    await jobs.begin(lease(record))
    await jobs.renew(lease(record))
    await jobs.acknowledge(record, result(record))
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    mark = keys.failed_job_key(record.job_id, kept=False)
    assert left == {f"{keys.done_job_key(record.job_id)}/once", mark}
    assert await jobs.delete_expired_jobs(record.expires + timedelta(days=1)) == 1
    assert not list(tmp_path.rglob(f"*{record.job_id}*"))


@pytest.mark.parametrize("known", [True, False])
async def test_of_pods_that_differ_about_links_one_wins_and_all_read_the_same(known: bool, tmp_path: Path) -> None:
    """One pod may have learned that there are no links while another may still make them."""
    async with a_store(tmp_path).opened() as linking, without_links(a_store(tmp_path)).opened() as other:
        other._directory.has_links = not known
        pods = [linking.jobs, other.jobs]
        for _ in range(20):
            record = job()
            await pods[0].offer(record)
            begun = await asyncio.gather(*(pod.begin(lease(record)) for pod in pods * 5))
            assert begun.count(True) == 1
            claims = await asyncio.gather(*(pod.claim(lease(record, 2)) for pod in pods * 5))
            assert claims.count(True) == 0
            ended = await asyncio.gather(*(pod.acknowledge(record, result(record)) for pod in pods * 5))
            assert ended.count(True) == 1
            assert await pods[0].read(record.job_id) == await pods[1].read(record.job_id)


async def test_a_lease_is_renewed_in_either_form(tmp_path: Path) -> None:
    async with a_store(tmp_path).opened() as linking, without_links(a_store(tmp_path)).opened() as other:
        for one, two in ((linking.jobs, other.jobs), (other.jobs, linking.jobs)):
            record = job()
            await one.offer(record)
            assert await one.claim(lease(record, 2))
            for beat in (1, 2):
                assert await two.renew(replace(lease(record, 2), beat=beat))
                assert (await one.read(record.job_id)).lease.beat == beat


async def test_a_key_whose_job_is_gone_is_won_by_one(tmp_path: Path) -> None:
    async with a_store(tmp_path).opened() as linking, without_links(a_store(tmp_path)).opened() as other:
        pods = [linking.jobs, other.jobs]
        for first in pods:
            digest = os.urandom(32).hex()
            assert await first.win_key(lost := job(key=digest)) == lost.job_id  # and its job was never kept
            records = [job(key=digest) for _ in pods]
            for record in records:
                await linking.jobs.offer(record)
            winners = await asyncio.gather(*(pod.win_key(record) for pod, record in zip(pods, records, strict=True)))
            assert (len(set(winners)), winners[0] in {record.job_id for record in records}) == (1, True)


async def test_what_a_killed_process_left_of_a_file_is_no_obstacle(store: FileStorage, tmp_path: Path) -> None:
    """It may die when only the directory is there, in staging or, while removing, in the file's place."""
    once = OnceFiles(store._directory)
    job_id = JobId.new(NOW)
    half = tmp_path / "staging" / "0123456789ab-half.part"
    place = tmp_path / keys.open_job_key(job_id)
    for directory in (half, place):
        directory.mkdir(parents=True)
        os.utime(directory, (0, 0))
    assert not once.exists(keys.open_job_key(job_id))
    assert once.read(keys.open_job_key(job_id), 100) is None
    assert await asyncio.get_running_loop().run_in_executor(
        store._directory.threads, once.create, keys.open_job_key(job_id), b"whole"
    )
    assert once.read(keys.open_job_key(job_id), 100) == b"whole"
    await store.delete_leftovers(NOW)
    assert not half.exists()


async def test_what_is_left_of_a_half_removed_job_is_tidied_away(jobs: FileJobs, tmp_path: Path) -> None:
    place = tmp_path / keys.open_job_key(JobId.new(NOW))
    await jobs.offer(kept := job())
    place.mkdir()
    os.utime(place, (0, 0))
    await jobs.delete_expired_jobs(NOW)
    assert (place.exists(), [found.record for found in await jobs.unfinished()]) == (False, [kept])
