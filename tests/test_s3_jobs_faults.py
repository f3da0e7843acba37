"""Jobs in a bucket that answers oddly, or in the wrong moment."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from sidecar.domain import JobId
from sidecar.errors import StorageFailure
from sidecar.storages import keys
from sidecar.storages.job_records import encode_job, encode_key
from sidecar.storages.s3_jobs import S3Jobs
from tests.job_store_contract import NOW, job, lease, result
from tests.odd_store import Odd, at, odd, store_of

__all__ = ["odd"]

pytestmark = pytest.mark.real


@pytest.fixture
async def jobs(odd: Odd, tmp_path: Path) -> AsyncIterator[S3Jobs]:
    async with store_of(at(odd), tmp_path) as store:
        yield store.jobs


async def test_a_proxy_s_404_is_no_missing_job(odd: Odd, jobs: S3Jobs) -> None:
    record = job()
    await jobs.offer(record)
    odd.is_a_web_page = True
    with pytest.raises(StorageFailure):
        await jobs.renew(lease(record))
    with pytest.raises(StorageFailure):
        await jobs.claim(lease(record, 2))


async def test_what_was_missing_once_is_read_again(odd: Odd, jobs: S3Jobs) -> None:
    record = job()
    await jobs.offer(record)
    key = keys.open_job_key(record.job_id)
    content = odd.kept[key]
    odd.on_get[key] = lambda: odd.kept.pop(key)  # listed, and gone when it is read
    assert await jobs.unfinished() == []
    odd.kept[key] = content
    assert [found.record for found in await jobs.unfinished()] == [record]


async def test_a_key_that_a_new_job_wins_while_the_old_one_is_swept_stays_its_own(odd: Odd, jobs: S3Jobs) -> None:
    first, second = job(NOW, key="a" * 64), job(NOW + timedelta(seconds=1), key="b" * 64)
    for record in (first, second):
        odd.kept[keys.done_job_key(record.job_id)] = encode_job(record, result(record))
        odd.kept[keys.idempotency_key(record.key_digest or "")] = encode_key(record.job_id)
    newer = JobId.new(NOW + timedelta(days=9))
    key = keys.idempotency_key(first.key_digest or "")
    odd.on_get[keys.done_job_key(second.job_id)] = lambda: odd.kept.update({key: encode_key(newer)})
    assert await jobs.delete_expired_jobs(NOW + timedelta(days=9)) == 2
    assert odd.kept == {key: encode_key(newer)}


async def test_a_key_that_is_not_there_is_not_deleted(odd: Odd, jobs: S3Jobs) -> None:
    """Whoever finds none may be looking in the moment in which another wins it."""
    record = job(key="a" * 64)
    odd.conflicts = 1
    assert await jobs.win_key(record) == record.job_id
    assert odd.deletions == []


# --- what fails in the middle -----------------------------------------------------------------------------------------


async def test_a_beginning_whose_look_fails_leaves_the_job_to_be_begun(odd: Odd, jobs: S3Jobs) -> None:
    record = job()
    await jobs.offer(record)
    odd.unreadable = {"lease-2"}
    with pytest.raises(StorageFailure):
        await jobs.begin(lease(record))
    odd.unreadable = set()
    assert not (await jobs.read(record.job_id)).begun
    assert await jobs.begin(lease(record))


async def test_a_beginning_whose_answer_was_lost_leaves_the_job_to_be_begun(odd: Odd, jobs: S3Jobs) -> None:
    record = job()
    await jobs.offer(record)
    odd.loses = {"begun"}
    with pytest.raises(StorageFailure):
        await jobs.begin(lease(record))
    odd.loses = set()
    assert await jobs.begin(lease(record))


async def test_a_mark_that_cannot_be_taken_back_at_once_is_at_the_next_look(odd: Odd, jobs: S3Jobs) -> None:
    record = job()
    await jobs.offer(record)
    odd.unreadable, odd.undeletable = {"lease-2"}, {"begun"}
    with pytest.raises(StorageFailure):
        await jobs.begin(lease(record))
    odd.unreadable = odd.undeletable = set()
    assert [stored.begun for stored in await jobs.unfinished()] == [False]
    assert await jobs.begin(lease(record))


async def test_who_fails_to_begin_is_told_so_also_where_a_look_has_taken_the_mark_back(odd: Odd, jobs: S3Jobs) -> None:
    record = job()
    await jobs.offer(record)
    odd.loses = {"begun"}
    odd.on_delete[keys.begun_key(record.job_id)] = jobs.unfinished
    with pytest.raises(StorageFailure):
        await jobs.begin(lease(record))
    odd.loses = set()
    assert await jobs.begin(lease(record))


async def test_a_mark_is_taken_back_by_whoever_looks_at_the_store_s_jobs(odd: Odd, tmp_path: Path) -> None:
    async with store_of(at(odd), tmp_path) as store:
        record = job()
        await store.jobs.offer(record)
        odd.unreadable, odd.undeletable = {"lease-2"}, {"begun"}
        with pytest.raises(StorageFailure):
            await store.jobs.begin(lease(record))
        odd.unreadable = odd.undeletable = set()
        assert [stored.begun for stored in await store.jobs.unfinished()] == [False]


async def test_a_mark_that_arrives_late_is_taken_back_at_the_next_look(odd: Odd, jobs: S3Jobs) -> None:
    record = job()
    await jobs.offer(record)
    key = keys.begun_key(record.job_id)
    odd.loses = {"begun"}
    odd.on_get[key] = lambda: late.update({key: odd.kept.pop(key)})
    late: dict[str, bytes] = {}
    with pytest.raises(StorageFailure):
        await jobs.begin(lease(record))
    odd.loses = set()
    odd.kept |= late
    assert [stored.begun for stored in await jobs.unfinished()] == [False]


async def test_the_mark_of_another_who_began_in_the_meantime_stays(odd: Odd, jobs: S3Jobs) -> None:
    record = job()
    await jobs.offer(record)
    key = keys.begun_key(record.job_id)

    def another_begins() -> None:
        odd.marks[key] = "another's"

    odd.loses = {"begun"}
    odd.on_get[key] = another_begins
    with pytest.raises(StorageFailure):
        await jobs.begin(lease(record))
    assert [stored.begun for stored in await jobs.unfinished()] == [True]
    assert not await jobs.begin(lease(record, 1, "third"))


async def test_a_key_whose_winning_was_not_answered_is_free(odd: Odd, jobs: S3Jobs) -> None:
    first, second = job(key="a" * 64), job(key="a" * 64)
    for record in (first, second):
        await jobs.offer(record)
    odd.loses = {"jobs/keys"}
    with pytest.raises(StorageFailure):
        await jobs.win_key(first)
    odd.loses = set()
    assert await jobs.key_holder("a" * 64) is None
    assert await jobs.win_key(second) == second.job_id


async def test_a_key_that_the_store_cannot_decide_on_is_told_as_one_to_try_again(odd: Odd, jobs: S3Jobs) -> None:
    odd.conflicts = 1000
    with pytest.raises(StorageFailure, match="Repeat the call with the same key") as told:
        await jobs.win_key(job(key="a" * 64))
    assert told.value.retry_after == 1
