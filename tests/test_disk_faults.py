"""Disks that fill, turn read-only or vanish, on small file systems of the test's own."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.conftest import Sidecar, StartSidecar
from tests.fake_kserve import FakeKServe, succeed
from tests.pictures import picture

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
    while (await sidecar.generate(result="link")).is_error:  # until the next look has made staging/ anew
        await asyncio.sleep(0.1)


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
