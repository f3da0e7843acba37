"""What every store of jobs promises. A store's test module derives from `JobStoreContract` and provides `jobs`."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from sidecar.domain import ANONYMOUS, GenerationRequest, ImageId, JobCount, JobId, JobRecord, JobResult, Lease
from sidecar.errors import JobNotFound
from sidecar.ports import JobStore
from sidecar.storages.job_records import encode_job, encode_key

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def job(
    created: datetime = NOW, *, life: timedelta = timedelta(days=7), key: str | None = None, images: int = 1
) -> JobRecord:
    """A queued job."""
    seeds = range(7, 7 + images)
    return JobRecord(
        job_id=JobId.new(created),
        owner=ANONYMOUS,
        requests=tuple(
            GenerationRequest(model="painter", prompt="ein Kätzchen 🐈", seed=seed, width=64) for seed in seeds
        ),
        image_ids=tuple(ImageId.new(created) for _ in seeds),
        created=created,
        expires=created + life,
        holder="one",
        key_digest=key,
        arguments_digest="0" * 64,
        result_mode="link",
    )


def lease(record: JobRecord, attempt: int = 1, holder: str = "one") -> Lease:
    return Lease(job_id=record.job_id, attempt=attempt, holder=holder)


def result(record: JobRecord, attempt: int = 1) -> JobResult:
    return JobResult(
        job_id=record.job_id, attempt=attempt, status="failed", finished=NOW, reason="busy", message="It is busy."
    )


class JobStoreContract:
    async def test_what_was_offered_is_read_and_unfinished(self, jobs: JobStore) -> None:
        record = job()
        await jobs.offer(record)
        stored = await jobs.read(record.job_id)
        assert (stored.record, stored.begun, stored.result) == (record, False, None)
        assert (stored.lease.attempt, stored.lease.holder) == (1, "one")
        assert [found.record for found in await jobs.unfinished()] == [record]

    async def test_what_is_not_there_is_told(self, jobs: JobStore) -> None:
        with pytest.raises(JobNotFound):
            await jobs.read(JobId.new(NOW))

    async def test_a_job_that_was_withdrawn_is_gone(self, jobs: JobStore) -> None:
        record = job()
        await jobs.offer(record)
        await jobs.withdraw(record.job_id)
        assert await jobs.unfinished() == []
        assert not await jobs.begin(lease(record))

    async def test_unfinished_jobs_come_oldest_first(self, jobs: JobStore) -> None:
        records = [job(NOW + timedelta(seconds=number)) for number in (2, 0, 1)]
        for record in records:
            await jobs.offer(record)
        found = [stored.record.created for stored in await jobs.unfinished()]
        assert found == sorted(record.created for record in records)

    async def test_of_many_who_begin_one_does(self, jobs: JobStore) -> None:
        record = job()
        await jobs.offer(record)
        begun = await asyncio.gather(*(jobs.begin(lease(record)) for _ in range(20)))
        assert begun.count(True) == 1
        assert (await jobs.read(record.job_id)).begun

    async def test_of_many_who_claim_one_does(self, jobs: JobStore) -> None:
        record = job()
        await jobs.offer(record)
        claimed = await asyncio.gather(*(jobs.claim(lease(record, 2, f"{number}")) for number in range(20)))
        assert claimed.count(True) == 1
        assert (await jobs.read(record.job_id)).lease.attempt == 2

    async def test_of_many_who_acknowledge_one_counts(self, jobs: JobStore) -> None:
        record = job()
        await jobs.offer(record)
        results = [replace(result(record), message=f"{number}") for number in range(20)]
        counted = await asyncio.gather(*(jobs.acknowledge(record, each) for each in results))
        stored = await jobs.read(record.job_id)
        assert (counted.count(True), stored.result, await jobs.unfinished()) == (1, results[counted.index(True)], [])

    async def test_an_older_attempt_can_do_nothing_after_a_newer_one_has_claimed(self, jobs: JobStore) -> None:
        record = job()
        await jobs.offer(record)
        assert await jobs.claim(lease(record, 2, "two"))
        assert not await jobs.begin(lease(record))
        assert not await jobs.renew(lease(record))
        assert not await jobs.acknowledge(record, result(record))
        assert await jobs.begin(lease(record, 2, "two"))
        assert await jobs.acknowledge(record, result(record, 2))

    async def test_a_job_that_was_begun_or_has_ended_cannot_be_claimed(self, jobs: JobStore) -> None:
        begun, ended = job(), job()
        for record in (begun, ended):
            await jobs.offer(record)
        assert await jobs.begin(lease(begun))
        await jobs.acknowledge(ended, result(ended))
        assert [await jobs.claim(lease(record, 2, "two")) for record in (begun, ended)] == [False, False]
        assert not await jobs.begin(lease(ended))
        assert (await jobs.read(begun.job_id)).lease.attempt == 1

    async def test_a_job_offered_as_begun_needs_no_beginning(self, jobs: JobStore) -> None:
        record = replace(job(), begun=True)
        await jobs.offer(record)
        assert (await jobs.read(record.job_id)).begun

    async def test_a_renewed_lease_is_seen_and_a_released_one_too(self, jobs: JobStore) -> None:
        record = job()
        await jobs.offer(record)
        assert await jobs.renew(replace(lease(record), beat=5))
        assert (await jobs.read(record.job_id)).lease == replace(lease(record), beat=5)
        assert await jobs.renew(replace(lease(record), beat=6, released=True))
        assert (await jobs.unfinished())[0].lease.released

    async def test_a_lease_of_a_job_that_has_ended_is_not_renewed(self, jobs: JobStore) -> None:
        record = job()
        await jobs.offer(record)
        await jobs.acknowledge(record, result(record))
        assert not await jobs.renew(lease(record))

    async def test_of_many_who_want_a_key_one_wins_and_all_agree(self, jobs: JobStore) -> None:
        records = [job(key="a" * 64) for _ in range(20)]
        for record in records:
            await jobs.offer(record)
        holders = await asyncio.gather(*(jobs.win_key(record) for record in records))
        assert len(set(holders)) == 1
        assert await jobs.key_holder("a" * 64) == holders[0]
        assert await jobs.key_holder("b" * 64) is None

    async def test_a_key_is_free_again_when_its_job_is_over_or_gone(self, jobs: JobStore) -> None:
        expired, heir = job(NOW - timedelta(days=8), key="a" * 64), job(key="a" * 64)
        for record in (expired, heir):
            await jobs.offer(record)
        assert await jobs.win_key(expired) == expired.job_id
        assert await asyncio.gather(*(jobs.win_key(heir) for _ in range(10))) == [heir.job_id] * 10
        await jobs.withdraw(heir.job_id)
        another = job(key="a" * 64)
        await jobs.offer(another)
        assert await jobs.win_key(another) == another.job_id

    async def test_expired_jobs_are_deleted_with_their_keys_and_the_others_kept(self, jobs: JobStore) -> None:
        expired, kept = job(NOW - timedelta(days=8), key="a" * 64), job(key="b" * 64)
        for record in (expired, kept):
            await jobs.offer(record)
            await jobs.win_key(record)
            await jobs.acknowledge(record, result(record))
        assert await jobs.delete_expired_jobs(NOW) == 1
        assert await jobs.key_holder("a" * 64) is None
        assert await jobs.key_holder("b" * 64) == kept.job_id
        assert (await jobs.read(kept.job_id)).result == result(kept)
        with pytest.raises(JobNotFound):
            await jobs.read(expired.job_id)

    # --- room -------------------------------------------------------------------------------------------------------

    async def test_what_is_kept_of_generations_is_counted(self, jobs: JobStore) -> None:
        queued, failed, completed = job(key="a" * 64), job(), job()
        for record in (queued, failed, completed):
            await jobs.offer(record)
        await jobs.win_key(queued)
        await jobs.acknowledge(failed, result(failed))
        await jobs.acknowledge(completed, replace(result(completed), status="completed"))
        counted = await jobs.take_inventory()
        assert counted is not None
        assert (counted.open, counted.completed, counted.failed) == (1, 1, 1)
        records = [encode_job(queued), encode_key(queued.job_id), encode_job(failed, result(failed))]
        assert sum(map(len, records)) < counted.size_bytes < 2 * sum(map(len, records))

    async def test_of_too_many_failed_jobs_the_oldest_go_before_their_time(self, jobs: JobStore) -> None:
        failed = [job(NOW - timedelta(hours=3) + timedelta(minutes=number)) for number in range(5)]
        for record in reversed(failed):
            await jobs.offer(record)
            await jobs.acknowledge(record, result(record))
        assert await jobs.delete_failed_jobs(keep=3, ended_before=NOW) == 2
        assert await self.left_of(jobs, failed) == failed[2:]
        assert await jobs.delete_failed_jobs(keep=3, ended_before=NOW) == 0
        assert await jobs.delete_failed_jobs(keep=0, ended_before=NOW) == 3
        assert await self.left_of(jobs, failed) == []
        counted = await jobs.take_inventory()
        assert counted is None or counted == JobCount()

    async def test_only_those_go_early_that_nobody_comes_back_for(self, jobs: JobStore) -> None:
        """Not one younger than the bound, with a key, interrupted, completed, or under way."""
        long_ago = NOW - timedelta(days=1)
        keyed, interrupted, completed, young, under_way, cancelled = (
            job(long_ago, key=key) for key in ("a" * 64, None, None, None, None, None)
        )
        ends = {
            keyed: result(keyed),
            interrupted: replace(result(interrupted), reason="interrupted"),
            completed: replace(result(completed), status="completed", reason=None),
            young: replace(result(young), finished=NOW + timedelta(seconds=1)),
            cancelled: replace(result(cancelled), status="cancelled", reason=None),
        }
        for record, end in ends.items():
            await jobs.offer(record)
            await jobs.acknowledge(record, end)
        await jobs.offer(under_way)
        assert await jobs.delete_failed_jobs(keep=0, ended_before=NOW) == 1
        kept = [keyed, interrupted, completed, young, under_way]
        assert await self.left_of(jobs, [*kept, cancelled]) == kept

    @staticmethod
    async def left_of(jobs: JobStore, records: list[JobRecord]) -> list[JobRecord]:
        left = []
        for record in records:
            with contextlib.suppress(JobNotFound):
                left.append((await jobs.read(record.job_id)).record)
        return left
