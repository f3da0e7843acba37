"""When a pod may believe that another has died: a lease that was not renewed while it could have been."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from sidecar.config import read_settings
from sidecar.core.clock_guard import ClockGuard
from sidecar.core.job_takeover import SILENT_INTERVALS, JobTakeover
from sidecar.core.service import ImageService
from sidecar.domain import JobRecord
from sidecar.errors import StorageFailure
from sidecar.events import Event, JobTakenOver
from sidecar.imaging.thumbnails import PillowThumbnailer
from sidecar.storages import keys
from sidecar.storages.file import FileStorage
from sidecar.storages.job_records import encode_lease
from tests.job_store_contract import job, lease
from tests.storage_contract import HeldClock

INTERVAL = 15.0


class Heir:
    """A pod that looks at the generation of another, which has begun it."""

    def __init__(self, store: FileStorage, clock: HeldClock) -> None:
        self.store = store
        self.jobs = store.jobs
        self.clock = clock
        self.taken_over = 0
        self.on_taken_over: Callable[[], object] = lambda: None
        self.record: JobRecord = replace(job(clock.now()), begun=True)
        images = ImageService(
            lanes={},
            storage=store,
            thumbnailer=PillowThumbnailer(),
            settings=read_settings({"KSERVE_ENDPOINT": "http://painter/v1/models/painter"}).storage,
            clock=clock,
            observer=self._observe,
        )
        self.guard = ClockGuard(store, clock)
        self.takeover = JobTakeover(
            images,
            self.jobs,
            instance="heir",
            holds=lambda job_id: False,
            start=_nobody,
            lose=_nobody,
            guard=self.guard,
            clock=clock,
            observer=self._observe,
        )

    def _observe(self, event: Event) -> None:
        if isinstance(event, JobTakenOver):
            self.taken_over += 1
            self.on_taken_over()

    async def looks(self, times: int = 1) -> bool:
        """Whether it has recorded the generation as interrupted, after so many looks, an interval apart."""
        for _ in range(times):
            await self.takeover.look()
            self.clock.advance(timedelta(seconds=INTERVAL))
        return self.taken_over > 0

    async def looks_in_vain(self, times: int = 1) -> None:
        for _ in range(times):
            with pytest.raises(StorageFailure):
                await self.takeover.look()
            self.clock.advance(timedelta(seconds=INTERVAL))

    async def other_renews(self, beat: int) -> None:
        assert await self.jobs.renew(replace(lease(self.record), beat=beat))


def _nobody(*_: Any) -> Any:
    raise AssertionError("nothing here can be taken up")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "images"


@pytest.fixture
async def heir(root: Path) -> AsyncIterator[Heir]:
    clock = HeldClock()
    async with FileStorage(root, max_bytes=None, clock=clock, observer=lambda event: None).opened() as store:
        heir = Heir(store, clock)
        await heir.jobs.offer(heir.record)
        yield heir


@contextlib.contextmanager
def unreadable(directory: Path) -> Iterator[None]:
    moved = directory.rename(directory.with_name("elsewhere"))
    directory.symlink_to(directory)
    yield
    directory.unlink()
    moved.rename(directory)


async def test_a_lease_is_believed_to_have_lapsed_after_three_intervals_of_silence(heir: Heir) -> None:
    assert not await heir.looks(SILENT_INTERVALS)
    assert await heir.looks()


async def test_a_pod_that_renews_now_and_then_lives(heir: Heir) -> None:
    for beat in range(5):
        assert not await heir.looks(SILENT_INTERVALS)
        await heir.other_renews(beat + 1)


async def test_after_an_outage_of_the_store_a_pod_that_lives_has_the_whole_time_to_show_it(
    heir: Heir, root: Path
) -> None:
    await heir.looks(2)
    with unreadable(root / "jobs" / "open"):
        await heir.looks_in_vain(4)  # nor can anybody renew
    assert not await heir.looks(SILENT_INTERVALS)
    await heir.other_renews(1)
    assert not await heir.looks(SILENT_INTERVALS)
    assert await heir.looks()


async def test_a_store_that_takes_no_end_may_have_taken_no_renewal_either(heir: Heir, root: Path) -> None:
    """A full disk, which can be read."""
    obstacle = root / "jobs" / "done"
    obstacle.write_bytes(b"")
    await heir.looks(SILENT_INTERVALS + 1)
    obstacle.unlink()
    assert not await heir.looks(SILENT_INTERVALS)
    assert await heir.looks()


async def test_who_renews_while_others_are_taken_over_lives(heir: Heir, root: Path) -> None:
    """After the death of a pod with a long line that takes a while."""
    second = replace(job(heir.clock.now() + timedelta(seconds=1)), begun=True)
    await heir.jobs.offer(second)
    await heir.looks(SILENT_INTERVALS)
    heir.on_taken_over = lambda: (root / keys.lease_key(second.job_id, 1)).write_bytes(
        encode_lease(replace(lease(second), beat=1))
    )
    assert await heir.looks()
    assert [stored.record for stored in await heir.jobs.unfinished()] == [second]


async def test_a_pod_whose_own_renewals_the_store_does_not_take_draws_no_conclusions(heir: Heir) -> None:
    await heir.looks(SILENT_INTERVALS)
    heir.takeover.forget()
    assert not await heir.looks(SILENT_INTERVALS)
    assert await heir.looks()


async def test_a_pod_that_was_stopped_itself_does_not_count_the_time_it_did_not_look(heir: Heir) -> None:
    await heir.looks()
    heir.clock.advance(timedelta(hours=1))
    assert not await heir.looks(SILENT_INTERVALS - 1)
    assert await heir.looks()


async def test_a_queued_generation_is_not_given_up_by_a_clock_that_was_set_ahead(heir: Heir) -> None:
    queued = job(heir.clock.now())
    await heir.jobs.offer(queued)
    assert await heir.guard.doubt() is None
    heir.clock.set(timedelta(days=20 * 365))
    await heir.looks(SILENT_INTERVALS + 2)
    assert (await heir.jobs.read(queued.job_id)).result is None
    assert heir.taken_over == 1  # what the runtime had begun is interrupted by any clock
    heir.clock.set(timedelta(days=-20 * 365))
    heir.clock.advance(timedelta(days=8))
    assert (await heir.looks(), heir.taken_over) == (True, 2)
