"""The file store: the contract, and what only a directory has."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.sweeper import Sweeper
from sidecar.domain import ANONYMOUS, Deletion, ImageId, SweepReport, sortable_time, time_from_sortable
from sidecar.errors import ImageNotFound, StorageFull
from sidecar.storages import keys
from sidecar.storages.file import FileStorage
from sidecar.storages.records import decode_record, encode_record
from tests.conftest import StartSidecar
from tests.fake_kserve import FakeKServe
from tests.storage_contract import DAY, PNG, HeldClock, StorageContract, bytes_of, listed, put

HOURS = timedelta(hours=1)


def file_store(root: Path, clock: HeldClock, max_bytes: int | None = None) -> FileStorage:
    return FileStorage(root, max_bytes=max_bytes, clock=clock, observer=lambda event: None)


@pytest.fixture
async def store(tmp_path: Path, clock: HeldClock) -> AsyncIterator[FileStorage]:
    async with file_store(tmp_path / "images", clock).opened() as opened:
        yield opened


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock()


class TestFileStorage(StorageContract):
    """The file store keeps the contract."""

    async def lay(self, store: FileStorage, key: str, data: bytes) -> None:
        path = store._root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


async def test_image_record_and_expiry_lie_where_the_scheme_says(
    store: FileStorage, tmp_path: Path, clock: HeldClock
) -> None:
    record = (await put(store, clock.now())).record
    root, image_id = tmp_path / "images", record.image_id
    assert record.expires is not None
    assert files(root) == {
        keys.image_key(image_id, "image/png"),
        keys.record_key(image_id),
        keys.expiry_key(record.expires, image_id),
    }
    document = json.loads((root / keys.record_key(image_id)).read_bytes())
    assert (document["schema_version"], document["owner"], document["image_id"]) == (1, "anonymous", image_id.text)
    assert document["request"]["prompt"] == "ein Kätzchen 🐈"


async def test_a_commit_costs_four_syncs_and_the_first_of_a_shard_makes_its_directories_durable_too(
    store: FileStorage, tmp_path: Path, clock: HeldClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, sync, synced = tmp_path / "images", os.fsync, []

    def noted_sync(descriptor: int) -> None:
        where = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append(str(where.relative_to(root)) if where.is_dir() else "a file")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted_sync)
    record = (await put(store, clock.now())).record
    shards = [
        str(Path(key).parent)
        for key in (keys.image_key(record.image_id, "image/png"), keys.record_key(record.image_id))
    ]
    owner = str(Path(shards[1]).parent)
    assert sorted(synced) == sorted([*shards, "images", "expiry", "records", owner, ".", ".", ".", "a file", "a file"])
    synced.clear()
    await put(store, clock.now())
    assert sorted(synced) == sorted([*shards, "a file", "a file"])


async def test_a_listing_reads_no_more_records_than_it_shows(
    store: FileStorage, tmp_path: Path, clock: HeldClock
) -> None:
    records = [(await put(store, clock.now() - age * timedelta(minutes=5))).record for age in range(20)]
    read = {(tmp_path / "images" / keys.record_key(record.image_id)): record for record in records}
    long_ago = 1_000_000_000
    for path in read:
        os.utime(path, (long_ago, path.stat().st_mtime))  # relatime then notes the next read
    before = {path: path.stat().st_atime for path in read}
    page = await store.page(ANONYMOUS, limit=5)
    touched = {path for path in read if path.stat().st_atime != before[path]}
    if not touched:
        pytest.skip("this file system notes no reads (noatime)")
    assert {read[path] for path in touched} == set(page.records)


async def test_a_record_of_a_newer_version_is_left_alone(store: FileStorage, tmp_path: Path, clock: HeldClock) -> None:
    record = (await put(store, clock.now())).record
    path = tmp_path / "images" / keys.record_key(record.image_id)
    document = json.loads(path.read_bytes()) | {"schema_version": 99}
    path.write_text(json.dumps(document))
    clock.advance(timedelta(seconds=2))
    with pytest.raises(ImageNotFound):
        await store.get(record.image_id)
    assert await listed(store) == []
    assert path.exists()


async def test_a_record_whose_picture_is_missing_can_be_deleted(
    store: FileStorage, tmp_path: Path, clock: HeldClock
) -> None:
    record = (await put(store, clock.now())).record
    (tmp_path / "images" / keys.image_key(record.image_id, "image/png")).unlink()
    assert await store.delete(record.image_id) == Deletion(first=True)
    assert (await listed(store), files(tmp_path / "images")) == ([], set())
    assert await store.delete(record.image_id) == Deletion(first=False)


async def test_a_record_of_a_newer_version_is_not_deleted(store: FileStorage, tmp_path: Path, clock: HeldClock) -> None:
    record = (await put(store, clock.now())).record
    path = tmp_path / "images" / keys.record_key(record.image_id)
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"schema_version": 99}))
    before = files(tmp_path)
    assert await store.delete(record.image_id) == Deletion(first=False)
    assert files(tmp_path) == before


async def test_room_is_reserved_and_given_back(tmp_path: Path, clock: HeldClock) -> None:
    async with file_store(tmp_path / "images", clock, max_bytes=1000).opened() as store:
        with store.reserve(600):
            with pytest.raises(StorageFull, match="are used and 600 are reserved"), store.reserve(600):
                pass
            with store.reserve(400):
                pass
        with store.reserve(1000):
            pass


async def test_what_lies_there_already_counts_against_the_bound(tmp_path: Path, clock: HeldClock) -> None:
    async with file_store(tmp_path / "images", clock).opened() as store:
        image_id = (await put(store, clock.now())).record.image_id
    async with file_store(tmp_path / "images", clock, max_bytes=len(PNG) + 100).opened() as store:
        with pytest.raises(StorageFull), store.reserve(101):
            pass
        await store.delete(image_id)
        with store.reserve(101):
            pass


async def test_without_room_the_runtime_is_not_asked(start_sidecar: StartSidecar, kserve: FakeKServe) -> None:
    sidecar = await start_sidecar(STORAGE_MAX_BYTES="1MiB")
    result = await sidecar.generate(width=1024, height=1024)
    assert (result.is_error, kserve.instances) == (True, [])
    assert "The image store is full" in result.content[0].text
    assert not (await sidecar.generate(width=64, height=64)).is_error


async def test_an_image_in_use_survives_its_deletion_for_who_reads_it(store: FileStorage, clock: HeldClock) -> None:
    stored = await put(store, clock.now())
    assert stored.path is not None
    with stored.path.open("rb") as reader:
        await store.delete(stored.record.image_id)
        assert reader.read() == PNG


async def test_two_instances_share_a_directory(tmp_path: Path, clock: HeldClock) -> None:
    async with file_store(tmp_path, clock).opened() as one, file_store(tmp_path, clock).opened() as other:
        image_id = (await put(one, clock.now())).record.image_id
        assert await bytes_of(other, await other.get(image_id)) == PNG
        await other.delete(image_id)
        clock.advance(timedelta(seconds=2))
        with pytest.raises(ImageNotFound):
            await one.get(image_id)


# --- the sweeper ------------------------------------------------------------------------------------------------------


def sweeper(store: FileStorage, clock: HeldClock) -> Sweeper:
    return Sweeper(store, store.jobs, interval=1, clock=clock, observer=lambda event: None)


def deed(report: SweepReport) -> tuple[int, int, int, int]:
    return report.deleted, report.freed_bytes, report.leftovers_deleted, report.errors


async def test_a_sweep_deletes_what_has_expired_and_nothing_else(
    store: FileStorage, tmp_path: Path, clock: HeldClock
) -> None:
    for _ in range(3):
        await store.put_thumbnail((await put(store, clock.now(), life=HOURS)).record.image_id, b"small")
    kept = await put(store, clock.now(), life=3 * HOURS)
    before = files(tmp_path)
    assert deed(await sweeper(store, clock).sweep()) == (0, 0, 0, 0)
    assert files(tmp_path) == before
    clock.advance(2 * HOURS)
    assert deed(await sweeper(store, clock).sweep()) == (3, 3 * (len(PNG) + 5), 0, 0)
    assert {Path(name).name.split(".")[0][-43:] for name in files(tmp_path / "images" / "images")} == {
        kept.record.image_id.text
    }
    assert await listed(store) == [kept.record.image_id]


def aged(path: Path, hours: float, clock: HeldClock) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    moment = clock.now().timestamp() - hours * 3600
    os.utime(path, (moment, moment))
    return path


async def test_leftovers_and_orphans_go_after_an_hour_and_not_before(
    store: FileStorage, tmp_path: Path, clock: HeldClock
) -> None:
    root = tmp_path / "images"
    old_id, young_id = ImageId.new(clock.now() - 2 * HOURS), ImageId.new(clock.now() - HOURS / 2)
    old = [
        aged(root / "staging" / "0123456789ab-crashed.part", 1.1, clock),
        aged(root / keys.image_key(old_id, "image/png"), 1.1, clock),
        aged(root / keys.record_key(ImageId.new(clock.now() - 2 * HOURS)), 1.1, clock),
    ]
    young = [
        aged(root / "staging" / "0123456789ab-writing.part", 0.9, clock),
        aged(root / keys.image_key(young_id, "image/png"), 0.9, clock),
        aged(root / keys.record_key(young_id), 0.9, clock),
    ]
    foreign = [aged(root / "lost+found" / "x", 99, clock), aged(root / "images" / "README", 99, clock)]
    assert deed(await sweeper(store, clock).sweep()) == (0, 0, 3, 0)
    assert [path.exists() for path in (*old, *young, *foreign)] == [False] * 3 + [True] * 5


async def test_several_pods_sweep_one_volume_at_once(tmp_path: Path, clock: HeldClock) -> None:
    async with file_store(tmp_path, clock).opened() as one, file_store(tmp_path, clock).opened() as other:
        for _ in range(40):
            await put(one, clock.now(), life=HOURS)
        clock.advance(DAY)
        reports = await asyncio.gather(*(sweeper(store, clock).sweep() for store in (one, other, one, other)))
    assert sum(report.deleted for report in reports) == 40
    assert sum(report.freed_bytes for report in reports) == 40 * len(PNG)
    assert [report.errors for report in reports] == [0] * 4


async def test_an_image_that_cannot_be_deleted_does_not_keep_the_others(
    store: FileStorage, tmp_path: Path, clock: HeldClock
) -> None:
    stuck = (await put(store, clock.now(), life=HOURS)).record.image_id
    for _ in range(2):
        await put(store, clock.now(), life=HOURS)
    path = tmp_path / "images" / keys.image_key(stuck, "image/png")
    path.unlink()
    path.mkdir()  # even root cannot unlink a directory
    clock.advance(DAY)
    report = await sweeper(store, clock).sweep()
    assert (report.deleted, report.errors > 0) == (2, True)
    path.rmdir()
    await sweeper(store, clock).sweep()
    assert not any(stuck.text in name for name in files(tmp_path))


# --- keys and records -------------------------------------------------------------------------------------------------

MOMENTS = st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(3000, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


@given(MOMENTS, MOMENTS)
def test_keys_sort_by_time_and_say_it(one: datetime, other: datetime) -> None:
    ids = [ImageId.new(moment) for moment in (one, other)]
    assert abs(ids[0].created - one) <= timedelta(milliseconds=1)
    assert abs(time_from_sortable(sortable_time(one)) - one) <= timedelta(milliseconds=1)
    if one + timedelta(milliseconds=2) < other:
        assert ids[0].text < ids[1].text
        assert keys.record_name(ids[0]) > keys.record_name(ids[1])
    assert keys.image_id_of_record_name(keys.record_name(ids[0])) == ids[0]
    assert keys.expiry_of_name(keys.expiry_key(other, ids[0]).rsplit("/", 1)[1]) == (
        time_from_sortable(sortable_time(other)),
        ids[0],
    )


@given(st.text(max_size=60) | st.from_regex(r"[0-9a-z.\-]{9}-[0-9a-z]{43}", fullmatch=True))
def test_foreign_names_are_no_ids(text: str) -> None:
    assert keys.expiry_of_name(f"!{text}") is None
    keys.expiry_of_name(text)
    with pytest.raises(ImageNotFound):
        ImageId.parse(f"{text}/")


def test_ids_are_unguessable_and_their_own() -> None:
    now = datetime.now(UTC)
    tails = {ImageId.new(now).text[17:] for _ in range(1000)}
    assert len(tails) == 1000
    assert {len(tail) for tail in tails} == {26}  # base 32: 130 bits
    assert all(len({tail[place] for tail in tails}) == 32 for place in range(26))


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_nothing_but_a_record_is_read_as_one(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        decode_record(data)


async def test_a_record_survives_the_round_trip_and_fields_of_tomorrow(store: FileStorage, clock: HeldClock) -> None:
    record = (await put(store, clock.now())).record
    document = json.loads(encode_record(record))
    document["mood"] = "blue"
    document["request"]["scheduler"] = "ddim"
    assert decode_record(json.dumps(document).encode()) == record
    for key in document.keys() - {"mood", "request"}:
        broken = {name: value for name, value in document.items() if name != key}
        with pytest.raises(ValueError, match=r".*"):
            decode_record(json.dumps(broken).encode())
