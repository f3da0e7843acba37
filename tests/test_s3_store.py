"""The S3 store: the contract on a real store, and what only a bucket has."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from sidecar.config import StorageSettings, read_settings
from sidecar.core.sweeper import Sweeper
from sidecar.errors import ImageNotFound, JobNotFound, StorageFailure
from sidecar.storages import keys
from sidecar.storages.file import FileStorage
from sidecar.storages.s3 import S3Storage, opened_s3
from tests import ceph
from tests.job_store_contract import job, result
from tests.storage_contract import DAY, PNG, HeldClock, StorageContract, bytes_of, listed, put

pytestmark = pytest.mark.real

HOUR = timedelta(hours=1)


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock()


def storage_settings(s3: dict[str, str], tmp_path: Path, **more: str) -> StorageSettings:
    return read_settings({**s3, "STORAGE_PATH": str(tmp_path / "local"), **more}).storage


@pytest.fixture
async def store(s3: dict[str, str], tmp_path: Path, clock: HeldClock) -> AsyncIterator[S3Storage]:
    settings = storage_settings(s3, tmp_path)
    async with opened_s3(settings, clock=clock, observer=lambda event: None) as opened:
        yield opened


class TestS3Storage(StorageContract):
    """The S3 store keeps the contract."""

    async def lay(self, store: S3Storage, key: str, data: bytes) -> None:
        await store._bucket.put("commit", key, data)


# --- what is sent is what was made ------------------------------------------------------------------------------------


async def test_the_store_takes_an_image_by_its_digest_and_refuses_one_that_has_changed_on_disk(
    store: S3Storage, clock: HeldClock, tmp_path: Path
) -> None:
    record = (await put(store, clock.now())).record
    file = tmp_path / "image.png"
    file.write_bytes(PNG)
    await store.delete(record.image_id)
    await store.send(file, record)
    assert await bytes_of(store, await store.get(record.image_id)) == PNG
    await store.delete(record.image_id)
    file.write_bytes(PNG[:-1] + b"?")
    with pytest.raises(StorageFailure, match="not what its digest says"):
        await store.send(file, record)
    with pytest.raises(ImageNotFound):
        await store.get(record.image_id)


# --- the sweeper ------------------------------------------------------------------------------------------------------


def sweeper(store: S3Storage, clock: HeldClock) -> Sweeper:
    return Sweeper(store, store.jobs, interval=1, clock=clock, observer=lambda event: None)


async def test_several_pods_sweep_one_bucket_at_once_and_count_each_image_once(
    s3: dict[str, str], tmp_path: Path, clock: HeldClock
) -> None:
    async with (
        opened_s3(storage_settings(s3, tmp_path / "one"), clock=clock, observer=lambda event: None) as one,
        opened_s3(storage_settings(s3, tmp_path / "other"), clock=clock, observer=lambda event: None) as other,
    ):
        for _ in range(20):
            await put(one, clock.now(), life=HOUR)
        kept = await put(one, clock.now(), life=3 * DAY)
        clock.advance(DAY)
        reports = await asyncio.gather(*(sweeper(store, clock).sweep() for store in (one, other)))
        assert sum(report.deleted for report in reports) == 20
        assert sum(report.freed_bytes for report in reports) == 20 * len(PNG)
        assert [report.errors for report in reports] == [0, 0]
        assert await listed(other) == [kept.record.image_id]
        left = [entry.key async for entry in one._bucket.entries("list", "", str)]
        assert {key.split("/")[0] for key in left} == {"expiry", "images", "inventory", "probe", "records"} - (
            set() if any(key.startswith("probe/") for key in left) else {"probe"}
        )


async def test_one_takes_the_day_s_inventory_and_the_other_reads_it(
    s3: dict[str, str], tmp_path: Path, clock: HeldClock
) -> None:
    async with (
        opened_s3(storage_settings(s3, tmp_path / "one"), clock=clock, observer=lambda event: None) as one,
        opened_s3(storage_settings(s3, tmp_path / "other"), clock=clock, observer=lambda event: None) as other,
    ):
        await put(one, clock.now())
        counted = await one.take_inventory(clock.now())
        assert counted is not None
        assert (counted.images, counted.size_bytes) == (1, len(PNG))
        await put(one, clock.now())
        assert (await other.take_inventory(clock.now()), await one.take_inventory(clock.now())) == (counted, None)
        clock.advance(DAY)
        found = await other.take_inventory(clock.now())
        assert found is not None
        assert found.images == 2


async def test_orphans_go_after_an_hour_and_not_before(store: S3Storage, clock: HeldClock) -> None:
    lonely, whole = [(await put(store, clock.now(), life=None)).record.image_id for _ in range(2)]
    await store._bucket.delete("delete", [keys.record_key(lonely)])
    first = await store.take_inventory(clock.now())
    clock.advance(DAY)
    second = await store.take_inventory(clock.now())
    assert first is not None
    assert second is not None
    assert (first.orphans_deleted, second.orphans_deleted, second.images) == (0, 1, 1)
    assert await listed(store) == [whole]


# --- commands ---------------------------------------------------------------------------------------------------------


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def copied(migration: subprocess.CompletedProcess[str]) -> tuple[dict[str, int], dict[str, int]]:
    """What a migration reports of images and of generations."""
    images = json.loads(migration.stdout)
    return images, images.pop("generations")


async def test_a_directory_is_copied_to_the_bucket_and_the_copy_can_be_resumed(
    s3: dict[str, str], tmp_path: Path
) -> None:
    clock = HeldClock()
    files = FileStorage(tmp_path / "files", max_bytes=None, clock=clock, observer=lambda event: None)
    async with files.opened() as source:
        stored = [await put(source, clock.now(), owner=owner) for owner in ("alice", "bob", "alice")]
        await source.put_thumbnail(stored[0].record.image_id, b"small")
        await put(source, clock.now() - 2 * DAY, life=HOUR)
        damaged = (await put(source, clock.now())).record
    (tmp_path / "files" / keys.image_key(damaged.image_id, "image/png")).write_bytes(bytes(len(PNG)))
    command = ("-m", "sidecar", "migrate")
    first = await asyncio.to_thread(run, *command, **s3, STORAGE_PATH=str(tmp_path / "files"))
    images, _ = copied(first)
    assert images == {"copied": 3, "there_already": 0, "expired": 1, "errors": 1}
    assert (first.returncode, f"{damaged.image_id}: the file is not what" in first.stderr) == (1, True)
    second = await asyncio.to_thread(run, *command, **s3, STORAGE_PATH=str(tmp_path / "files"))
    images, _ = copied(second)
    assert images == {"copied": 0, "there_already": 3, "expired": 1, "errors": 1}
    async with opened_s3(storage_settings(s3, tmp_path), clock=clock, observer=lambda event: None) as target:
        for one in stored:
            assert await bytes_of(target, await target.get(one.record.image_id)) == PNG
        assert await target.thumbnail(stored[0].record.image_id) == b"small"
        assert len(await listed(target, "alice")) == 2


async def test_ended_generations_are_copied_with_their_keys_and_open_ones_are_left_and_told(
    s3: dict[str, str], tmp_path: Path
) -> None:
    clock = HeldClock()
    now = clock.now()
    files = FileStorage(tmp_path / "files", max_bytes=None, clock=clock, observer=lambda event: None)
    ended, keyed, over, unfinished = job(now), job(now, key="a" * 64), job(now - 9 * DAY), job(now, key="b" * 64)
    lost_its_key = job(now, key="c" * 64)
    async with files.opened() as source:
        for one in (ended, keyed, over, lost_its_key):
            await source.jobs.acknowledge(one, result(one))
        for one in (keyed, unfinished):
            await source.jobs.win_key(one)
        await source.jobs.offer(unfinished)
    command = ("-m", "sidecar", "migrate")
    first = await asyncio.to_thread(run, *command, **s3, STORAGE_PATH=str(tmp_path / "files"))
    assert copied(first)[1] == {"copied": 3, "there_already": 0, "expired": 1, "errors": 0, "unfinished": 1}
    assert (first.returncode, "left because they have not ended: 1." in first.stderr) == (0, True)
    async with opened_s3(storage_settings(s3, tmp_path), clock=clock, observer=lambda event: None) as target:
        for one in (ended, keyed, lost_its_key):
            stored = await target.jobs.read(one.job_id)
            assert (stored.record, stored.result) == (one, result(one))
        holders = [await target.jobs.key_holder(letter * 64) for letter in "abc"]
        assert holders == [keyed.job_id, None, None]
        for one in (over, unfinished):
            with pytest.raises(JobNotFound):
                await target.jobs.read(one.job_id)
        await target._bucket.delete("delete", [keys.idempotency_key("a" * 64)])  # as if it had been stopped before
        second = await asyncio.to_thread(run, *command, **s3, STORAGE_PATH=str(tmp_path / "files"))
        assert copied(second)[1] == {"copied": 0, "there_already": 3, "expired": 1, "errors": 0, "unfinished": 1}
        assert await target.jobs.key_holder("a" * 64) == keyed.job_id


def test_the_lifecycle_rule_is_one_that_the_store_takes(s3: dict[str, str], gateway: ceph.Ceph) -> None:
    done = run("-m", "sidecar", "lifecycle", **s3, IMAGE_TTL="36h")
    rules = json.loads(done.stdout)
    days = {rule["Filter"]["Prefix"]: rule["Expiration"]["Days"] for rule in rules["Rules"]}
    assert days[f"{s3['S3_PREFIX']}/images/"] == 4
    assert days[f"{s3['S3_PREFIX']}/jobs/"] == 9
    client = ceph.client(gateway.url)
    client.put_bucket_lifecycle_configuration(Bucket=ceph.BUCKET, LifecycleConfiguration=rules)
    kept = client.get_bucket_lifecycle_configuration(Bucket=ceph.BUCKET)["Rules"]
    client.delete_bucket_lifecycle(Bucket=ceph.BUCKET)
    client.close()
    assert {rule["Filter"]["Prefix"]: rule["Expiration"]["Days"] for rule in kept} == days


def test_without_the_extra_the_start_is_refused_and_says_what_to_install() -> None:
    without = "import sys; sys.modules['aioboto3'] = None; from sidecar.cli import main; main(['sweep'])"
    done = run("-c", without, STORAGE_BACKEND="s3", S3_BUCKET="pictures")
    assert (done.returncode, "pip install mcp-image-sidecar[s3]" in done.stderr) == (2, True)
    assert "Traceback" not in done.stderr
