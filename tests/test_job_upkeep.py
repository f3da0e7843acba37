"""What a pod does for its generations at each interval, whatever the store does meanwhile."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog

from sidecar.core.generation import Generation
from sidecar.core.job import Job
from sidecar.core.job_takeover import MOST_REFUSALS, SILENT_INTERVALS
from sidecar.core.job_upkeep import AT_ONCE, MOST_UNACKNOWLEDGED, JobUpkeep
from sidecar.domain import ANONYMOUS, JobId, JobRecord
from sidecar.edge import keys as app_keys
from sidecar.errors import StorageFailure, StoreAway
from sidecar.events import EndForgotten, Event
from sidecar.ports import JobStore, SystemClock
from sidecar.storages import keys
from sidecar.storages.job_records import encode_job
from tests.conftest import Sidecar, StartSidecar
from tests.fake_kserve import FakeKServe, succeed_when
from tests.job_store_contract import job, lease, result
from tests.odd_store import Odd, at, odd, store_of
from tests.storage_contract import HeldClock
from tests.test_jobs import start

__all__ = ["odd"]

BY_HAND = {"JOB_LEASE_INTERVAL": "1h", "RESPONSE_BUDGET": "0.2s"}


@pytest.fixture
async def by_hand(odd: Odd, start_sidecar: StartSidecar, tmp_path: Path) -> Sidecar:
    """A pod that does nothing at intervals by itself."""
    sidecar = await start_sidecar(**at(odd), SPOOL_PATH=str(tmp_path / "spool"), **BY_HAND)
    await sidecar.until_ready()
    return sidecar


def upkeep(sidecar: Sidecar) -> JobUpkeep:
    return sidecar.app[app_keys.JOBS].upkeep


async def all_seen_through() -> None:
    """Wait until the store was told, or could not be, how everything ended: callers do not wait for that."""
    await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name().startswith("job ")))


def done_key(job_id: str) -> str:
    return keys.done_job_key(JobId(job_id))


def lease_key(job_id: str) -> str:
    return keys.lease_key(JobId(job_id), 1)


# --- leases -----------------------------------------------------------------------------------------------------------


async def test_a_store_that_takes_its_time_to_record_ends_holds_up_no_renewal(
    odd: Odd, start_sidecar: StartSidecar, kserve: FakeKServe, tmp_path: Path
) -> None:
    settings = {"JOB_LEASE_INTERVAL": "0.1s", "RESPONSE_BUDGET": "0.2s", "SPOOL_PATH": str(tmp_path / "spool")}
    sidecar = await start_sidecar(**at(odd), **settings)
    odd.refused = {"jobs/done"}
    made = await start(sidecar, "ended", idempotency_key="k", result="link")
    await all_seen_through()
    odd.stalled = {"jobs/done"}
    odd.asked.clear()
    odd.going_on.clear()
    odd.refused = set()
    never = asyncio.Event()
    kserve.script.append(succeed_when(never))
    await start(sidecar, "running")
    waiting = await start(sidecar, "waiting")
    await odd.asked.wait()  # the end of the first one is being recorded
    before = odd.puts.count(lease_key(waiting["job_id"]))
    async with asyncio.timeout(10):
        while odd.puts.count(lease_key(waiting["job_id"])) < before + 5:
            await asyncio.sleep(0.02)
    assert done_key(made["job_id"]) not in odd.kept
    odd.going_on.set()
    never.set()


async def test_what_has_ended_is_held_until_its_end_is_recorded(odd: Odd, by_hand: Sidecar) -> None:
    """Another pod would say that it was interrupted."""
    odd.refused = {"jobs/done"}
    made = await start(by_hand, idempotency_key="k", result="link")
    await all_seen_through()
    odd.puts.clear()
    await upkeep(by_hand).renew()
    assert lease_key(made["job_id"]) in odd.puts


@pytest.mark.usefixtures("never")
async def test_a_pod_that_cannot_renew_does_not_believe_others_dead_for_not_renewing(
    odd: Odd, by_hand: Sidecar
) -> None:
    silent = replace(job(SystemClock().now()), begun=True)
    odd.kept[keys.open_job_key(silent.job_id)] = encode_job(silent)
    await start(by_hand, "running")
    takeover = by_hand.app[app_keys.JOBS].takeover
    for _ in range(SILENT_INTERVALS):
        await takeover.look()
    odd.refused = {".lease-"}
    with pytest.raises(StorageFailure):
        await upkeep(by_hand).renew()
    odd.refused = set()
    await upkeep(by_hand).renew()
    for _ in range(SILENT_INTERVALS):
        await takeover.look()
    assert done_key(silent.job_id.text) not in odd.kept
    await takeover.look()
    assert done_key(silent.job_id.text) in odd.kept


# --- ends that the store could not take -------------------------------------------------------------------------------


async def test_an_end_that_cannot_be_recorded_does_not_keep_the_others(odd: Odd, by_hand: Sidecar) -> None:
    odd.refused = {"jobs/done"}
    first, second = [(await start(by_hand, idempotency_key=key, result="link"))["job_id"] for key in ("1", "2")]
    await all_seen_through()
    odd.refused = {done_key(first)}
    await upkeep(by_hand).acknowledge()
    assert (done_key(first) in odd.kept, done_key(second) in odd.kept) == (False, True)
    odd.refused = set()
    await upkeep(by_hand).acknowledge()
    assert done_key(first) in odd.kept


async def test_a_store_that_takes_no_end_is_asked_for_some_and_not_for_all(
    by_hand: Sidecar, odd: Odd, generation: Generation
) -> None:
    odd.refused = {"jobs/done"}
    records = [job(SystemClock().now()) for _ in range(AT_ONCE + 1)]
    for record in records:
        upkeep(by_hand).acknowledge_later(ended(record, generation))
    with pytest.raises(StorageFailure):
        await upkeep(by_hand).acknowledge()
    assert sum("jobs/done" in key for key in odd.puts) == AT_ONCE
    with pytest.raises(StorageFailure):
        await upkeep(by_hand).acknowledge()  # the one that was not asked for goes first now
    assert {key for key in odd.puts if "jobs/done" in key} == {done_key(record.job_id.text) for record in records}


async def test_a_call_that_was_told_of_its_failure_leaves_nothing_to_be_recorded(odd: Odd, by_hand: Sidecar) -> None:
    odd.refused = {"jobs/"}
    assert (await start(by_hand, idempotency_key="k"))["status"] == "failed"
    await all_seen_through()
    odd.puts.clear()
    await upkeep(by_hand).acknowledge()
    assert [key for key in odd.puts if key.startswith("jobs/")] == []


async def test_of_ends_that_wait_for_the_store_the_oldest_are_forgotten_when_they_are_too_many(
    by_hand: Sidecar, generation: Generation
) -> None:
    records = [job(SystemClock().now()) for _ in range(MOST_UNACKNOWLEDGED + 1)]
    for record in records:
        upkeep(by_hand).acknowledge_later(ended(record, generation))
    assert list(upkeep(by_hand).unacknowledged) == [record.job_id for record in records[1:]]
    upkeep(by_hand).unacknowledged.clear()


@pytest.fixture
async def generation(by_hand: Sidecar) -> Generation:
    async def admit() -> None: ...

    record = job(SystemClock().now())
    return by_hand.service.submit(record.requests, ANONYMOUS, record.image_ids, admit)


def ended(record: JobRecord, generation: Generation) -> Job:
    ended = Job(record, lease(record), generation)
    ended.result = result(record)
    return ended


# --- ends that the store refuses for good -----------------------------------------------------------------------------


async def test_an_end_that_the_store_refuses_for_hours_is_given_up_and_told(
    odd: Odd, tmp_path: Path, generation: Generation
) -> None:
    clock, facts, record = HeldClock(), list[Event](), job(SystemClock().now())
    async with store_of(at(odd), tmp_path / "other") as store:
        duties = upkeep_of(store.jobs, clock, facts)
        duties.acknowledge_later(ended(record, generation))
        odd.refused = {"jobs/done"}
        for hours in (0, 5):
            clock.advance(timedelta(hours=hours))
            with pytest.raises(StorageFailure):
                await duties.acknowledge()
        assert (list(duties.unacknowledged), facts) == ([record.job_id], [])
        clock.advance(timedelta(hours=1))
        with pytest.raises(StorageFailure):
            await duties.acknowledge()
        assert list(duties.unacknowledged) == []
        (fact,) = facts
        assert isinstance(fact, EndForgotten)
        assert (fact.status, fact.hours, "InvalidRequest" in fact.detail) == ("failed", 6.0, True)
        puts = len(odd.puts)
        await duties.acknowledge()
        assert len(odd.puts) == puts


async def test_an_outage_counts_for_no_refusal_and_ends_with_the_generation_s_own_life(
    odd: Odd, tmp_path: Path, generation: Generation
) -> None:
    clock, facts, record = HeldClock(), list[Event](), job(SystemClock().now(), life=timedelta(days=1))
    async with store_of(at(odd), tmp_path / "other") as store:
        duties = upkeep_of(store.jobs, clock, facts)
        duties.acknowledge_later(ended(record, generation))
        odd.is_full = True
        for hours, waiting in ((0, 1), (20, 1), (4, 0)):
            clock.advance(timedelta(hours=hours))
            with pytest.raises(StoreAway):
                await duties.acknowledge()
            assert len(duties.unacknowledged) == waiting
        assert [type(fact) for fact in facts] == [EndForgotten]


def upkeep_of(jobs: JobStore, clock: HeldClock, facts: list[Event]) -> JobUpkeep:
    async def record(_: Job) -> None: ...

    return JobUpkeep(
        jobs, {}, NO_TAKEOVER, interval=1, record=record, lose=lambda _: None, clock=clock, observer=facts.append
    )


NO_TAKEOVER: Any = None


async def test_a_take_over_that_the_store_refuses_is_not_tried_for_ever(odd: Odd, by_hand: Sidecar) -> None:
    """Such as where a right to write is missing: each try costs requests, at every pod."""
    silent = replace(job(SystemClock().now()), begun=True)
    odd.kept[keys.open_job_key(silent.job_id)] = encode_job(silent)
    odd.refused = {"jobs/done"}
    takeover = by_hand.app[app_keys.JOBS].takeover
    with structlog.testing.capture_logs() as logs:
        for _ in range((SILENT_INTERVALS + 1) * (MOST_REFUSALS + 2)):
            await takeover.look()
    assert sum("jobs/done" in key for key in odd.puts) == MOST_REFUSALS
    assert [entry["event"] for entry in logs].count("gave up recording how a generation ended") == 1
