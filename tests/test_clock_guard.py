"""Nothing is deleted by a clock that is not to be believed (issue 13).

A wall clock that was 20 years ahead for one pass deleted every image; one that was an hour ahead, files being written.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from sidecar.core.clock_guard import PROBATION_SECONDS
from sidecar.core.sweeper import Sweeper
from sidecar.domain import JobResult
from sidecar.errors import ImageNotFound
from sidecar.events import CleanupSkipped, Event, StorageCounted
from sidecar.observe.logs import EventLog
from sidecar.observe.metrics import Metrics
from sidecar.ports import SystemClock
from sidecar.storages.file import FileStorage
from tests.job_store_contract import job
from tests.odd_store import Odd, at, odd, store_of
from tests.real_parts import require
from tests.storage_contract import DAY, HeldClock, put

__all__ = ["odd"]

HOUR = timedelta(hours=1)
YEARS = 20 * 365 * DAY
FIVE_MINUTES = timedelta(minutes=5)
LIBFAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


class Facts:
    def __init__(self) -> None:
        self.doubts: list[str | None] = []
        self.counted: list[int] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, CleanupSkipped):
            self.doubts.append(event.detail)
        if isinstance(event, StorageCounted):
            self.counted.append(event.inventory.images)


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock()


@pytest.fixture
def facts() -> Facts:
    return Facts()


@pytest.fixture
async def store(tmp_path: Path, clock: HeldClock, facts: Facts) -> AsyncIterator[FileStorage]:
    async with FileStorage(tmp_path, max_bytes=None, clock=clock, observer=facts).opened() as opened:
        yield opened


@pytest.fixture
def sweeper(store: FileStorage, clock: HeldClock, facts: Facts) -> Sweeper:
    return Sweeper(store, store.jobs, interval=1, clock=clock, observer=facts)


async def everything_there_is(store: FileStorage, root: Path, clock: HeldClock) -> set[Path]:
    """An image, the record of a generation, an orphan and a file that another pod is writing."""
    await put(store, clock.now())
    record = job(clock.now())
    result = JobResult(job_id=record.job_id, attempt=1, status="completed", finished=clock.now())
    await store.jobs.offer(record)
    await store.jobs.acknowledge(record, result)
    (root / "staging" / "0123456789ab-of-another-pod.part").write_bytes(b"half")
    orphan = (await put(store, clock.now())).record.image_id
    for path in root.glob(f"records/*/*/*{orphan.text[9:]}.json"):
        path.unlink()
    return {path for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("ahead", [YEARS, HOUR, 900 * 365 * DAY])
async def test_a_clock_that_is_ahead_for_a_pass_deletes_nothing(
    ahead: timedelta, store: FileStorage, sweeper: Sweeper, clock: HeldClock, facts: Facts, tmp_path: Path
) -> None:
    before = await everything_there_is(store, tmp_path, clock)
    await sweeper.sweep()
    clock.set(ahead)
    report = await sweeper.sweep()
    assert (report.skipped, report.deleted, report.leftovers_deleted, report.jobs_deleted) == (True, 0, 0, 0)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before
    assert facts.counted[-1] == 2  # it still counts
    clock.set(-ahead)
    assert not (await sweeper.sweep()).skipped
    assert len(facts.doubts) == 1
    assert "ahead of its old course" in (facts.doubts[0] or "")


async def test_a_clock_that_is_set_back_deletes_nothing_either(
    store: FileStorage, sweeper: Sweeper, clock: HeldClock, facts: Facts
) -> None:
    await sweeper.sweep()
    clock.set(-2 * HOUR)
    assert (await sweeper.sweep()).skipped
    assert facts.doubts == ["the wall clock was set since the last clean-up and is now 2:00:00 behind its old course"]


async def test_small_steps_and_the_slewing_of_ntp_do_not_disturb(
    store: FileStorage, sweeper: Sweeper, clock: HeldClock
) -> None:
    await sweeper.sweep()
    for step in (timedelta(minutes=4), timedelta(minutes=-4), timedelta(seconds=30)):
        clock.set(step)
        clock.advance(FIVE_MINUTES)
        assert not (await sweeper.sweep()).skipped
    clock.advance(30 * DAY)
    clock.set(timedelta(minutes=20))  # what 500 ppm make in a month
    assert not (await sweeper.sweep()).skipped


async def test_a_clock_that_was_put_right_is_believed_again_after_six_hours_of_an_even_course(
    store: FileStorage, sweeper: Sweeper, clock: HeldClock
) -> None:
    """Also a machine that slept where its uptime does not tell: clean-up must not stop for ever."""
    await sweeper.sweep()
    image_id = (await put(store, clock.now(), life=HOUR)).record.image_id
    clock.set(8 * HOUR)
    passes = int(PROBATION_SECONDS // FIVE_MINUTES.total_seconds())
    for _ in range(passes):
        assert (await sweeper.sweep()).skipped
        clock.advance(FIVE_MINUTES)
    report = await sweeper.sweep()
    assert (report.skipped, report.deleted) == (False, 1)
    with pytest.raises(ImageNotFound):
        await store.get(image_id)


async def test_a_clock_that_is_set_again_begins_its_probation_anew(
    store: FileStorage, sweeper: Sweeper, clock: HeldClock
) -> None:
    await sweeper.sweep()
    for _ in range(3):
        clock.set(8 * HOUR)
        assert (await sweeper.sweep()).skipped
        clock.advance(timedelta(seconds=PROBATION_SECONDS) - FIVE_MINUTES)
        assert (await sweeper.sweep()).skipped


async def test_a_process_that_starts_with_a_clock_years_ahead_keeps_what_seems_long_overdue(
    store: FileStorage, sweeper: Sweeper, clock: HeldClock, facts: Facts
) -> None:
    stored = await put(store, clock.now())
    clock.set(YEARS)
    assert (await sweeper.sweep()).skipped
    assert facts.doubts == ["an image was to be deleted over 30 days ago: the wall clock may be ahead"]
    clock.set(-YEARS)
    assert not (await sweeper.sweep()).skipped
    assert await store.get(stored.record.image_id) == stored


async def test_a_store_left_alone_for_months_is_swept_after_six_hours(
    store: FileStorage, sweeper: Sweeper, clock: HeldClock
) -> None:
    await put(store, clock.now() - 90 * DAY, life=DAY)
    assert (await sweeper.sweep()).skipped
    clock.advance(timedelta(seconds=PROBATION_SECONDS))
    assert (await sweeper.sweep()).deleted == 1


async def test_what_this_process_stages_is_never_swept_however_long_it_takes(
    store: FileStorage, sweeper: Sweeper, clock: HeldClock
) -> None:
    image_id = (await put(store, clock.now())).record.image_id
    async with store.stage(image_id, 10) as staged:
        os.utime(staged.path, (0, 0))
        assert (await sweeper.sweep()).leftovers_deleted == 0
        assert staged.path.exists()


@pytest.mark.parametrize("ahead", [DAY, -DAY])
async def test_a_store_whose_clock_is_another_is_not_swept(
    ahead: timedelta, odd: Odd, tmp_path: Path, facts: Facts
) -> None:
    odd.date = lambda: datetime.now(UTC) + ahead
    async with store_of(at(odd), tmp_path, facts) as bucket:
        expired = (await put(bucket, datetime.now(UTC) - 2 * DAY)).record.image_id
        sweeper = Sweeper(bucket, bucket.jobs, interval=1, clock=SystemClock(), observer=facts)
        assert (await sweeper.sweep()).skipped
        assert [key for key in odd.kept if expired.text in key]
        odd.date = lambda: datetime.now(UTC)
        assert (await sweeper.sweep()).deleted == 1
    (doubt,) = facts.doubts
    assert (doubt or "").startswith("the store's clock is ")


async def test_a_store_that_tells_no_time_is_swept(odd: Odd, tmp_path: Path, facts: Facts) -> None:
    odd.date = lambda: None
    async with store_of(at(odd), tmp_path, facts) as bucket:
        assert await bucket.clock_offset() is None
        await put(bucket, datetime.now(UTC) - 2 * DAY)
        assert (
            await Sweeper(bucket, bucket.jobs, interval=1, clock=SystemClock(), observer=facts).sweep()
        ).deleted == 1


async def test_a_spooled_image_that_seems_expired_is_sent_and_not_dropped(odd: Odd, tmp_path: Path) -> None:
    """The clock may be ahead; what has expired indeed is swept from the bucket."""
    async with store_of(at(odd), tmp_path) as bucket:
        odd.refused = {"images/", "records/"}
        stored = await put(bucket, datetime.now(UTC) - 2 * DAY)
        assert (stored.held, bucket.held) == (True, 1)
        odd.refused = set()
        await bucket.send_held()
        assert bucket.held == 0
    assert [key for key in odd.kept if key.startswith("images/") and stored.record.image_id.text in key]


async def test_skipped_passes_are_counted_and_logged_once(store: FileStorage, clock: HeldClock) -> None:
    metrics, log = Metrics({}, "file"), EventLog()

    def observe(event: Event) -> None:
        metrics(event)
        log(event)

    sweeper = Sweeper(store, store.jobs, interval=1, clock=clock, observer=observe)
    await sweeper.sweep()
    with capture_logs() as lines:
        for ahead in (DAY, timedelta(), -DAY, DAY):
            clock.set(ahead)
            await sweeper.sweep()
    assert [line["reason"] for line in lines if line["event"] == "clean-up skipped"] == ["clock", "clock"]
    text = (await metrics.exposition.scrape(""))[0].decode()
    assert 'imagegen_cleanup_skipped_total{reason="clock"} 3.0' in text
    assert 'imagegen_cleanup_passes_total{outcome="skipped"} 3.0' in text


@pytest.mark.real
async def test_the_command_sweep_believes_no_clock_that_the_directory_contradicts(tmp_path: Path) -> None:
    """In a process of its own whose clock is an hour ahead: fresh files still have the machine's time."""
    require(LIBFAKETIME is not None, "faketime is not installed (Debian: faketime)")
    staged = tmp_path / "staging" / "0123456789ab-of-another-pod.part"
    staged.parent.mkdir()
    staged.write_bytes(b"half")
    environment = {"PATH": os.environ["PATH"], "STORAGE_PATH": str(tmp_path), "LOG_FORMAT": "json"}
    ahead = {"LD_PRELOAD": str(LIBFAKETIME), "FAKETIME": "+2h", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    for more, skipped in ((ahead, True), ({}, False)):
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "sidecar", "sweep"],
            env=environment | more,
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, json.loads(done.stdout)["skipped"]) == (int(skipped), skipped), done.stderr
        assert ("clean-up skipped" in done.stderr) == skipped
        assert staged.exists()
