"""Clean-up of a directory: what a listing omits, and what contradicts the records, costs no image."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from sidecar.core.sweeper import Sweeper
from sidecar.events import CleanupSkipped, Event
from sidecar.storages import keys
from sidecar.storages.file import FileStorage
from tests.storage_contract import DAY, PNG, HeldClock, bytes_of, listed, put


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "images-here"


@pytest.fixture
def facts() -> list[Event]:
    return []


@pytest.fixture
async def store(root: Path, clock: HeldClock, facts: list[Event]) -> AsyncIterator[FileStorage]:
    storage = FileStorage(root, max_bytes=None, clock=clock, observer=facts.append)
    async with storage.opened() as opened:
        yield opened


def kept_by_clean_up(facts: list[Event]) -> int:
    skipped = [event for event in facts if isinstance(event, CleanupSkipped)]
    assert {event.reason for event in skipped} <= {"record_still_there"}
    return sum(event.count for event in skipped)


async def test_an_expiry_entry_that_contradicts_the_record_does_not_delete_its_image(
    store: FileStorage, root: Path, clock: HeldClock, facts: list[Event]
) -> None:
    lives = [(await put(store, clock.now(), life=life)).record for life in (None, 3 * DAY)]
    planted = [root / keys.expiry_key(clock.now() - DAY, record.image_id) for record in lives]
    for entry in planted:
        entry.parent.mkdir(parents=True, exist_ok=True)
        entry.touch()
    report = await Sweeper(store, store.jobs, interval=1, clock=clock, observer=facts.append).sweep()
    assert (report.deleted, report.errors) == (0, 0)
    assert set(await listed(store)) == {record.image_id for record in lives}
    assert [entry.exists() for entry in planted] == [False, False]
    assert lives[1].expires is not None
    assert (root / keys.expiry_key(lives[1].expires, lives[1].image_id)).exists()
    assert kept_by_clean_up(facts) == 2


async def test_a_listing_that_omits_a_record_costs_no_image(
    store: FileStorage, root: Path, clock: HeldClock, facts: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system may leave out what is there."""
    records = [(await put(store, clock.now(), life=None)).record for _ in range(3)]
    clock.advance(timedelta(hours=3))
    names = os.listdir

    def empty_listing(where: Any) -> list[str]:
        path = Path(f"/proc/self/fd/{where}").readlink() if isinstance(where, int) else Path(where)
        return [] if "records" in path.parts else names(where)

    monkeypatch.setattr(os, "listdir", empty_listing)
    assert (await store.take_inventory(clock.now())).orphans_deleted == 0
    assert kept_by_clean_up(facts) == 3
    monkeypatch.setattr(os, "listdir", names)
    scan = os.scandir

    class NoEntries:
        def __enter__(self) -> list[Any]:
            return []

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", lambda where: NoEntries())
    assert (await store.take_inventory(clock.now())).orphans_deleted == 0
    assert kept_by_clean_up(facts) == 6
    monkeypatch.setattr(os, "scandir", scan)
    assert sorted(map(str, await listed(store))) == sorted(str(record.image_id) for record in records)
    inventory = await store.take_inventory(clock.now())
    assert (inventory.images, inventory.orphans_deleted, inventory.errors) == (3, 0, 0)
    assert kept_by_clean_up(facts) == 6


@pytest.mark.parametrize("tree", ["images", "records"])
async def test_a_record_or_image_that_cannot_be_looked_up_costs_nothing(
    tree: str, store: FileStorage, root: Path, clock: HeldClock
) -> None:
    """A planted file in the place of a shard makes each look-up fail, which is not the answer that nothing is there."""
    image_id = (await put(store, clock.now(), life=None)).record.image_id
    clock.advance(timedelta(hours=3))
    key = keys.image_key(image_id, "image/png") if tree == "images" else keys.record_key(image_id)
    shard = (root / key).parent
    shard.rename(shard.with_name("elsewhere"))
    os.mkfifo(shard)
    inventory = await store.take_inventory(clock.now())
    assert (inventory.orphans_deleted, inventory.errors) == (0, 1)
    shard.unlink()
    shard.with_name("elsewhere").rename(shard)
    clock.advance(timedelta(seconds=5))
    assert await bytes_of(store, await store.get(image_id)) == PNG


async def test_what_is_still_being_stored_is_not_counted_as_kept(
    store: FileStorage, root: Path, clock: HeldClock, facts: list[Event]
) -> None:
    """Its record comes last, so a listing of the records may be older than one of the images."""
    record = (await put(store, clock.now(), life=None)).record
    (root / keys.record_key(record.image_id)).rename(root / "aside")
    assert (await store.take_inventory(clock.now())).images == 1
    assert kept_by_clean_up(facts) == 0
