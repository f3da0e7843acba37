"""Images whose process was killed, or stalled, between the last byte and the end of the commit."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from sidecar.domain import ImageId
from sidecar.errors import ImageNotFound
from sidecar.events import Event, ImageRecovered
from sidecar.storages.file import FileStorage
from sidecar.storages.records import encode_record
from tests.storage_contract import PNG, HeldClock, bytes_of, described, listed, put

HOUR = timedelta(hours=1)

KILLED = """
import asyncio, os, signal, sys
from datetime import datetime, UTC
from pathlib import Path
from sidecar.domain import ImageId
from sidecar.storages.file import FileStorage
from tests.storage_contract import PNG, HeldClock, described, put

calls = 0

def counted(call):
    def wrapper(*arguments, **named):
        global calls
        calls += 1
        if calls == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **named)
    return wrapper

async def main():
    clock = HeldClock()
    root = Path(sys.argv[1])
    async with FileStorage(root, max_bytes=None, clock=clock, observer=lambda event: None).opened() as store:
        await put(store, clock.now())
        os.fsync, os.rename = counted(os.fsync), counted(os.rename)
        image_id = ImageId.new(clock.now())
        print(image_id, flush=True)
        if sys.argv[3] == "commit":
            await put(store, clock.now(), image_id=image_id)
            return
        async with store.stage(image_id, len(PNG)) as staged:  # as for a bucket that does not answer
            await staged.write(PNG)
            await store.finish(staged.path, described(image_id))
            os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def killed(root: Path, call: int, what: str = "commit") -> tuple[int, ImageId]:
    """A process that is killed at one of its calls that wait for the disk: its exit status, and its last image."""
    child = subprocess.run(
        [sys.executable, "-c", KILLED, str(root), str(call), what], capture_output=True, text=True, check=False
    )
    assert child.stdout, child.stderr
    return child.returncode, ImageId(child.stdout.strip())


def a_store(root: Path, clock: HeldClock, facts: list[Event] | None = None) -> FileStorage:
    return FileStorage(root, max_bytes=None, clock=clock, observer=(facts if facts is not None else []).append)


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock()


@pytest.fixture
async def store(tmp_path: Path, clock: HeldClock) -> AsyncIterator[FileStorage]:
    async with a_store(tmp_path, clock).opened() as opened:
        yield opened


def staged(root: Path) -> list[str]:
    return [path.name for path in (root / "staging").iterdir()]


async def test_wherever_a_commit_is_killed_the_next_process_has_the_image(tmp_path: Path, clock: HeldClock) -> None:
    """At its four syncs and its two renames, before each of which the disk may stall."""
    for call in range(1, 20):
        root = tmp_path / str(call)
        status, image_id = await asyncio.to_thread(killed, root, call)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        facts: list[Event] = []
        async with a_store(root, clock, facts).opened() as store:
            assert await bytes_of(store, await store.get(image_id)) == PNG
            assert (image_id in await listed(store), staged(root)) == (True, [])
            assert (await store.take_inventory(clock.now())).images == 2
            assert [fact.record.image_id for fact in facts if isinstance(fact, ImageRecovered)] == (
                [image_id] if call < 6 else []  # the sixth is the last sync, after the record is in its place
            )
    assert call == 7


async def test_an_image_that_was_on_its_way_to_a_bucket_waits_in_the_spool(tmp_path: Path, clock: HeldClock) -> None:
    status, image_id = await asyncio.to_thread(killed, tmp_path, 99, "finish")
    assert status == -signal.SIGKILL
    async with a_store(tmp_path, clock).opened() as spool:
        assert image_id in [record.image_id for record in await spool.everything()]
        assert staged(tmp_path) == []


async def test_an_image_whose_commit_outlasts_its_caller_is_stored(
    tmp_path: Path, store: FileStorage, clock: HeldClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call's time is up, or the pod is told to stop, while the disk stalls: the GPU's work is not thrown away."""
    sync, stalled, go_on = os.fsync, threading.Event(), threading.Event()

    def stalling_sync(descriptor: int) -> None:
        if not stalled.is_set():
            stalled.set()
            go_on.wait(30)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", stalling_sync)
    image_id = ImageId.new(clock.now())
    writing = asyncio.create_task(put(store, clock.now(), image_id=image_id))
    await asyncio.to_thread(stalled.wait, 30)
    writing.cancel()
    await asyncio.wait({writing}, timeout=0.1)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await writing
    async with asyncio.timeout(20):
        while await listed(store) != [image_id]:
            await asyncio.sleep(0.01)
    assert await bytes_of(store, await store.get(image_id)) == PNG
    assert staged(tmp_path) == []


async def test_a_pod_that_finds_the_commit_of_a_living_one_does_it_no_harm(
    tmp_path: Path, store: FileStorage, clock: HeldClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(store, clock.now())
    sync, stalled, go_on = os.fsync, threading.Event(), threading.Event()

    def stalling_sync(descriptor: int) -> None:  # a disk that answers late, for the first who waits for it
        if not stalled.is_set():
            stalled.set()
            go_on.wait(30)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", stalling_sync)
    image_id = ImageId.new(clock.now())
    writing = asyncio.create_task(put(store, clock.now(), image_id=image_id))
    await asyncio.to_thread(stalled.wait, 30)
    async with a_store(tmp_path, clock).opened() as other:
        assert await bytes_of(other, await other.get(image_id)) == PNG
        go_on.set()
        await writing
        assert await bytes_of(store, await store.get(image_id)) == PNG
        assert staged(tmp_path) == []
        assert (await other.delete(image_id)).first


def leave(root: Path, clock: HeldClock, *, image: bytes = PNG, record: bytes | None = None, age: float = 0) -> ImageId:
    """What a killed process of another pod has left under staging."""
    image_id = ImageId.new(clock.now())
    (root / "staging").mkdir(exist_ok=True)
    stem = root / "staging" / f"0123456789ab-{image_id}"
    for suffix, data in (
        (".part", image),
        (".record", encode_record(described(image_id)) if record is None else record),
    ):
        path = stem.with_suffix(suffix)
        path.write_bytes(data)
        os.utime(path, (clock.now().timestamp() - age,) * 2)
    return image_id


async def test_a_commit_that_stands_still_in_another_pod_is_finished_by_a_clean_up(
    tmp_path: Path, store: FileStorage, clock: HeldClock
) -> None:
    young, old = leave(tmp_path, clock, age=30), leave(tmp_path, clock, age=90)
    assert await store.delete_leftovers(clock.now()) == 0
    assert await listed(store) == [old]
    with pytest.raises(ImageNotFound):
        await store.get(young)


@pytest.mark.parametrize(
    ("image", "record"),
    [(PNG[:-1], None), (PNG[:-1] + b"?", None), (PNG, b"{"), (PNG, b""), (PNG, b"x" * 100_000)],
    ids=["cut off", "changed", "half a record", "no record", "a large record"],
)
async def test_what_is_not_whole_is_left_to_the_sweep(
    image: bytes, record: bytes | None, tmp_path: Path, clock: HeldClock
) -> None:
    leave(tmp_path, clock, image=image, record=record)
    async with a_store(tmp_path, clock).opened() as store:
        assert (await listed(store), len(staged(tmp_path))) == ([], 2)
        clock.advance(2 * HOUR)
        assert await store.delete_leftovers(clock.now()) == 2
    assert staged(tmp_path) == []


async def test_a_record_of_another_image_is_not_believed(tmp_path: Path, clock: HeldClock) -> None:
    other = described(ImageId.new(clock.now()))
    leave(tmp_path, clock, record=encode_record(other))
    async with a_store(tmp_path, clock).opened() as store:
        assert await listed(store) == []


async def test_a_process_never_sweeps_its_own_staged_files(
    tmp_path: Path, store: FileStorage, clock: HeldClock
) -> None:
    """Whatever the clock says: a wall clock that is hours ahead makes every file look old."""
    async with store.stage(image_id := ImageId.new(clock.now()), len(PNG)) as under_way:
        await under_way.write(PNG)
        assert await store.delete_leftovers(clock.now() + 20 * HOUR) == 0
        assert [name for name in staged(tmp_path) if image_id.text in name]
