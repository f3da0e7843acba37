"""What waits for the bucket: nothing that was made is lost, whatever happens on the way to it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog

from sidecar.core.readiness import StorageWatch
from sidecar.domain import ImageId
from sidecar.edge import keys as app_keys
from sidecar.errors import StorageFailure, StorageFull, StoreAway
from sidecar.events import Crashed, Event, StorageSeen
from sidecar.process import StopSignals
from sidecar.serving import Running, drain
from sidecar.storages import keys
from tests.conftest import StartSidecar, metric_becomes
from tests.odd_store import Hasty, Odd, at, odd, store_of
from tests.storage_contract import PNG, HeldClock, bytes_of, put

__all__ = ["odd"]

pytestmark = pytest.mark.real


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


def left_in(odd: Odd, image_id: ImageId) -> list[str]:
    """What there is of an image."""
    return [key for key in odd.kept if str(image_id) in key or key == keys.record_key(image_id)]


# --- on its way in ----------------------------------------------------------------------------------------------------


async def test_an_image_whose_sending_is_given_up_waits_in_the_spool(odd: Odd, tmp_path: Path) -> None:
    image_id = ImageId.new(HeldClock().now())
    odd.going_on.clear()
    async with store_of(at(odd), tmp_path) as store:
        storing = asyncio.create_task(put(store, HeldClock().now(), image_id=image_id))
        await odd.asked.wait()
        storing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await storing
        odd.going_on.set()
        assert store.held == 1
        assert await bytes_of(store, await store.get(image_id)) == PNG


async def test_an_image_waits_in_the_spool_when_sending_it_fails_in_a_way_that_nobody_foresaw(
    odd: Odd, tmp_path: Path
) -> None:
    odd.headers = {"x-amz-object-size": "a few bytes"}  # the client's parser takes only a number
    crashes: list[Event] = []
    async with store_of(at(odd), tmp_path, crashes.append) as store:
        stored = await put(store, HeldClock().now())
        assert (stored.held, await bytes_of(store, stored)) == (True, PNG)
    assert "sending an image" in {event.what for event in crashes if isinstance(event, Crashed)}


# --- troubles that have no name of ours -------------------------------------------------------------------------------


async def test_an_answer_that_breaks_off_is_the_store_s_trouble(odd: Odd, tmp_path: Path) -> None:
    odd.breaks_off = True
    async with store_of(at(odd), tmp_path) as store:
        with pytest.raises(StoreAway):
            await store.get(ImageId.new(HeldClock().now()))


async def test_what_waits_is_sent_after_a_failure_that_nobody_foresaw(odd: Odd, tmp_path: Path) -> None:
    odd.headers = {"x-amz-object-size": "a few bytes"}
    seen: list[Event] = []

    def crashed() -> bool:
        return "sending what waits" in {event.what for event in seen if isinstance(event, Crashed)}

    async with store_of(at(odd), tmp_path, seen.append) as store:
        stored = await put(store, HeldClock().now())
        await until(crashed)
        assert stored.held
        odd.headers = {}
        await until(lambda: store.held == 0)
        assert await bytes_of(store, stored) == PNG


async def test_readiness_goes_on_looking_after_a_failure_that_nobody_foresaw(odd: Odd, tmp_path: Path) -> None:
    odd.headers = {"x-amz-object-size": "a few bytes"}
    seen: list[Event] = []
    async with store_of(at(odd), tmp_path) as store:
        watch = StorageWatch(store, Hasty(), seen.append)
        await watch.look()
        assert (watch.check.status, [type(event) for event in seen]) == ("degraded", [Crashed, StorageSeen])
        odd.headers = {}
        await watch.look()
        assert watch.check.status == "ok"


async def test_a_spool_that_cannot_be_written_is_told_under_its_own_name(odd: Odd, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    async with store_of(at(odd), spool) as store:
        watch = StorageWatch(store, Hasty(), lambda event: None)
        await watch.look()
        assert watch.check.status == "ok"
        spool.rename(tmp_path / "elsewhere")
        await watch.look()
        assert watch.check.status == "degraded"
        assert watch.check.detail.startswith("The spool (SPOOL_PATH): ")


# --- deleting what waits ----------------------------------------------------------------------------------------------


async def test_what_is_deleted_while_it_is_sent_is_gone_from_the_bucket_too(odd: Odd, tmp_path: Path) -> None:
    odd.refused = {"images/"}
    async with store_of(at(odd), tmp_path) as store:
        record = (await put(store, HeldClock().now())).record
        odd.asked.clear()
        odd.going_on.clear()
        odd.refused = set()
        await odd.asked.wait()
        deleting = asyncio.create_task(store.delete(record.image_id))
        await asyncio.sleep(0.1)
        odd.going_on.set()
        await deleting
        await store.send_held()
        assert not left_in(odd, record.image_id)
        assert store.held == 0


async def test_what_waits_is_deleted_where_a_sending_may_have_left_it(odd: Odd, tmp_path: Path) -> None:
    odd.refused = {"records/"}
    async with store_of(at(odd), tmp_path) as store:
        record = (await put(store, HeldClock().now())).record
        assert left_in(odd, record.image_id)
        assert (await store.delete(record.image_id)).first
        assert not left_in(odd, record.image_id)


async def test_an_image_whose_deletion_failed_still_waits(odd: Odd, tmp_path: Path) -> None:
    odd.refused = {"records/"}
    spool = tmp_path / "spool"
    async with store_of(at(odd), spool) as store:
        record = (await put(store, HeldClock().now())).record
        spool.rename(tmp_path / "elsewhere")
        with pytest.raises(StorageFailure):
            await store.delete(record.image_id)
        (tmp_path / "elsewhere").rename(spool)
        assert store.held == 1
        assert (await store.get(record.image_id)).record == record


# --- the way out ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("refused", "left"), [(set[str](), 0), ({"records/"}, 1)])
async def test_a_sidecar_that_stops_sends_what_waits_while_there_is_grace_and_tells_what_stays(
    refused: set[str], left: int, start_sidecar: StartSidecar, odd: Odd, tmp_path: Path
) -> None:
    odd.refused = {"images/"}
    sidecar = await start_sidecar(**at(odd), SPOOL_PATH=str(tmp_path / "spool"))
    await sidecar.made()
    assert await sidecar.metric("imagegen_spool_images") == 1
    odd.refused = refused
    with structlog.testing.capture_logs() as logs:
        await drain(Running(sidecar.app, sidecar.url, None), sidecar.app[app_keys.SETTINGS], StopSignals())
    assert await sidecar.metric("imagegen_spool_images") == left
    assert [entry["images"] for entry in logs if "stay in the spool" in entry["event"]] == [left] * left


# --- what cannot be sent, and what cannot be read ---------------------------------------------------------------------


async def test_an_image_that_cannot_be_sent_does_not_keep_the_others(odd: Odd, tmp_path: Path) -> None:
    odd.refused = {"records/"}
    async with store_of(at(odd), tmp_path) as store:
        ids = sorted([(await put(store, HeldClock().now())).record.image_id for _ in range(2)], key=str)
        odd.refused = {str(ids[0])}
        await until(lambda: store.held == 1)
        assert [(await store.get(image_id)).held for image_id in ids] == [True, False]


async def test_what_waits_is_recalled_once_the_spool_can_be_read_and_without_what_cannot(
    odd: Odd, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    odd.refused = {"records/"}
    async with store_of(at(odd), spool) as store:
        record = (await put(store, HeldClock().now())).record
    looped = spool / keys.record_key(ImageId.new(record.created))
    looped.parent.mkdir(parents=True, exist_ok=True)
    looped.symlink_to(looped)
    spool.rename(tmp_path / "elsewhere")
    spool.write_text("in the way")
    async with store_of(at(odd), spool) as store:
        assert store.held == 0
        spool.unlink()
        (tmp_path / "elsewhere").rename(spool)
        await until(lambda: store.held == 1)


async def test_an_image_that_was_sent_in_this_moment_comes_from_the_bucket(odd: Odd, tmp_path: Path) -> None:
    odd.refused = {"records/"}
    async with store_of(at(odd), tmp_path, sends=False) as store:
        stored = await put(store, HeldClock().now())
        assert stored.path is not None
        odd.refused = set()
        await store.send(stored.path, stored.record)
        await store._spool.delete(stored.record.image_id)
        assert store.held == 1
        found = await store.get(stored.record.image_id)
        assert (found.path, found.record) == (None, stored.record)
        assert await bytes_of(store, stored) == PNG


# --- what vanishes ----------------------------------------------------------------------------------------------------


async def test_an_image_that_vanishes_from_the_spool_is_told_and_counted(
    start_sidecar: StartSidecar, odd: Odd, tmp_path: Path
) -> None:
    odd.refused = {"records/"}
    with structlog.testing.capture_logs() as logs:
        sidecar = await start_sidecar(**at(odd), SPOOL_PATH=str(tmp_path / "spool"))
        assert await sidecar.metric('imagegen_spool_lost_images_total{model="painter"}') == 0
        image = await sidecar.made()
        assert await sidecar.metric("imagegen_spool_images") == 1
        for path in (tmp_path / "spool").rglob("*"):
            if path.is_file() and path.name.startswith(image["image_id"]):
                path.unlink()
        await metric_becomes(sidecar, 'imagegen_spool_lost_images_total{model="painter"}', 1)
        await metric_becomes(sidecar, "imagegen_spool_images", 0)
    told = [entry["model"] for entry in logs if "vanished from the spool" in entry["event"]]
    assert told == ["painter"]


# --- room -------------------------------------------------------------------------------------------------------------


async def test_without_a_bound_half_of_what_is_free_is_the_spool_s(odd: Odd, tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    async with store_of(at(odd), tmp_path) as store:
        with store.reserve(int(0.4 * free)):
            pass
        with (
            pytest.raises(StorageFull, match="no room for another image of this size\\. Try"),
            store.reserve(int(0.6 * free)),
        ):
            pass


async def test_a_spool_that_could_not_be_written_at_the_start_is_bounded_once_it_can(odd: Odd, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.write_text("in the way")
    async with store_of(at(odd), spool) as store:
        spool.unlink()
        await store.check()
        with pytest.raises(StorageFull), store.reserve(shutil.disk_usage(tmp_path).free):
            pass
