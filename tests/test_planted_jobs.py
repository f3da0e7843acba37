"""Generations on a shared volume, where another pod plants something else in the place of their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sidecar.errors import JobNotFound
from sidecar.storages import keys
from sidecar.storages.file import FileStorage
from sidecar.storages.job_records import MAX_JOB_BYTES
from tests.job_store_contract import job, lease, result
from tests.test_planted_files import OTHER, Plant, clock, facts, named, planted, put_in_place, root, store

__all__ = ["clock", "facts", "root", "store"]


@planted
@pytest.mark.parametrize("which", ["open", "done", "lease", "key"])
async def test_something_in_the_place_of_a_jobs_file_holds_up_nobody(
    which: str, plant: Plant, store: FileStorage, root: Path
) -> None:
    jobs = store.jobs
    digest = "ab" * 32
    record, other = job(key=digest), job()
    for one in (record, other):
        await jobs.offer(one)
    await jobs.win_key(record)
    assert await jobs.claim(lease(record, 2))
    if which == "done":
        await jobs.acknowledge(record, result(record, 2))
    key = {
        "open": keys.open_job_key(record.job_id),
        "done": keys.done_job_key(record.job_id),
        "lease": keys.lease_key(record.job_id, 2),
        "key": keys.idempotency_key(digest),
    }[which]
    put_in_place(plant, root / key)
    for _ in range(10):
        assert other in [found.record for found in await jobs.unfinished()]
    if which in ("open", "done"):
        with pytest.raises(JobNotFound):
            await jobs.read(record.job_id)
        assert await jobs.win_key(replacement := job(key=digest)) == replacement.job_id
    elif which == "lease":
        assert (await jobs.read(record.job_id)).lease.holder == record.holder
    else:
        assert await jobs.key_holder(digest) is None
    assert await jobs.begin(lease(other))
    assert await jobs.acknowledge(other, result(other))


@pytest.mark.parametrize(
    "changes",
    [
        {"job_id": OTHER.text},
        {"key_digest": "../../../secret"},
        {"created_at": "0001-01-01T00:00:00+23:59"},
        {"expires_at": "9999-12-31T23:59:59-23:59"},
        {"holder": "\ud800"},
        {"owner": 7},
        {"schema_version": "1"},
        {"result_mode": ["link"]},
        {"arguments_digest": "x" * MAX_JOB_BYTES},
    ],
    ids=named,
)
async def test_a_job_that_lies_is_none(changes: dict[str, Any], store: FileStorage, root: Path) -> None:
    jobs = store.jobs
    record, other = job(), job()
    for one in (record, other):
        await jobs.offer(one)
    place = root / keys.open_job_key(record.job_id)
    place.write_text(json.dumps(json.loads(place.read_bytes()) | changes))
    with pytest.raises(JobNotFound):
        await jobs.read(record.job_id)
    assert [found.record for found in await jobs.unfinished()] == [other]


@pytest.mark.parametrize(
    "text", ['{"holder": "x", "beat": 1e999, "released": false}', '{"holder": 1}', "[" * 4000, " " * 5000]
)
async def test_a_lease_that_lies_is_the_first_holders(text: str, store: FileStorage, root: Path) -> None:
    record = job()
    await store.jobs.offer(record)
    (root / keys.lease_key(record.job_id, 1)).write_text(text)
    assert (await store.jobs.read(record.job_id)).lease == lease(record)
