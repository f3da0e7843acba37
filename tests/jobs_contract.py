"""What every store of generations promises. A store's test module derives from it and provides the fixture `jobs`."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sidecar.domain import (
    ANONYMOUS,
    GenerationRequest,
    ImageId,
    JobId,
    JobRecord,
    JobResult,
    Lease,
    MissingImage,
    StoredJob,
)
from sidecar.errors import JobNotFound

NOW = datetime.now(UTC).replace(microsecond=0)


def job(created: datetime = NOW, *, key: str | None = None, life: timedelta = timedelta(days=7)) -> JobRecord:
    """A generation of one image, taken by pod `one`."""
    return JobRecord(
        job_id=JobId.new(created),
        owner=ANONYMOUS,
        requests=(GenerationRequest(model="painter", prompt="ein Kätzchen 🐈", seed=7),),
        image_ids=(ImageId.new(created),),
        created=created,
        expires=created + life,
        holder="one",
        key_digest=key,
        arguments_digest="0" * 64,
    )


def lease(record: JobRecord, attempt: int = 1, holder: str = "one", beat: int = 0) -> Lease:
    return Lease(job_id=record.job_id, attempt=attempt, holder=holder, beat=beat)


def completed(record: JobRecord, attempt: int = 1) -> JobResult:
    missing = (MissingImage(number=1, seed=7, reason="internal", message="it went wrong"),)
    return JobResult(job_id=record.job_id, attempt=attempt, status="failed", finished=NOW, missing=missing)


class JobsContract:
    """The suite."""

    async def test_a_job_is_open_until_it_is_acknowledged(self, jobs: Any) -> None:
        record = job()
        await jobs.offer(record)
        opened = StoredJob(record=record, lease=lease(record), begun=False)
        assert (await jobs.read(record.job_id), await jobs.unfinished()) == (opened, [opened])
        assert await jobs.acknowledge(record, completed(record)) is True
        done = StoredJob(record=record, lease=lease(record), begun=True, result=completed(record))
        assert (await jobs.read(record.job_id), await jobs.unfinished()) == (done, [])

    async def test_what_was_never_offered_or_was_withdrawn_is_not_found(self, jobs: Any) -> None:
        record = job()
        await jobs.offer(record)
        await jobs.withdraw(record.job_id)
        for job_id in (record.job_id, job().job_id):
            with pytest.raises(JobNotFound):
                await jobs.read(job_id)
        assert await jobs.unfinished() == []

    async def test_unfinished_jobs_come_oldest_first(self, jobs: Any) -> None:
        records = [job(NOW - timedelta(minutes=minutes)) for minutes in (5, 60, 1)]
        for record in records:
            await jobs.offer(record)
        found = [stored.record.job_id for stored in await jobs.unfinished()]
        assert found == [records[number].job_id for number in (1, 0, 2)]

    async def test_a_renewed_lease_is_seen(self, jobs: Any) -> None:
        record = job()
        await jobs.offer(record)
        for beat in (1, 2):
            await jobs.renew(lease(record, beat=beat))
            (seen,) = await jobs.unfinished()
            assert seen.lease == lease(record, beat=beat)
        await jobs.renew(replace(lease(record, beat=3), released=True))
        assert (await jobs.read(record.job_id)).lease.released

    async def test_of_twenty_who_claim_an_attempt_one_has_it(self, jobs: Any) -> None:
        record = job()
        await jobs.offer(record)
        won = await asyncio.gather(*(jobs.claim(lease(record, 2, f"pod {number}")) for number in range(20)))
        assert sum(won) == 1
        assert (await jobs.read(record.job_id)).lease == lease(record, 2, f"pod {won.index(True)}")

    async def test_of_twenty_who_begin_a_job_one_does(self, jobs: Any) -> None:
        record = job()
        await jobs.offer(record)
        assert sum(await asyncio.gather(*(jobs.begin(lease(record)) for _ in range(20)))) == 1
        assert (await jobs.read(record.job_id)).begun
        assert await jobs.begin(lease(record, 2, "other")) is False

    async def test_a_job_that_has_ended_or_was_withdrawn_cannot_begin(self, jobs: Any) -> None:
        ended, withdrawn = job(), job()
        for record in (ended, withdrawn):
            await jobs.offer(record)
        await jobs.acknowledge(ended, completed(ended))
        await jobs.withdraw(withdrawn.job_id)
        for record in (ended, withdrawn, job()):
            assert await jobs.begin(lease(record)) is False
        assert await jobs.unfinished() == []

    async def test_of_twenty_results_one_counts_and_is_not_changed(self, jobs: Any) -> None:
        record = job()
        await jobs.offer(record)
        results = [completed(record, attempt) for attempt in range(1, 21)]
        won = await asyncio.gather(*(jobs.acknowledge(record, result) for result in results))
        assert sum(won) == 1
        assert (await jobs.read(record.job_id)).result == results[won.index(True)]

    async def test_a_lease_renewed_too_late_brings_no_job_back(self, jobs: Any) -> None:
        record = job()
        await jobs.offer(record)
        await jobs.acknowledge(record, completed(record))
        await jobs.renew(lease(record, beat=9))
        assert await jobs.unfinished() == []
        assert (await jobs.read(record.job_id)).result == completed(record)

    async def test_of_twenty_jobs_with_one_key_one_has_it(self, jobs: Any) -> None:
        records = [job(key="a" * 64) for _ in range(20)]
        for record in records:
            await jobs.offer(record)
        holders = await asyncio.gather(*(jobs.win_key(record) for record in records))
        assert len(set(holders)) == 1
        assert await jobs.key_holder("a" * 64) == holders[0]
        assert await jobs.key_holder("b" * 64) is None

    async def test_a_key_whose_job_is_gone_is_free(self, jobs: Any) -> None:
        first, second = job(key="a" * 64), job(key="a" * 64)
        for record in (first, second):
            await jobs.offer(record)
        assert await jobs.win_key(first) == first.job_id
        await jobs.withdraw(first.job_id)
        assert await jobs.win_key(second) == second.job_id

    async def test_what_is_past_its_time_goes_with_its_key_and_nothing_else(self, jobs: Any) -> None:
        old = [job(NOW - timedelta(days=days), key=str(days) * 64) for days in (9, 8)]
        young = job(NOW - timedelta(days=1), key="1" * 64)
        for record in (*old, young):
            await jobs.offer(record)
            await jobs.win_key(record)
            await jobs.acknowledge(record, completed(record))
        assert [await jobs.delete_expired_jobs(NOW) for _ in range(2)] == [2, 0]
        assert (await jobs.read(young.job_id)).record == young
        assert [await jobs.key_holder(digit * 64) for digit in "981"] == [None, None, young.job_id]
        for record in old:
            with pytest.raises(JobNotFound):
                await jobs.read(record.job_id)
