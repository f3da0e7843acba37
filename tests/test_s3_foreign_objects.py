"""Objects in the bucket that are not of this server's making, or are not what they were: nothing stops at them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis
import pytest
from aiohttp.test_utils import TestServer
from hypothesis import strategies as st

from sidecar.core.sweeper import Sweeper
from sidecar.domain import ImageId, JobId, SweepReport, sortable_time
from sidecar.errors import ImageDamaged, ImageNotFound, JobNotFound
from sidecar.events import CleanupSkipped, Event, FileDamaged, StorageOperation
from sidecar.storages import keys, listed_keys
from sidecar.storages.file import FileStorage
from sidecar.storages.job_records import encode_key
from sidecar.storages.migration import Migration
from sidecar.storages.s3 import S3Storage
from tests.conftest import StartSidecar
from tests.job_store_contract import job, result
from tests.odd_store import Odd, at, odd, store_of
from tests.storage_contract import DAY, HeldClock, listed, put

__all__ = ["odd"]

pytestmark = pytest.mark.real

CLOCK = HeldClock()
NOW = CLOCK.now()
OLD = NOW - 3 * DAY
STRANGER = str(ImageId.new(OLD))
JOB = str(JobId.new(OLD))
FOREIGN = [
    "images/",
    "images/readme.txt",
    f"images/{STRANGER}.png",
    f"images/00000/{STRANGER}.png",
    f"images/{STRANGER[:5]}/{STRANGER}.gif",
    f"images/{STRANGER[:5]}/{STRANGER}.png/x",
    f"images/{STRANGER[:5]}/",
    "records/",
    "records/x",
    f"records/somebody/00000/{STRANGER}.json",
    f"records/{STRANGER}/a/b/c/d.json",
    "expiry/",
    "expiry/x",
    f"expiry/00000/{sortable_time(NOW + DAY)}-{STRANGER}",
    f"expiry/00000/0-{STRANGER}",
    "jobs/",
    "jobs/open/",
    "jobs/open/readme.txt",
    f"jobs/open/{JOB}",
    f"jobs/open/{JOB}.lease-99999999999999999999",
    f"jobs/open/{JOB}.lease-\N{ARABIC-INDIC DIGIT THREE}",
    "jobs/failed/",
    "jobs/failed/x",
    f"jobs/failed/x/{JOB}",
    "jobs/keys/x.json",
    "jobs/done/",
    "jobs/done/0/x.json",
    f"jobs/done/00000/{JOB}.json",
    "deleting/",
    "deleting/x",
    "probe/",
    "probe/of somebody else",
    "inventory/",
]


async def swept(store: S3Storage, seen: list[Event]) -> SweepReport:
    return await Sweeper(store, store.jobs, interval=1, clock=CLOCK, observer=seen.append).sweep()


def foreign(seen: list[Event]) -> int:
    return sum(event.count for event in seen if isinstance(event, CleanupSkipped) and event.reason == "foreign_key")


async def everyday(store: S3Storage) -> ImageId:
    """An image that has expired, an orphan, an ended job, an open one, and one image that lives."""
    for age in (2, 3):
        await put(store, NOW - age * DAY, life=DAY)
    lonely = (await put(store, OLD, life=None)).record.image_id
    await store._bucket.delete("delete", [keys.record_key(lonely)])
    over = job(NOW - 9 * DAY)
    await store.jobs.acknowledge(over, result(over))
    await store.jobs.offer(job(NOW))
    return (await put(store, NOW - timedelta(hours=2), life=None)).record.image_id


async def test_foreign_objects_are_left_alone_and_counted_and_stop_no_clean_up(
    s3: dict[str, str], tmp_path: Path
) -> None:
    seen: list[Event] = []
    async with store_of(s3, tmp_path, seen.append) as store:
        for key in FOREIGN:
            await store._bucket.put("commit", key, b"not ours")
        kept = await everyday(store)
        report = await swept(store, seen)
        assert [event.detail for event in seen if isinstance(event, StorageOperation) and event.failed] == []
        assert (report.deleted, report.jobs_deleted, report.errors) == (2, 1, 0)
        left = {entry.key async for entry in store._bucket.entries("list", "", str)}
        assert set(FOREIGN) <= left
        assert await listed(store) == [kept]
    once = [key for key in FOREIGN if key not in ("jobs/", "jobs/keys/x.json", "inventory/")]
    twice = [key for key in FOREIGN if key.startswith("expiry/")]  # first to see whether the clock may be believed
    assert foreign(seen) == len(once) + len(twice)


def test_whatever_keys_there_are_a_pass_comes_to_its_end_and_deletes_none_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "of-no-value")
    folders = st.sampled_from(
        ["images", "records", "expiry", "jobs/open", "jobs/done", "deleting", "probe", "inventory"]
    )
    words = st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=12)
    parts = st.one_of(words, st.sampled_from([STRANGER, JOB, STRANGER[:5], f"{JOB}.lease-7x", f"{STRANGER}.PNG", ""]))
    keys_of_others = st.lists(st.tuples(folders, st.lists(parts, min_size=1, max_size=4)), max_size=12)

    @hypothesis.settings(max_examples=15)
    @hypothesis.given(keys_of_others)
    def passes(found: list[tuple[str, list[str]]]) -> None:
        others = {f"{folder}/{'/'.join(parts)}" for folder, parts in found}
        asyncio.run(clean({key for key in others if listed_keys.deletion_claim(key) is None}))

    async def clean(others: set[str]) -> None:
        async with a_store() as (stand_in, store):
            seen: list[Event] = []
            kept = await everyday(store)
            stand_in.kept |= dict.fromkeys(others, b"not ours")
            report = await swept(store, seen)
            assert (report.deleted, report.errors) == (2, 0)
            assert others <= stand_in.kept.keys()
            assert await listed(store) == [kept]

    passes()


@asynccontextmanager
async def a_store() -> AsyncIterator[tuple[Odd, S3Storage]]:
    stand_in = Odd()
    async with TestServer(stand_in.app) as server:
        stand_in.url = f"http://127.0.0.1:{server.port}"
        with TemporaryDirectory() as spool:
            async with store_of(at(stand_in), Path(spool)) as store:
                yield stand_in, store


# --- the index of what expires ----------------------------------------------------------------------------------------


async def test_an_entry_of_the_index_that_contradicts_the_record_does_not_delete_its_image(
    odd: Odd, tmp_path: Path
) -> None:
    seen: list[Event] = []
    async with store_of(at(odd), tmp_path, seen.append) as store:
        lives = [(await put(store, NOW - timedelta(hours=2), life=life)).record for life in (None, 3 * DAY)]
        planted = [keys.expiry_key(OLD, record.image_id) for record in lives]
        odd.kept |= dict.fromkeys(planted, b"")
        report = await swept(store, seen)
        assert (report.deleted, report.errors) == (0, 0)
        assert set(await listed(store)) == {record.image_id for record in lives}
        assert not set(planted) & odd.kept.keys()
        assert lives[1].expires is not None
        assert keys.expiry_key(lives[1].expires, lives[1].image_id) in odd.kept
    assert [(event.reason, event.count) for event in seen if isinstance(event, CleanupSkipped)] == [
        ("record_still_there", 2)
    ]


# --- records ----------------------------------------------------------------------------------------------------------


def damaged(seen: list[Event]) -> list[str]:
    return [event.key for event in seen if isinstance(event, FileDamaged)]


@pytest.mark.parametrize("kind", ["too large", "endless", "another image's", "no record", "of another size"])
async def test_an_image_with_a_damaged_record_is_told_from_one_that_is_gone(
    kind: str, odd: Odd, tmp_path: Path
) -> None:
    async with store_of(at(odd), tmp_path / "writer") as writer:
        one, other = [(await put(writer, NOW - hours * timedelta(hours=1))).record for hours in (1, 2)]
    key = keys.record_key(one.image_id)
    record = odd.kept[key]
    odd.kept[key] = {
        "too large": record + b" " * 100 * 2**20,
        "another image's": odd.kept[keys.record_key(other.image_id)],
        "no record": b"{}",
        "of another size": record.replace(b'"size_bytes":', b'"size_bytes":9'),
    }.get(kind, record)
    odd.endless = {key} if kind == "endless" else set()
    seen: list[Event] = []
    async with store_of(at(odd), tmp_path / "reader", seen.append) as reader:
        with pytest.raises(ImageDamaged, match="damaged"):
            await reader.get(one.image_id)
        of_image = keys.image_key(one.image_id, "image/png")
        assert damaged(seen) == [of_image if kind == "of another size" else key]
        shown = set(await listed(reader))
        assert shown == {other.image_id} | ({one.image_id} if kind == "of another size" else set())
        assert (await reader.get(other.image_id)).record == other
    assert odd.given_endlessly < 32 * 2**20


async def test_a_record_of_a_newer_version_is_no_damage(odd: Odd, tmp_path: Path) -> None:
    async with store_of(at(odd), tmp_path / "writer") as writer:
        image_id = (await put(writer, NOW)).record.image_id
    odd.kept[keys.record_key(image_id)] = b'{"schema_version": 99}'
    seen: list[Event] = []
    async with store_of(at(odd), tmp_path / "reader", seen.append) as reader:
        with pytest.raises(ImageNotFound) as told:
            await reader.get(image_id)
        assert (await reader.delete(image_id)).first is False
    assert (type(told.value), damaged(seen)) == (ImageNotFound, [])
    assert keys.image_key(image_id, "image/png") in odd.kept


async def test_an_image_with_a_damaged_record_goes_at_its_time(odd: Odd, tmp_path: Path) -> None:
    async with store_of(at(odd), tmp_path) as store:
        record = (await put(store, OLD, life=DAY)).record
        odd.kept[keys.record_key(record.image_id)] = b" " * 2 * 2**20
        assert (await swept(store, [])).errors == 0
        assert not [key for key in odd.kept if str(record.image_id) in key]


async def test_an_image_with_a_damaged_record_can_be_deleted(odd: Odd, tmp_path: Path) -> None:
    async with store_of(at(odd), tmp_path) as store:
        record = (await put(store, NOW, life=None)).record
        odd.kept[keys.record_key(record.image_id)] = b"{}"
        assert (await store.delete(record.image_id)).first
        assert not (await store.delete(record.image_id)).first
        assert not [key for key in odd.kept if str(record.image_id) in key or key.startswith("records/")]


async def test_a_thumbnail_that_is_too_large_is_made_anew(
    odd: Odd, start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    painter = await start_sidecar(**at(odd), SPOOL_PATH=str(tmp_path / "painter"))
    image = await painter.made()
    key = keys.thumbnail_key(ImageId(image["image_id"]))
    odd.kept[key] = bytes(2 * 2**20)
    sidecar = await start_sidecar(**at(odd), SPOOL_PATH=str(tmp_path / "other"))
    response, body = await sidecar.get(f"/images/{image['image_id']}/thumbnail")
    assert (response.status, body == odd.kept[key], len(body) < 75_000) == (200, True, True)


# --- jobs -------------------------------------------------------------------------------------------------------------


async def test_jobs_that_are_damaged_keep_no_other_from_being_seen(odd: Odd, tmp_path: Path) -> None:
    ours, large, anothers, ended = (job(NOW + timedelta(seconds=number)) for number in range(4))
    async with store_of(at(odd), tmp_path) as store:
        for record in (ours, large, anothers):
            await store.jobs.offer(record)
        await store.jobs.acknowledge(ended, result(ended))
        odd.kept[keys.open_job_key(large.job_id)] += b" " * 100 * 2**20
        odd.kept[keys.open_job_key(anothers.job_id)] = odd.kept[keys.open_job_key(ours.job_id)]
        odd.kept[keys.done_job_key(ended.job_id)] += b" " * 2 * 2**20
        odd.kept[keys.lease_key(ours.job_id, 2)] = b" " * 2 * 2**20
        odd.kept[f"jobs/open/{ours.job_id}.lease-99999999999999999999"] = b"{}"
        assert [(one.record, one.lease.attempt) for one in await store.jobs.unfinished()] == [(ours, 2)]
        for damaged in (large, anothers, ended):
            with pytest.raises(JobNotFound):
                await store.jobs.read(damaged.job_id)


async def test_an_idempotency_key_that_is_damaged_is_won_anew(odd: Odd, tmp_path: Path) -> None:
    record = job(NOW, key="a" * 64)
    odd.kept[keys.idempotency_key("a" * 64)] = encode_key(JobId.new(OLD)) + b" " * 2 * 2**20
    async with store_of(at(odd), tmp_path) as store:
        await store.jobs.offer(record)
        assert await store.jobs.win_key(record) == record.job_id


@pytest.mark.parametrize(
    ("content", "is_free"), [(b"{", True), (b" " * 2 * 2**20, True), (b'{"schema_version": 99}', False)]
)
async def test_a_key_is_free_again_where_its_job_is_damaged_but_not_where_it_is_a_newer_versions(
    content: bytes, is_free: bool, odd: Odd, tmp_path: Path
) -> None:
    seen: list[Event] = []
    old, new = (job(NOW, key="a" * 64) for _ in range(2))
    async with store_of(at(odd), tmp_path, seen.append) as store:
        await store.jobs.acknowledge(old, result(old))
        await store.jobs.win_key(old)
        odd.kept[keys.done_job_key(old.job_id)] = content
        assert await store.jobs.win_key(new) == (new if is_free else old).job_id
    assert damaged(seen) == ([keys.done_job_key(old.job_id)] if is_free else [])


async def test_damaged_jobs_and_leases_are_in_the_log(odd: Odd, tmp_path: Path) -> None:
    seen: list[Event] = []
    spoilt, ended, leased = (job(NOW + timedelta(seconds=number)) for number in range(3))
    async with store_of(at(odd), tmp_path, seen.append) as store:
        for record in (spoilt, leased):
            await store.jobs.offer(record)
        await store.jobs.acknowledge(ended, result(ended))
        places = [keys.open_job_key(spoilt.job_id), keys.lease_key(leased.job_id, 2), keys.done_job_key(ended.job_id)]
        odd.kept |= dict.fromkeys(places, b"{")
        assert [found.record for found in await store.jobs.unfinished()] == [leased]
        with pytest.raises(JobNotFound):
            await store.jobs.read(ended.job_id)
    assert list(dict.fromkeys(damaged(seen))) == places  # each look tells of them, the log does so once


async def test_a_job_that_a_listing_leaves_out_is_found_and_keeps_its_leases(odd: Odd, tmp_path: Path) -> None:
    seen: list[Event] = []
    record = job(NOW)
    async with store_of(at(odd), tmp_path, seen.append) as store:
        await store.jobs.offer(record)
        odd.kept |= dict.fromkeys((keys.lease_key(record.job_id, 2), keys.begun_key(record.job_id)), b"{}")
        odd.unlisted = {keys.open_job_key(record.job_id)}
        assert (await store.jobs.read(record.job_id)).begun
        await store.jobs.delete_expired_jobs(NOW)
        assert {keys.lease_key(record.job_id, 2), keys.begun_key(record.job_id)} <= odd.kept.keys()
        assert [event.reason for event in seen if isinstance(event, CleanupSkipped)] == ["record_still_there"]
        del odd.kept[keys.open_job_key(record.job_id)]
        await store.jobs.delete_expired_jobs(NOW)
        assert not [key for key in odd.kept if key.startswith("jobs/open/")]


async def test_an_image_that_changes_on_its_way_to_the_bucket_is_taken_back(odd: Odd, tmp_path: Path) -> None:
    files = FileStorage(tmp_path / "files", max_bytes=None, clock=CLOCK, observer=lambda event: None)

    def garble(key: str) -> None:
        if key.endswith(".png"):
            odd.kept[key] = odd.kept[key][:-1] + b"?"

    async with files.opened() as source, store_of(at(odd), tmp_path / "spool") as target:
        record = (await put(source, NOW)).record
        odd.on_kept = garble
        migration = Migration(source, target, clock=CLOCK)
        assert (await migration.run()).errors == 1
        assert migration.notes == [f"{record.image_id}: what arrived is not what was sent; it was taken back"]
        assert not [key for key in odd.kept if str(record.image_id) in key]
