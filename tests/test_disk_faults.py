"""Disks that fill, turn read-only or vanish, on small file systems of the test's own."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from sidecar.core.readiness import Check, StorageWatch
from sidecar.core.sweeper import Sweeper
from sidecar.domain import ImageId
from sidecar.errors import ImageNotFound, StorageFailure, StorageFull
from sidecar.storages.file import FileStorage
from tests.conftest import Sidecar, StartSidecar, metric_becomes
from tests.fake_kserve import FakeKServe, succeed
from tests.pictures import picture
from tests.storage_contract import PNG, HeldClock, bytes_of, listed, put

Mount = Callable[[str], Path]


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Mount]:
    """Mount small file systems; needs root."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        where = tmp_path / f"disk{len(mounted)}"
        where.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(where)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode and "CI" not in os.environ:
            pytest.skip(f"cannot mount a tmpfs (needs root): {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        mounted.append(where)
        return where

    yield mount
    for where in mounted:
        subprocess.run(["umount", "--lazy", str(where)], check=True)


async def storage_becomes(sidecar: Sidecar, status: str) -> str:
    """Wait until /readyz says this of the store; its detail."""
    async with asyncio.timeout(20):
        while True:
            response, _ = await sidecar.get("/readyz")
            check = (await response.json())["checks"]["storage"]
            if check["status"] == status:
                assert response.status == 200
                return str(check["detail"])
            await asyncio.sleep(0.05)


def parts(store: Path) -> list[str]:
    return [path.name for path in (store / "staging").iterdir() if "probe" not in path.name]


async def fails(sidecar: Sidecar, told: str) -> None:
    before = sidecar.stored()
    result = await sidecar.generate(result="link")
    assert result.is_error
    assert told in result.content[0].text
    assert sidecar.stored() == before


async def test_a_disk_without_room_refuses_before_the_runtime_works_and_recovers(
    tmpfs: Mount, start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    disk = tmpfs("size=4m")
    sidecar = await start_sidecar(STORAGE_PATH=str(disk))
    image = await sidecar.made()
    filler = disk / "filler"
    with filler.open("wb") as file, pytest.raises(OSError, match="space"):
        while True:
            file.write(b"x" * 65536)
            file.flush()
    await fails(sidecar, "disk is full")
    assert len(kserve.instances) == 1
    assert "full" in await storage_becomes(sidecar, "degraded")
    assert (await sidecar.get(image["url"]))[0].status == 200
    assert (await sidecar.get(image["thumbnail_url"]))[0].status == 200
    filler.unlink()
    await storage_becomes(sidecar, "ok")
    await sidecar.made()


async def test_a_disk_that_fills_while_the_runtime_works_leaves_no_half_image(
    tmpfs: Mount, start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    disk = tmpfs("size=4m")
    sidecar = await start_sidecar(STORAGE_PATH=str(disk))
    image = await sidecar.made()

    async def fill_then_answer(request: web.Request, instance: dict[str, Any]) -> web.StreamResponse:
        (disk / "filler").write_bytes(b"x" * (3 * 2**20))
        return await succeed(picture(900, 900, noise=True))(request, instance)

    kserve.script.append(fill_then_answer)
    (disk / "filler").write_bytes(b"")
    await fails(sidecar, "disk is full")
    assert parts(disk) == []
    assert (await sidecar.get(image["url"]))[0].status == 200


async def test_a_disk_without_inodes_refuses(tmpfs: Mount, start_sidecar: StartSidecar, kserve: FakeKServe) -> None:
    disk = tmpfs("size=4m,nr_inodes=30")
    sidecar = await start_sidecar(STORAGE_PATH=str(disk))
    await storage_becomes(sidecar, "ok")
    with pytest.raises(OSError, match="space"):
        for number in range(100):
            (disk / f"filler{number}").touch()
    await fails(sidecar, "disk is full")
    assert kserve.instances == []


async def test_a_volume_that_turns_read_only_is_told_and_still_serves(
    tmpfs: Mount, start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    disk = tmpfs("size=4m")
    sidecar = await start_sidecar(STORAGE_PATH=str(disk))
    image = await sidecar.made()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    await fails(sidecar, "Read-only file system")
    assert "Read-only" in await storage_becomes(sidecar, "degraded")
    assert (await sidecar.get(image["url"]))[0].status == 200
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    await storage_becomes(sidecar, "ok")
    await sidecar.made()


async def test_a_directory_that_vanishes_is_told_and_may_come_back(
    sidecar: Sidecar, kserve: FakeKServe, tmp_path: Path
) -> None:
    image = await sidecar.made()
    sidecar.store.rename(tmp_path / "away")
    await fails(sidecar, "No such file or directory")
    assert "No such file" in await storage_becomes(sidecar, "degraded")
    assert len(kserve.instances) == 1
    (tmp_path / "away").rename(sidecar.store)
    await storage_becomes(sidecar, "ok")
    assert (await sidecar.get(image["url"]))[0].status == 200
    await sidecar.made()


async def test_a_directory_that_somebody_emptied_is_used_again(sidecar: Sidecar) -> None:
    image = await sidecar.made()
    for entry in sidecar.store.iterdir():
        shutil.rmtree(entry)
    async with asyncio.timeout(10):
        while (await sidecar.get(image["url"]))[0].status != 404:
            await asyncio.sleep(0.05)
    await storage_becomes(sidecar, "ok")
    async with asyncio.timeout(10):
        while (anew := await sidecar.generate(result="link")).is_error:  # until the next look has made staging/ anew
            await asyncio.sleep(0.1)
    assert (await sidecar.get(anew.structured_content["images"][0]["url"]))[0].status == 200


async def test_a_store_that_is_no_directory_keeps_the_server_up_and_unready(
    start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    sidecar = await start_sidecar(STORAGE_PATH=str(tmp_path / "file"))
    async with asyncio.timeout(10):
        while True:
            response, _ = await sidecar.get("/startupz")
            if (detail := (await response.json())["checks"]["storage"]["detail"]) != "not yet tried":
                break
            await asyncio.sleep(0.02)
    assert (response.status, detail) == (
        503,
        "The image store cannot be used at the moment (File exists).",
    )
    assert (await sidecar.generate()).is_error
    assert (await sidecar.get("/livez"))[0].status == 200


async def test_a_missing_directory_is_made(start_sidecar: StartSidecar, tmp_path: Path) -> None:
    sidecar = await start_sidecar(STORAGE_PATH=str(tmp_path / "a" / "b" / "c"))
    assert (await sidecar.get((await sidecar.made())["url"]))[0].status == 200


# --- at the store itself, where a test can choose the very step that fails --------------------------------------------

HOUR = timedelta(hours=1)
FULL = "The image store's disk is full. Delete images that are no longer needed."


def file_store(root: Path, clock: HeldClock) -> FileStorage:
    return FileStorage(root, max_bytes=None, clock=clock, observer=lambda event: None)


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and "filler" not in path.parts}


def use_up_inodes(disk: Path, leaving: int = 0) -> list[Path]:
    """Make empty files until no more can be made, then take some away again."""
    filler = disk / "filler"
    filler.mkdir(exist_ok=True)
    made: list[Path] = []
    with pytest.raises(OSError, match="space"):
        while True:
            path = filler / str(len(made))
            path.touch()
            made.append(path)
    for _ in range(leaving):
        made.pop().unlink()
    return made


@pytest.mark.parametrize("inodes_left", range(8))
async def test_a_commit_that_finds_no_room_for_one_of_its_files_leaves_none(inodes_left: int, tmpfs: Mount) -> None:
    """An image needs a staged file, its shards, an expiry entry and a record: whichever is one too many."""
    disk, clock = tmpfs("size=4m,nr_inodes=60"), HeldClock()
    async with file_store(disk, clock).opened() as store:
        kept = (await put(store, clock.now())).record.image_id
        before = files(disk)
        made = use_up_inodes(disk, inodes_left)
        image_id = ImageId.new(clock.now() + 5 * HOUR)
        try:
            await put(store, clock.now() + 5 * HOUR, image_id=image_id)
        except StorageFull as error:
            assert error.message == FULL
            assert files(disk) == before
            with pytest.raises(ImageNotFound):
                await store.get(image_id)
        else:
            assert inodes_left >= 6
        clock.advance(timedelta(seconds=5))
        assert await bytes_of(store, await store.get(kept)) == PNG
        for path in made:
            path.unlink()
        await put(store, clock.now())


@pytest.mark.parametrize("tree", ["images", "records"])
async def test_a_commit_whose_directory_cannot_be_made_durable_leaves_nothing(
    tree: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, clock, sync = tmp_path / "images-here", HeldClock(), os.fsync

    def no_sync_of_the_tree(descriptor: int) -> None:  # which no file system can be brought to
        where = Path(f"/proc/self/fd/{descriptor}").readlink()
        if where.is_dir() and (root / tree) in where.parents:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    async with file_store(root, clock).opened() as store:
        kept = (await put(store, clock.now())).record.image_id
        before = files(root)
        monkeypatch.setattr(os, "fsync", no_sync_of_the_tree)
        image_id = ImageId.new(clock.now())
        with pytest.raises(StorageFailure, match="Input/output error"):
            await put(store, clock.now(), image_id=image_id)
        assert (files(root), await listed(store)) == (before, [kept])
        with pytest.raises(ImageNotFound):
            await store.get(image_id)


async def test_bytes_that_no_longer_fit_end_the_write_and_leave_nothing(tmpfs: Mount) -> None:
    disk, clock = tmpfs("size=1m"), HeldClock()
    async with file_store(disk, clock).opened() as store:
        with pytest.raises(StorageFull):
            async with store.stage(ImageId.new(clock.now()), 1000) as staged:
                for _ in range(100):
                    await staged.write(b"x" * 65536)
        assert files(disk) == set()
        await put(store, clock.now())


async def test_a_full_disk_is_freed_by_deleting_and_by_sweeping(tmpfs: Mount) -> None:
    disk, clock = tmpfs("size=1m"), HeldClock()
    async with file_store(disk, clock).opened() as store:
        large = b"x" * 300_000
        ids = [(await put(store, clock.now(), data=large, life=HOUR)).record.image_id for _ in range(2)]
        (disk / "filler").mkdir()
        with pytest.raises(OSError, match="space"), (disk / "filler" / "0").open("wb", buffering=0) as file:
            while file.write(b"x" * 4096) == 4096:
                pass
            file.write(b"x")
        with pytest.raises(StorageFull, match="disk is full"):
            await put(store, clock.now(), data=large)
        with pytest.raises(StorageFailure):
            await store.put_thumbnail(ids[0], b"x" * 10_000)
        assert (await store.delete(ids[0])).freed_bytes == len(large)
        ids.append((await put(store, clock.now(), data=large, life=HOUR)).record.image_id)
        clock.advance(HOUR)
        report = await Sweeper(store, store.jobs, interval=1, clock=clock, observer=lambda event: None).sweep()
        assert (report.deleted, report.freed_bytes, report.errors) == (2, 2 * len(large), 0)
        await put(store, clock.now(), data=large)


async def test_a_sweep_of_a_read_only_volume_fails_whole_and_the_next_one_makes_up_for_it(tmpfs: Mount) -> None:
    disk, clock = tmpfs("size=4m"), HeldClock()
    async with file_store(disk, clock).opened() as store:
        sweeper = Sweeper(store, store.jobs, interval=1, clock=clock, observer=lambda event: None)
        for _ in range(3):
            await put(store, clock.now(), life=HOUR)
        before = files(disk)
        clock.advance(HOUR)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        report = await sweeper.sweep()
        assert (report.deleted, report.freed_bytes, report.errors >= 3) == (0, 0, True)
        assert (files(disk), await listed(store)) == (before, [])
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        report = await sweeper.sweep()
        assert (report.deleted, report.freed_bytes, report.errors) == (3, 3 * len(PNG), 0)
        assert files(disk) == set()


async def test_a_delete_on_a_read_only_volume_takes_no_half_of_an_image(tmpfs: Mount) -> None:
    disk, clock = tmpfs("size=4m"), HeldClock()
    async with file_store(disk, clock).opened() as store:
        stored = await put(store, clock.now())
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(StorageFailure, match="Read-only file system"):
            await store.delete(stored.record.image_id)
        clock.advance(timedelta(seconds=5))
        assert await store.get(stored.record.image_id) == stored


async def test_a_directory_that_was_removed_is_told_and_used_again_once_it_is_back(tmp_path: Path) -> None:
    clock = HeldClock()
    async with file_store(tmp_path / "images", clock).opened() as store:
        watch = StorageWatch(store, clock, lambda event: None)
        await put(store, clock.now())
        shutil.rmtree(tmp_path / "images")
        await watch.look()
        detail = "The image store cannot be used at the moment (No such file or directory)."
        assert watch.check == Check("degraded", detail)
        assert not (tmp_path / "images").exists()
        (tmp_path / "images").mkdir()
        await watch.look()
        assert watch.check == Check("ok")
        stored = await put(store, clock.now())
        assert await store.get(stored.record.image_id) == stored


async def test_a_volume_that_is_unmounted_is_told_and_nothing_is_written_in_its_place(tmpfs: Mount) -> None:
    """The bare mount point is the node's or the container's own disk: what lands there is lost."""
    disk, clock = tmpfs("size=4m"), HeldClock()
    async with file_store(disk, clock).opened() as store:
        watch = StorageWatch(store, clock, lambda event: None)
        await put(store, clock.now())
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
        try:
            for _ in range(2):
                with pytest.raises(StorageFailure):
                    await put(store, clock.now())
                await watch.look()
            in_its_place = list(disk.rglob("*"))
        finally:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=True)
        assert (watch.check.status, in_its_place) == ("degraded", [])
        await watch.look()
        assert watch.check == Check("ok")
        await put(store, clock.now())


# --- and as callers and probes see it ---------------------------------------------------------------------------------


async def test_a_sidecar_that_starts_on_a_read_only_volume_serves_what_is_there_but_is_not_started(
    tmpfs: Mount, start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    disk = tmpfs("size=4m")
    before = await start_sidecar(STORAGE_PATH=str(disk))
    image = await before.made()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    sidecar = await start_sidecar(STORAGE_PATH=str(disk))
    for name in ("", "/thumbnail"):
        assert (await sidecar.get(f"/images/{image['image_id']}{name}"))[0].status == 200
    async with asyncio.timeout(10):
        while b"not yet" in (await sidecar.get("/startupz"))[1]:
            await asyncio.sleep(0.01)
    for probe in ("/startupz", "/readyz"):
        response, body = await sidecar.get(probe)
        assert (response.status, b"Read-only file system" in body) == (503, True)
    assert "Read-only file system" in (await sidecar.generate()).content[0].text
    assert len(kserve.instances) == 1


async def test_a_store_that_was_removed_under_a_sidecar_is_told_to_callers_and_readers_and_not_made_anew(
    sidecar: Sidecar, kserve: FakeKServe
) -> None:
    image = await sidecar.made()
    shutil.rmtree(sidecar.store)
    await fails(sidecar, "No such file or directory")
    assert (len(kserve.instances), sidecar.store.exists()) == (1, False)
    response, body = await sidecar.get(image["url"])
    assert response.status in (404, 503)
    assert b"Traceback" not in body
    assert str(sidecar.store).encode() not in body


async def test_a_disk_in_trouble_is_counted_and_the_call_ends_as_failed(
    tmpfs: Mount, start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    disk = tmpfs("size=4m")
    sidecar = await start_sidecar(STORAGE_PATH=str(disk))
    await storage_becomes(sidecar, "ok")
    use_up_bytes = ["dd", "if=/dev/zero", f"of={disk / 'filler'}", "bs=64k"]
    assert subprocess.run(use_up_bytes, capture_output=True, check=False).returncode == 1
    await fails(sidecar, "disk is full")
    await metric_becomes(sidecar, 'imagegen_generations_total{model="painter",outcome="failed"}', 1)
    count = 'imagegen_storage_operation_duration_seconds_count{backend="file",operation="stage",outcome="storage_full"}'
    assert await sidecar.metric(count) == 1
    assert kserve.instances == []


async def test_of_several_images_those_that_found_room_are_given_and_the_rest_is_named(
    tmpfs: Mount, start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    disk = tmpfs("size=4m")
    sidecar = await start_sidecar(STORAGE_PATH=str(disk))

    async def answer_then_fill(request: web.Request, instance: dict[str, Any]) -> web.StreamResponse:
        (disk / "filler").write_bytes(b"x" * (3 * 2**20 + 2**19))
        return await succeed(picture(900, 900, noise=True))(request, instance)

    kserve.script.extend([succeed(), answer_then_fill, succeed()])
    result = await sidecar.generate(num_images=2, result="link", seed=1)
    assert not result.is_error
    assert len(result.structured_content["images"]) == 1
    assert "disk is full" in result.structured_content["message"]
    assert parts(disk) == []
    (disk / "filler").unlink()
    assert (await sidecar.get(result.structured_content["images"][0]["url"]))[0].status == 200
