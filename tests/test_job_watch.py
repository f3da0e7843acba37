"""Who waits for a generation of another pod waits through a store's short troubles."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from sidecar.core.job_watch import JobWatches
from sidecar.domain import JobId
from sidecar.errors import JobNotFound, StorageFailure
from sidecar.ports import SystemClock
from sidecar.storages.file import FileStorage
from sidecar.storages.file_jobs import FileJobs
from tests.job_store_contract import job, result

LONG = 3600.0


class Meanwhile(SystemClock):
    """A clock on which something happens while somebody sleeps: these, one after the other, and then nothing ever."""

    def __init__(self, *deeds: Callable[[], Awaitable[object]]) -> None:
        self._deeds = iter(deeds)
        self.is_over = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        deed = next(self._deeds, None)
        if deed is None:
            self.is_over.set()
            await asyncio.Event().wait()
        else:
            await deed()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "images"


@pytest.fixture
async def jobs(root: Path) -> AsyncIterator[FileJobs]:
    async with FileStorage(root, max_bytes=None, clock=SystemClock(), observer=lambda event: None).opened() as store:
        yield store.jobs


def moved(root: Path, *, away: bool) -> Callable[[], Awaitable[object]]:
    async def move() -> None:
        elsewhere = root.with_name("elsewhere")
        root.rename(elsewhere) if away else elsewhere.rename(root)

    return move


async def test_a_store_that_comes_back_in_time_ends_nobody_s_wait(jobs: FileJobs, root: Path) -> None:
    record = job()

    async def end() -> None:
        await jobs.acknowledge(record, result(record))

    await jobs.offer(record)
    await moved(root, away=True)()
    watches = JobWatches(jobs, Meanwhile(moved(root, away=False), moved(root, away=True), moved(root, away=False), end))
    found = await asyncio.gather(*(watches.wait(record.job_id, LONG) for _ in range(3)))
    assert [stored.result for stored in found] == [result(record)] * 3


async def test_whose_time_is_over_while_the_store_is_away_is_told_what_was_seen_before(
    jobs: FileJobs, root: Path
) -> None:
    record = job()
    await jobs.offer(record)
    clock = Meanwhile(moved(root, away=True))
    watches = JobWatches(jobs, clock)
    waiting = asyncio.create_task(watches.wait(record.job_id, LONG))
    await clock.is_over.wait()  # the store has been found away
    found = await watches.wait(record.job_id, 0)
    assert (found.record, found.result) == (record, None)
    waiting.cancel()


async def test_who_has_seen_nothing_in_its_time_is_told_of_the_store_s_failure(jobs: FileJobs, root: Path) -> None:
    record = job()
    await jobs.offer(record)
    await moved(root, away=True)()
    with pytest.raises(StorageFailure):
        await JobWatches(jobs, Meanwhile()).wait(record.job_id, 0)


async def test_a_generation_that_is_not_there_keeps_nobody_waiting(jobs: FileJobs) -> None:
    with pytest.raises(JobNotFound):
        await JobWatches(jobs, Meanwhile()).wait(JobId.new(SystemClock().now()), LONG)
