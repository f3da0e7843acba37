"""The file store in rough company: cancelled writers, several pods, broken records, a bound that many press against.

The contract itself and the plain ways of the file store are in test_file_store.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from sidecar.core.sweeper import Sweeper
from sidecar.domain import ANONYMOUS, GeneratedImage, ImageId
from sidecar.errors import ImageNotFound, StorageFailure, StorageFull
from sidecar.events import Event, FileDamaged, StorageOperation
from sidecar.ports import Observer
from sidecar.storages import keys
from sidecar.storages.file import FileStorage
from tests.conftest import Sidecar, StartSidecar, metric_becomes
from tests.fake_kserve import FakeKServe, say, succeed, succeed_when
from tests.pictures import picture
from tests.storage_contract import DAY, PNG, HeldClock, bytes_of, listed, put

HOUR = timedelta(hours=1)


def to_nobody(_event: Event) -> None:
    """An observer that does not care."""


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "images"


OpenStore = Callable[..., Awaitable[FileStorage]]


@pytest.fixture
async def open_store(root: Path, clock: HeldClock) -> AsyncIterator[OpenStore]:
    """Stores on one directory, as several pods have them; they close with the test."""
    async with AsyncExitStack() as stack:

        async def start(max_bytes: int | None = None, observer: Observer = to_nobody) -> FileStorage:
            store = FileStorage(root, max_bytes=max_bytes, clock=clock, observer=observer)
            return await stack.enter_async_context(store.opened())

        yield start


@pytest.fixture
async def store(open_store: OpenStore) -> FileStorage:
    return await open_store()


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


async def until(observed: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not observed():
            await asyncio.sleep(0.005)


# --- writers that are interrupted -------------------------------------------------------------------------------------


async def test_a_writer_cancelled_while_its_file_is_opened_leaves_none(
    root: Path, open_store: OpenStore, clock: HeldClock
) -> None:
    loop = asyncio.get_running_loop()
    writer: asyncio.Task[Any]

    def cancel_once_there_is_room(event: Event) -> None:
        if isinstance(event, StorageOperation) and event.operation == "stage":
            loop.call_soon(writer.cancel)

    store = await open_store(observer=cancel_once_there_is_room)
    for _ in range(20):
        writer = asyncio.create_task(put(store, clock.now()))
        with pytest.raises(asyncio.CancelledError):
            await writer
    for _ in range(20):
        await store.check()  # what was still on the store's threads is done
    await until(lambda: files(root) == set())


@pytest.mark.parametrize("turns", [0, 1, 3, 10, 30, 100, 300, 1000])
async def test_a_commit_cancelled_at_any_moment_leaves_the_whole_image_or_nothing(
    turns: int, root: Path, store: FileStorage, clock: HeldClock
) -> None:
    image_id = ImageId.new(clock.now())
    writer = asyncio.create_task(put(store, clock.now(), image_id=image_id))
    await until(lambda: any((root / "staging").glob(f"*{image_id}*")) or writer.done())
    for _ in range(turns):
        await asyncio.sleep(0)
    writer.cancel()
    await asyncio.gather(writer, return_exceptions=True)
    whole = {
        keys.image_key(image_id, "image/png"),
        keys.record_key(image_id),
        keys.expiry_key(clock.now() + DAY, image_id),
    }
    await until(lambda: files(root) in (set(), whole))
    clock.advance(timedelta(seconds=5))
    if files(root):
        assert await bytes_of(store, await store.get(image_id)) == PNG
    else:
        with pytest.raises(ImageNotFound):
            await store.get(image_id)
    assert (await listed(store) == [image_id]) == bool(files(root))


async def test_two_writers_of_one_id_do_not_spoil_the_first(root: Path, store: FileStorage, clock: HeldClock) -> None:
    """Ids are unguessable, but a retry may carry the same one."""
    image_id = (await put(store, clock.now())).record.image_id
    before = files(root)
    async with store.stage(image_id, 10) as staged:
        await staged.write(b"half")
        with pytest.raises(StorageFailure):
            async with store.stage(image_id, 10):
                pass
        assert staged.path.exists()
    assert files(root) == before
    assert await bytes_of(store, await store.get(image_id)) == PNG


async def test_an_image_whose_staged_file_has_gone_is_not_committed(
    root: Path, store: FileStorage, clock: HeldClock
) -> None:
    pattern = (await put(store, clock.now())).record
    before = files(root)
    image_id = ImageId.new(clock.now())
    with pytest.raises(StorageFailure):
        async with store.stage(image_id, 10) as staged:
            staged.path.unlink()
            await store.commit(
                GeneratedImage(
                    path=staged.path,
                    sha256=pattern.sha256,
                    size_bytes=pattern.size_bytes,
                    picture=pattern.picture,
                    seed_applied=False,
                ),
                replace(pattern, image_id=image_id),
            )
    assert files(root) == before


# --- several pods on one volume ---------------------------------------------------------------------------------------


async def test_of_many_pods_who_delete_at_once_one_has_done_it(
    root: Path, open_store: OpenStore, clock: HeldClock
) -> None:
    pods = [await open_store() for _ in range(4)]
    ids = [(await put(pods[0], clock.now())).record.image_id for _ in range(10)]
    deletions = await asyncio.gather(*(pod.delete(image_id) for image_id in ids for pod in pods))
    assert sum(deletion.first for deletion in deletions) == 10
    assert sum(deletion.freed_bytes for deletion in deletions) == 10 * len(PNG)
    assert files(root) == set()


async def test_what_one_pod_stores_the_others_show_at_once_and_after_a_restart(
    open_store: OpenStore, clock: HeldClock
) -> None:
    one, other = await open_store(), await open_store()
    stored = await put(one, clock.now(), life=2 * HOUR)
    await one.put_thumbnail(stored.record.image_id, b"small")
    for store in (other, await open_store()):
        assert await store.get(stored.record.image_id) == stored
        assert await store.thumbnail(stored.record.image_id) == b"small"
        assert (await store.page(ANONYMOUS, limit=5)).records == (stored.record,)


async def test_old_empty_shards_are_tidied_away_under_the_feet_of_writers(
    root: Path, open_store: OpenStore, clock: HeldClock
) -> None:
    """A shard that is being removed as old and empty may be the one that somebody else is about to write to."""
    writer, tidier = await open_store(), await open_store()
    then = clock.now() - 3 * HOUR
    stop = asyncio.Event()

    async def tidy() -> None:
        while not stop.is_set():
            for shard in [*root.glob("*/1????"), *root.glob("records/*/*")]:
                os.utime(shard, (0, 0)) if shard.exists() else None
            await tidier.take_inventory(clock.now())
            async for _ in tidier.expired(clock.now()):
                pass

    tidying = asyncio.create_task(tidy())
    try:
        for _ in range(40):
            stored = await put(writer, then)
            assert (await writer.delete(stored.record.image_id)).first
    finally:
        stop.set()
        await asyncio.gather(tidying, return_exceptions=True)
    assert files(root) == set()


async def test_the_bound_counts_what_other_pods_have_stored_from_the_next_inventory(
    open_store: OpenStore, clock: HeldClock
) -> None:
    one, other = await open_store(max_bytes=2 * len(PNG)), await open_store()
    with one.reserve(2 * len(PNG)):
        pass
    image_id = (await put(other, clock.now())).record.image_id
    await one.take_inventory(clock.now())
    with pytest.raises(StorageFull), one.reserve(len(PNG) + 1):
        pass
    await other.delete(image_id)
    await one.take_inventory(clock.now())
    with one.reserve(2 * len(PNG)):
        pass


# --- records that something has spoilt --------------------------------------------------------------------------------

NOT_A_RECORD: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "empty": lambda _: b"",
    "cut": lambda record: json.dumps(record).encode()[:100],
    "binary": lambda _: bytes(range(256)),
    "a list": lambda _: b"[]",
    "nested without end": lambda _: b"[" * 100_000,
    "of tomorrow": lambda record: json.dumps(record | {"schema_version": 2}).encode(),
    "without a zone": lambda record: json.dumps(record | {"expires_at": "2026-11-25T12:30:00"}).encode(),
    "another medium": lambda record: json.dumps(record | {"media_type": "text/html"}).encode(),
    "without a size": lambda record: json.dumps(record | {"size_bytes": None}).encode(),
}


@pytest.mark.parametrize("spoilt", NOT_A_RECORD)
async def test_a_spoilt_record_hides_its_own_image_and_no_other(
    spoilt: str, root: Path, store: FileStorage, clock: HeldClock
) -> None:
    ids = [(await put(store, clock.now() - age * timedelta(minutes=1))).record.image_id for age in range(3)]
    path = root / keys.record_key(ids[1])
    path.write_bytes(NOT_A_RECORD[spoilt](json.loads(path.read_bytes())))
    clock.advance(timedelta(seconds=5))
    assert await listed(store) == [ids[0], ids[2]]
    with pytest.raises(ImageNotFound):
        await store.get(ids[1])
    clock.advance(2 * DAY)
    report = await Sweeper(store, store.jobs, interval=1, clock=clock, observer=to_nobody).sweep()
    assert (report.deleted, report.errors, files(root)) == (3, 0, set())


async def test_a_directory_where_a_record_belongs_does_not_keep_the_others_from_the_list(
    root: Path, store: FileStorage, clock: HeldClock
) -> None:
    ids = [(await put(store, clock.now() - age * timedelta(minutes=1))).record.image_id for age in range(3)]
    path = root / keys.record_key(ids[1])
    path.unlink()
    path.mkdir()
    assert await listed(store) == [ids[0], ids[2]]


async def test_foreign_files_among_the_records_are_not_listed(root: Path, store: FileStorage, clock: HeldClock) -> None:
    image_id = (await put(store, clock.now())).record.image_id
    owner = (root / keys.record_key(image_id)).parent.parent
    for name in ("README", ".nfs0000000000000001", "0" * 43 + ".json.bak", f"{keys.record_name(image_id)}.json~"):
        (owner / name).write_text("{}")
        ((root / keys.record_key(image_id)).parent / name).write_text("{}")
    (owner / "00000").mkdir()
    (owner / "lost+found").mkdir()
    assert await listed(store) == [image_id]


async def test_a_record_without_its_image_is_not_found_and_an_image_without_its_record_neither(
    root: Path, store: FileStorage, clock: HeldClock
) -> None:
    ids = [(await put(store, clock.now())).record.image_id for _ in range(2)]
    (root / keys.image_key(ids[0], "image/png")).unlink()
    (root / keys.record_key(ids[1])).unlink()
    clock.advance(timedelta(seconds=5))
    for image_id in ids:
        with pytest.raises(ImageNotFound):
            await store.get(image_id)
    assert [(await store.delete(image_id)).first for image_id in ids] == [True, False]


async def test_a_listing_does_not_open_what_it_does_not_show(
    root: Path, open_store: OpenStore, clock: HeldClock
) -> None:
    """A FIFO in the place of a record is told as damaged when it is opened, so one read too many is noticed."""
    facts: list[Event] = []
    store = await open_store(observer=facts.append)
    ids = [(await put(store, clock.now() - age * HOUR)).record.image_id for age in range(6)]
    for image_id in (ids[0], *ids[3:]):
        path = root / keys.record_key(image_id)
        path.unlink()
        os.mkfifo(path)
    page = await store.page(ANONYMOUS, limit=2, cursor=keys.record_name(ids[0]))
    assert [record.image_id for record in page.records] == ids[1:3]
    assert not [fact for fact in facts if isinstance(fact, FileDamaged)]
    await store.page(ANONYMOUS, limit=6)
    await until(lambda: len({fact.key for fact in facts if isinstance(fact, FileDamaged)}) == 4)


# --- a directory that goes away ---------------------------------------------------------------------------------------


def remove(root: Path) -> None:
    shutil.rmtree(root)


def replace_by_a_file(root: Path) -> None:
    shutil.rmtree(root)
    root.write_text("in the way")


@pytest.mark.parametrize("vanish", [remove, replace_by_a_file])
@pytest.mark.parametrize("operation", ["get", "delete", "page", "stage", "put_thumbnail", "inventory", "check"])
async def test_a_vanished_directory_is_an_error_and_not_an_empty_store(
    operation: str, vanish: Callable[[Path], None], root: Path, store: FileStorage, clock: HeldClock
) -> None:
    image_id = (await put(store, clock.now())).record.image_id
    vanish(root)
    clock.advance(timedelta(seconds=5))

    async def stage() -> None:
        async with store.stage(image_id, 1):
            pass

    work: dict[str, Callable[[], Awaitable[Any]]] = {
        "get": lambda: store.get(image_id),
        "delete": lambda: store.delete(image_id),
        "page": lambda: store.page(ANONYMOUS, limit=1),
        "stage": stage,
        "put_thumbnail": lambda: store.put_thumbnail(image_id, b"small"),
        "inventory": lambda: store.take_inventory(clock.now()),
        "check": store.check,
    }
    with pytest.raises(StorageFailure, match="cannot be used at the moment"):
        await work[operation]()
    assert not root.is_dir()


# --- the bound --------------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"width": 64, "height": 64, "result": "link"}
RESERVED = 4 * 64 * 64 + 65536  # what such an image may take
ROOM_FOR_TWO = str(2 * RESERVED + 10_000)


async def test_generations_under_way_cannot_press_past_the_bound(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(STORAGE_MAX_BYTES=ROOM_FOR_TWO)
    release = asyncio.Event()
    kserve.script.extend([succeed_when(release), succeed_when(release)])
    calls = [asyncio.create_task(sidecar.generate(**SMALL)) for _ in range(6)]
    async with asyncio.timeout(20):
        while sum(call.done() for call in calls) < 4:
            await asyncio.wait([call for call in calls if not call.done()], return_when=asyncio.FIRST_COMPLETED)
    assert len(kserve.instances) <= 1
    release.set()
    results = await asyncio.gather(*calls)
    assert sorted(result.is_error for result in results) == [False, False, True, True, True, True]
    assert all("The image store is full" in result.content[0].text for result in results if result.is_error)
    assert len(kserve.instances) == 2


@pytest.mark.parametrize(("asked", "refused"), [(2, False), (3, True)])
async def test_the_images_of_one_call_are_reserved_together(
    asked: int, refused: bool, start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(STORAGE_MAX_BYTES=ROOM_FOR_TWO)
    result = await sidecar.generate(num_images=asked, **SMALL)
    assert (result.is_error, len(kserve.instances)) == (refused, 0 if refused else asked)
    assert len(sidecar.stored()) == 3 * len(kserve.instances)
    assert not (await sidecar.generate(num_images=2, **SMALL)).is_error


async def test_a_refusal_for_want_of_room_is_counted_and_told_once(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(STORAGE_MAX_BYTES="1000")
    result = await sidecar.generate(**SMALL)
    assert result.structured_content["status"] == "failed"
    assert "Delete images that are no longer needed" in result.structured_content["message"]
    assert await sidecar.metric('imagegen_generations_total{model="painter",outcome="rejected"}') == 1
    assert (kserve.instances, sidecar.stored()) == ([], [])


async def fails_at_the_runtime(sidecar: Sidecar, kserve: FakeKServe) -> None:
    kserve.script.append(say(500, {"error": "broken"}))
    assert (await sidecar.generate(num_images=1, **SMALL)).is_error


async def is_refused_by_the_queue(sidecar: Sidecar, kserve: FakeKServe) -> None:
    kserve.script.append(succeed_when(release := asyncio.Event(), picture()))
    slow = asyncio.create_task(sidecar.generate(**SMALL))
    await kserve.seen(len(kserve.instances) + 1)
    refused = await sidecar.generate(**SMALL)
    assert "full" in refused.content[0].text
    assert "store" not in refused.content[0].text
    release.set()
    await slow


async def leaves_while_the_runtime_works(sidecar: Sidecar, kserve: FakeKServe) -> None:
    kserve.script.append(succeed_when(release := asyncio.Event(), picture()))
    leaving = asyncio.create_task(sidecar.generate(**SMALL))
    await kserve.seen(len(kserve.instances) + 1)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    release.set()
    await sidecar.service.drained()


@pytest.mark.parametrize("ending", [fails_at_the_runtime, is_refused_by_the_queue, leaves_while_the_runtime_works])
async def test_room_is_given_back_however_a_generation_ends(
    ending: Callable[[Sidecar, FakeKServe], Awaitable[None]], start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(STORAGE_MAX_BYTES=ROOM_FOR_TWO, QUEUE_LIMIT="0")
    for _ in range(3):
        await ending(sidecar, kserve)
        await metric_becomes(sidecar, 'imagegen_in_flight{model="painter"}', 0)
    await sidecar.service.drained()
    last = await sidecar.generate(num_images=1, **SMALL)
    assert not last.is_error, last.content[0].text


async def test_an_image_larger_than_expected_does_not_break_the_bound(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(STORAGE_MAX_BYTES=ROOM_FOR_TWO)
    kserve.script.append(succeed(picture(512, 512, noise=True)))
    result = await sidecar.generate(**SMALL)
    assert result.is_error
    assert "The image store is full" in result.content[0].text
    assert sidecar.stored() == []


async def test_thumbnails_are_shown_but_not_stored_past_the_bound(open_store: OpenStore, clock: HeldClock) -> None:
    store = await open_store(max_bytes=len(PNG) + 100)
    image_id = (await put(store, clock.now())).record.image_id
    with pytest.raises(StorageFull):
        await store.put_thumbnail(image_id, b"x" * 101)
    assert await store.thumbnail(image_id) is None
    await store.put_thumbnail(image_id, b"x" * 100)


async def test_a_sweep_makes_room(open_store: OpenStore, clock: HeldClock) -> None:
    store = await open_store(max_bytes=3 * len(PNG))
    for _ in range(3):
        await put(store, clock.now(), life=HOUR)
    with pytest.raises(StorageFull), store.reserve(1):
        pass
    clock.advance(HOUR)
    await Sweeper(store, store.jobs, interval=1, clock=clock, observer=to_nobody).sweep()
    with store.reserve(3 * len(PNG)):
        pass


async def test_a_second_thumbnail_takes_no_room_of_its_own(open_store: OpenStore, clock: HeldClock) -> None:
    store = await open_store(max_bytes=len(PNG) + 1000)
    image_id = (await put(store, clock.now())).record.image_id
    for _ in range(5):
        await store.put_thumbnail(image_id, b"x" * 400)
    with store.reserve(600), pytest.raises(StorageFull), store.reserve(1):
        pass
    assert await store.thumbnail(image_id) == b"x" * 400


async def test_a_vanished_directory_does_not_make_a_full_store_look_empty(
    root: Path, tmp_path: Path, open_store: OpenStore, clock: HeldClock
) -> None:
    store = await open_store(max_bytes=len(PNG))
    await put(store, clock.now())
    root.rename(tmp_path / "away")
    with pytest.raises(StorageFailure):
        await store.take_inventory(clock.now())
    (tmp_path / "away").rename(root)
    with pytest.raises(StorageFull), store.reserve(1):
        pass
