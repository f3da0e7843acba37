"""What another pod may put onto a shared volume in the place of the store's own files, and records that lie."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from sidecar.domain import ANONYMOUS, Deletion, ImageId, ImageRecord
from sidecar.errors import ImageDamaged, ImageNotFound, StorageFailure
from sidecar.events import Event, FileDamaged
from sidecar.storages import keys
from sidecar.storages.disk import DamagedFile, Tree
from sidecar.storages.file import FileStorage
from sidecar.storages.records import MAX_RECORD_BYTES, encode_record
from tests.conftest import Sidecar
from tests.job_store_contract import job
from tests.storage_contract import DAY, PNG, HeldClock, bytes_of, described, listed, put

Plant = Callable[[Path], None]


def a_fifo(place: Path) -> None:
    os.mkfifo(place)


def an_endless_device(place: Path) -> None:
    place.symlink_to("/dev/zero")


def a_socket(place: Path) -> None:
    with contextlib.chdir(place.parent), socket.socket(socket.AF_UNIX) as bound:  # the path of a socket is short
        bound.bind(place.name)


def a_symlink(place: Path) -> None:
    """To the very file that belongs there, so that nothing but the symlink is wrong."""
    place.symlink_to(place.with_name("elsewhere"))


def a_directory(place: Path) -> None:
    place.mkdir()


EVERYTHING = [a_fifo, an_endless_device, a_socket, a_symlink, a_directory]
planted = pytest.mark.parametrize("plant", EVERYTHING)


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock()


@pytest.fixture
def facts() -> list[Event]:
    return []


@pytest.fixture
async def store(tmp_path: Path, clock: HeldClock, facts: list[Event]) -> AsyncIterator[FileStorage]:
    storage = FileStorage(tmp_path / "images-here", max_bytes=None, clock=clock, observer=facts.append)
    async with storage.opened() as opened:
        yield opened


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "images-here"


def put_in_place(plant: Plant, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        place.rename(place.with_name("elsewhere"))
    plant(place)


async def told(facts: list[Event], key: str) -> None:
    """Wait until the file was told as damaged."""
    async with asyncio.timeout(30):
        while key not in {fact.key for fact in facts if isinstance(fact, FileDamaged)}:
            await asyncio.sleep(0.005)


# --- the tree itself --------------------------------------------------------------------------------------------------


@planted
def test_only_regular_files_are_read(plant: Plant, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"secret")
    plant(tmp_path / "file")
    with pytest.raises(DamagedFile, match="not a regular file"):
        Tree(tmp_path).read("file", 100)


def test_no_more_is_read_than_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 101)
    assert Tree(tmp_path).read("file", 101) == b"x" * 101
    with pytest.raises(DamagedFile, match="larger than 100 bytes"):
        Tree(tmp_path).read("file", 100)


@pytest.mark.parametrize("key", ["link/file", "../file", "a/../file", "/file", "a//file", "a/"])
def test_no_key_leads_out_of_the_root(key: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    for place in (tmp_path / "file", root / "file", root / "a" / "file"):
        place.write_bytes(b"secret")
    (root / "link").symlink_to(tmp_path)
    tree = Tree(root)
    for step in (tree.open, tree.create, tree.unlink, tree.touch, lambda key: tree.read(key, 10)):
        with pytest.raises((NotADirectoryError, ValueError)):
            step(key)
    with pytest.raises((NotADirectoryError, ValueError)):
        tree.rename("a/file", key)
    assert all(place.read_bytes() == b"secret" for place in (tmp_path / "file", root / "file", root / "a" / "file"))


def test_the_root_is_named_by_a_setting_and_may_be_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "root").symlink_to("volume")
    (tmp_path / "volume" / "file").write_bytes(b"ours")
    assert Tree(tmp_path / "root").read("file", 10) == b"ours"


def test_no_step_leaves_a_file_open(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"x" * 10)
    a_fifo(tmp_path / "a" / "fifo")
    tree, before = Tree(tmp_path), len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for key in ("a/file", "a/fifo", "a/none", "none/none", "a", "a/file/x"):
        for step in (tree.open, tree.status, tree.sync, tree.names, lambda key: list(tree.sizes(key))):
            try:
                found = step(key)
            except (OSError, DamagedFile):
                continue
            if type(found) is int:
                os.close(found)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


# --- images -----------------------------------------------------------------------------------------------------------


@planted
async def test_something_in_the_place_of_a_record_is_told_and_holds_up_nobody(
    plant: Plant, store: FileStorage, root: Path, clock: HeldClock, facts: list[Event]
) -> None:
    other, image_id = [(await put(store, clock.now())).record.image_id for _ in range(2)]
    put_in_place(plant, root / keys.record_key(image_id))
    clock.advance(timedelta(seconds=5))
    for _ in range(20):
        with pytest.raises(ImageDamaged):
            await store.get(image_id)
    assert await listed(store) == [other]
    await told(facts, keys.record_key(image_id))
    assert await bytes_of(store, await store.get(other)) == PNG


@planted
async def test_something_in_the_place_of_a_thumbnail_gives_way_to_one(
    plant: Plant, store: FileStorage, root: Path, clock: HeldClock
) -> None:
    image_id = (await put(store, clock.now())).record.image_id
    place = root / keys.thumbnail_key(image_id)
    place.with_name("elsewhere").write_bytes(b"secret")
    put_in_place(plant, place)
    assert await store.thumbnail(image_id) is None
    if plant is a_directory:
        place.rmdir()
    await store.put_thumbnail(image_id, b"small")
    assert await store.thumbnail(image_id) == b"small"
    assert place.with_name("elsewhere").read_bytes() == b"secret"


@pytest.mark.parametrize("plant", [a_fifo, an_endless_device, a_socket, a_symlink])
async def test_deleting_removes_what_was_planted_and_not_what_it_leads_to(
    plant: Plant, store: FileStorage, root: Path, clock: HeldClock
) -> None:
    image_id = (await put(store, clock.now())).record.image_id
    image, record = root / keys.image_key(image_id, "image/png"), root / keys.record_key(image_id)
    for place in (image, record):
        put_in_place(plant, place)
    assert (await store.delete(image_id)).first
    assert not os.path.lexists(image)
    assert not os.path.lexists(record)
    assert image.with_name("elsewhere").read_bytes() == PNG


@pytest.mark.parametrize("plant", [a_fifo, a_symlink, an_endless_device])
@pytest.mark.parametrize("tree", ["images", "records", "expiry"])
async def test_what_is_planted_in_the_place_of_a_shard_costs_no_image(
    tree: str, plant: Plant, store: FileStorage, root: Path, clock: HeldClock, facts: list[Event], tmp_path: Path
) -> None:
    image_id = ImageId.new(clock.now())
    record = described(image_id)
    assert record.expires is not None
    key = {
        "images": keys.image_key(image_id, "image/png"),
        "records": keys.record_key(image_id),
        "expiry": keys.expiry_key(record.expires, image_id),
    }[tree]
    shard = (root / key).parent
    shard.parent.mkdir(parents=True)
    elsewhere = shard.with_name("elsewhere")
    elsewhere.mkdir()
    plant(shard)
    await put(store, clock.now(), image_id=image_id)
    assert await bytes_of(store, await store.get(image_id)) == PNG
    assert await listed(store) == [image_id]
    assert list(elsewhere.iterdir()) == []
    await told(facts, key.rpartition("/")[0])


@pytest.mark.parametrize("name", ["images", "records", "expiry", "staging", "jobs"])
async def test_a_symlink_at_the_top_may_be_an_operators_and_is_refused_by_name(
    name: str, root: Path, clock: HeldClock, tmp_path: Path
) -> None:
    (tmp_path / "large disk").mkdir()
    root.mkdir()
    (root / name).symlink_to(tmp_path / "large disk")
    async with FileStorage(root, max_bytes=None, clock=clock, observer=lambda event: None).opened() as store:
        with pytest.raises(StorageFailure, match=f"{name} is not a directory"):
            await {"staging": store.check, "jobs": lambda: store.jobs.offer(job())}.get(
                name, lambda: put(store, clock.now())
            )()
        if name in ("records", "images"):
            with pytest.raises(StorageFailure):
                await store.take_inventory(clock.now())
    assert ((root / name).is_symlink(), list((tmp_path / "large disk").iterdir())) == (True, [])


def lie(root: Path, record: ImageRecord, **changes: Any) -> None:
    document = json.loads(encode_record(record))
    for key, value in changes.items():
        (document["request"] if key in document["request"] else document)[key] = value
    (root / keys.record_key(record.image_id)).write_text(json.dumps(document))


OTHER = ImageId("1m86ptpg05wc3mkk4" + 26 * "a")
LIES: list[dict[str, Any]] = [
    {"size_bytes": -5},
    {"size_bytes": 0},
    {"size_bytes": 10**12},
    {"size_bytes": 10**400},
    {"size_bytes": len(PNG) - 1},
    {"created_at": "0001-01-01T00:00:00+23:59"},
    {"created_at": "9999-12-31T23:59:59-23:59"},
    {"created_at": "0001-01-01T00:00:00+00:00"},
    {"expires_at": "0001-01-01T00:00:00+00:00"},
    {"expires_at": "9999-12-31T23:59:59-23:59"},
    {"expires_at": "2030-01-01T00:00:00"},
    {"image_id": OTHER.text},
    {"media_type": "text/html"},
    {"sha256": "a\r\nx: y"},
    {"width": -1},
    {"height": 10**30},
    {"queue_seconds": float("nan")},
    {"runtime_seconds": float("inf")},
    {"runtime_seconds": -1},
    {"prompt": "\ud800"},
    {"owner": "\udfff"},
    {"guidance_scale": float("nan")},
    {"num_inference_steps": -3},
    {"seed": 10**30},
    {"model": "x" * MAX_RECORD_BYTES},
]


def named(changes: dict[str, Any]) -> str:
    return ", ".join(f"{key}={str(value)[:12]!a}" for key, value in changes.items())


@pytest.mark.parametrize("changes", LIES, ids=named)
async def test_a_record_that_lies_is_damaged_and_neither_an_error_nor_expired(
    changes: dict[str, Any], store: FileStorage, root: Path, clock: HeldClock, facts: list[Event]
) -> None:
    other, record = [(await put(store, clock.now())).record for _ in range(2)]
    lie(root, record, **changes)
    clock.advance(timedelta(seconds=5))
    with pytest.raises(ImageDamaged, match="damaged"):
        await store.get(record.image_id)
    assert other.image_id in await listed(store)
    assert len([fact for fact in facts if isinstance(fact, FileDamaged)]) >= 1
    assert await store.delete(record.image_id) == Deletion(first=True, freed_bytes=len(PNG))
    assert await listed(store) == [other.image_id]


async def test_an_expired_image_is_not_damaged(store: FileStorage, clock: HeldClock, facts: list[Event]) -> None:
    image_id = (await put(store, clock.now())).record.image_id
    clock.advance(2 * DAY)
    with pytest.raises(ImageNotFound) as error:
        await store.get(image_id)
    assert type(error.value) is ImageNotFound
    assert not [fact for fact in facts if isinstance(fact, FileDamaged)]


async def test_a_list_shows_no_other_owners_record(store: FileStorage, root: Path, clock: HeldClock) -> None:
    """Tags are short enough for two owners to be found that share one."""
    mine, theirs = [(await put(store, clock.now())).record for _ in range(2)]
    lie(root, theirs, owner="someone-else")
    assert await listed(store) == [mine.image_id]
    assert (await store.page("someone-else", limit=5)).records == ()  # by another tag
    assert [record.owner for record in (await store.page(ANONYMOUS, limit=5)).records] == [ANONYMOUS]


# --- as callers see it ------------------------------------------------------------------------------------------------


async def test_nine_fifos_stop_no_generation(sidecar: Sidecar) -> None:
    images = [await sidecar.made() for _ in range(9)]
    for image in images:
        os.mkfifo(sidecar.store / keys.thumbnail_key(ImageId(image["image_id"])))
    answers = await asyncio.gather(*(sidecar.get(image["thumbnail_url"]) for image in images))
    assert {response.status for response, _ in answers} == {200}
    await sidecar.made()


async def test_an_image_whose_bytes_were_changed_is_not_shown_as_a_preview(sidecar: Sidecar) -> None:
    image = await sidecar.made()
    place = sidecar.store / keys.image_key(ImageId(image["image_id"]), "image/png")
    data = bytearray(place.read_bytes())
    data[-20] ^= 1
    place.write_bytes(data)
    response, body = await sidecar.get(image["thumbnail_url"])
    assert (response.status, json.loads(body)["reason"]) == (404, "image_damaged")


@pytest.mark.parametrize(
    "changes", [{"size_bytes": -5}, {"created_at": "0001-01-01T00:00:00+23:59"}, {"prompt": "\ud800"}]
)
async def test_a_record_that_lies_is_a_404_everywhere_and_the_lists_go_on(
    changes: dict[str, Any], sidecar: Sidecar
) -> None:
    image, other = await sidecar.made(), await sidecar.made()
    place = sidecar.store / keys.record_key(ImageId(image["image_id"]))
    document = json.loads(place.read_bytes())
    for key, value in changes.items():
        (document["request"] if key in document["request"] else document)[key] = value
    place.write_text(json.dumps(document))
    async with asyncio.timeout(30):
        while (await sidecar.get(image["url"]))[0].status == 200:  # believed for a second
            await asyncio.sleep(0.05)
    for path in (image["url"], image["thumbnail_url"], f"/gallery/{image['image_id']}"):
        assert (await sidecar.get(path))[0].status == 404
    assert (await sidecar.get("/"))[0].status == 200
    async with sidecar.client() as client:
        shown = await client.call_tool("list_generated_images", {})
        told = await client.call_tool("get_image_metadata", {"image_id": image["image_id"]})
    assert [found["image_id"] for found in shown.structured_content["images"]] == [other["image_id"]]
    assert told.is_error
    assert "damaged" in str(told.content[0])
