"""Stores that speak S3 in part: what each lacks is found out, told, and worked around."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.config import read_settings
from sidecar.core.readiness import StorageWatch
from sidecar.core.sweeper import Sweeper
from sidecar.domain import Deletion
from sidecar.errors import ImageNotFound, StorageFailure, StoreAway
from sidecar.ports import JobStore, SystemClock
from sidecar.storages.s3 import S3Storage, opened_s3
from tests.conftest import StartSidecar
from tests.job_store_contract import JobStoreContract, job
from tests.odd_store import Odd, at, odd, store_of
from tests.s3_dialects import POOREST, STORES, Dialect, Proxy, behaving
from tests.storage_contract import DAY, PNG, HeldClock, StorageContract, bytes_of, put

__all__ = ["odd"]

pytestmark = pytest.mark.real

TWICE = "an image may be painted twice"


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock()


@pytest.fixture
async def poorest(s3: dict[str, str], tmp_path: Path, clock: HeldClock) -> AsyncIterator[S3Storage]:
    async with behaving(POOREST, s3["S3_ENDPOINT_URL"]) as proxy:
        given = {**s3, "S3_ENDPOINT_URL": proxy.url, "STORAGE_PATH": str(tmp_path), "SPOOL_PATH": str(tmp_path)}
        async with opened_s3(read_settings(given).storage, clock=clock, observer=lambda event: None) as opened:
            yield opened


class TestImagesInThePoorestStore(StorageContract):
    """It keeps the contract of every store, within one pod."""

    # slow, and listings and downloads are the same in every store
    test_a_page_looks_at_five_hundred_records_and_goes_on_from_there = None
    test_a_large_image_is_streamed_in_pieces = None  # type: ignore[assignment]

    @pytest.fixture
    def store(self, poorest: S3Storage) -> S3Storage:
        return poorest

    async def lay(self, store: S3Storage, key: str, data: bytes) -> None:
        await store._bucket.put("commit", key, data)


class TestJobsInThePoorestStore(JobStoreContract):
    """It keeps the contract of every store of jobs, within one pod."""

    @pytest.fixture
    def jobs(self, poorest: S3Storage) -> JobStore:
        return poorest.jobs


# --- each store's way -------------------------------------------------------------------------------------------------


@pytest.fixture(params=STORES)
async def proxy(request: pytest.FixtureRequest, s3: dict[str, str]) -> AsyncIterator[Proxy]:
    async with behaving(STORES[request.param], s3["S3_ENDPOINT_URL"]) as started:
        yield started


async def test_each_store_is_probed_and_an_image_lives_and_dies_in_it(
    proxy: Proxy, s3: dict[str, str], tmp_path: Path
) -> None:
    dialect, clock = proxy.dialect, SystemClock()
    async with store_of({**s3, "S3_ENDPOINT_URL": proxy.url}, tmp_path) as store:
        watch = StorageWatch(store, clock, lambda event: None)
        await watch.look()
        found = store._bucket.objects.capabilities
        assert (found.conditional_put, found.multi_delete, found.head_length, found.ranges) == (
            dialect.conditions == "kept",
            dialect.batches == "kept",
            dialect.tells_lengths,
            True,
        )
        lacks_conditions = dialect.conditions != "kept"
        assert watch.check.status == "ok"
        assert watch.capabilities.check.status == ("degraded" if lacks_conditions else "ok")
        assert (TWICE in watch.capabilities.check.detail) == lacks_conditions
        deleted, expired = (await put(store, clock.now())), (await put(store, clock.now() - 2 * DAY))
        await store.put_thumbnail(deleted.record.image_id, b"small")
        assert await bytes_of(store, deleted) == PNG
        assert await store.delete(deleted.record.image_id) == Deletion(first=True, freed_bytes=len(PNG) + 5)
        assert await store.delete(deleted.record.image_id) == Deletion(first=False)
        report = await Sweeper(store, store.jobs, interval=1, clock=clock, observer=lambda event: None).sweep()
        assert (report.deleted, report.errors) == (1, 0)
        with pytest.raises(ImageNotFound):
            await store.get(expired.record.image_id)
        left = {entry.key.split("/")[0] async for entry in store._bucket.entries("list", "", str)}
        assert left <= {"inventory", "probe"}


async def test_of_many_in_one_pod_who_want_a_key_one_wins_also_where_the_store_does_not_decide(
    proxy: Proxy, s3: dict[str, str], tmp_path: Path
) -> None:
    async with store_of({**s3, "S3_ENDPOINT_URL": proxy.url}, tmp_path) as store:
        await store.check()
        records = [job(SystemClock().now(), key="a" * 64) for _ in range(5)]
        for record in records:
            await store.jobs.offer(record)
        holders = await asyncio.gather(*(store.jobs.win_key(record) for record in records))
        assert set(holders) == {await store.jobs.key_holder("a" * 64)}


async def test_a_store_that_refused_conditions_once_is_not_asked_for_them_again(
    s3: dict[str, str], tmp_path: Path
) -> None:
    async with behaving(Dialect(conditions="refused", batches="unknown"), s3["S3_ENDPOINT_URL"]) as proxy:
        async with store_of({**s3, "S3_ENDPOINT_URL": proxy.url}, tmp_path) as store:  # a command: it never looks
            for key in ("one", "two"):
                assert await store._bucket.create_once("commit", key, b"{}")
                assert not await store._bucket.create_once("commit", key, b"{}")
            await store._bucket.delete("delete", ["one", "two"])
            await store._bucket.delete("delete", ["one", "two"])
    methods = [method for method, _ in proxy.passed]
    assert (methods.count("PUT"), methods.count("BATCH")) == (3, 1)


@pytest.fixture
async def backblaze(s3: dict[str, str]) -> AsyncIterator[Proxy]:
    async with behaving(STORES["Backblaze B2, Alibaba OSS"], s3["S3_ENDPOINT_URL"]) as started:
        yield started


async def test_readiness_tells_what_the_store_lacks_and_stays_ready(
    backblaze: Proxy, start_sidecar: StartSidecar, s3: dict[str, str], tmp_path: Path
) -> None:
    settings = {**s3, "S3_ENDPOINT_URL": backblaze.url, "IMAGE_DELIVERY": "proxy"}
    sidecar = await start_sidecar(**settings, SPOOL_PATH=str(tmp_path / "spool"))
    await sidecar.until_ready()
    response, body = await sidecar.get("/readyz")
    told = json.loads(body)
    assert (response.status, told["status"], told["checks"]["storage"]["status"]) == (200, "degraded", "ok")
    check = told["checks"]["storage/capabilities"]
    assert (check["status"], TWICE in check["detail"], check["since"][:2]) == ("degraded", True, "20")
    image = await sidecar.made()
    assert (await sidecar.get(image["url"]))[0].status == 200


# --- the probe --------------------------------------------------------------------------------------------------------


async def test_a_probe_costs_five_requests_once_and_leaves_nothing(s3: dict[str, str], tmp_path: Path) -> None:
    async with behaving(Dialect(), s3["S3_ENDPOINT_URL"]) as proxy:
        async with store_of({**s3, "S3_ENDPOINT_URL": proxy.url}, tmp_path) as store:
            await store.check()
            assert [method for method, _ in proxy.passed] == ["PUT", "PUT", "HEAD", "GET", "BATCH"]
            assert [entry.key async for entry in store._bucket.entries("list", "", str)] == []
            for _ in range(2):
                await store.check()
            assert [method for method, _ in proxy.passed][6:] == ["PUT", "GET"]


async def test_a_store_that_is_away_at_the_start_is_probed_when_it_is_first_seen(odd: Odd, tmp_path: Path) -> None:
    odd.is_full = True
    async with store_of(at(odd), tmp_path) as store:
        with pytest.raises(StoreAway):
            await store.check()
        assert store.findings is None
        odd.is_full = False
        await store.check()
        assert store.findings is not None
        assert store.findings.shortfall == ""


async def test_a_probe_that_is_refused_keeps_no_pod_from_starting_and_is_told(odd: Odd, tmp_path: Path) -> None:
    odd.undeletable = {""}
    async with store_of(at(odd), tmp_path) as store:
        await store.check()
        assert store.findings is not None
        assert "a probe of it failed" in store.findings.shortfall


async def test_a_store_without_ranges_is_told(s3: dict[str, str], tmp_path: Path) -> None:
    async with behaving(Dialect(knows_ranges=False), s3["S3_ENDPOINT_URL"]) as proxy:
        async with store_of({**s3, "S3_ENDPOINT_URL": proxy.url}, tmp_path) as store:
            await store.check()
            assert store.findings is not None
            assert "does not answer ranges" in store.findings.shortfall


# --- regions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names_region", [True, False])
async def test_a_store_of_another_region_is_followed_where_it_names_it_and_told_where_it_does_not(
    names_region: bool, s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with behaving(Dialect(region="garage", names_region=names_region), s3["S3_ENDPOINT_URL"]) as proxy:
        settings = {**s3, "S3_ENDPOINT_URL": proxy.url}
        async with store_of(settings, tmp_path / "unset") as store:
            watch = StorageWatch(store, SystemClock(), lambda event: None)
            await watch.look()
            told = (watch.check.status, "set AWS_REGION to 'garage'" in watch.check.detail)
            assert told == (("ok", False) if names_region else ("degraded", True))
        monkeypatch.setenv("AWS_REGION", "garage")
        async with store_of(settings, tmp_path / "set") as store:
            await store.check()


# --- clean-up that fails ----------------------------------------------------------------------------------------------


async def test_a_clean_up_that_fails_is_told_by_readiness_with_the_reason_until_one_succeeds(
    start_sidecar: StartSidecar, odd: Odd, tmp_path: Path
) -> None:
    clock = SystemClock()
    async with store_of(at(odd), tmp_path / "before") as store:
        await put(store, clock.now() - 2 * DAY)
    odd.undeletable = {"records/", "images/"}
    sidecar = await start_sidecar(**at(odd), SPOOL_PATH=str(tmp_path / "spool"), CLEANUP_INTERVAL="0.2s")
    await sidecar.until_ready()

    async def cleanup() -> Any:
        _, body = await sidecar.get("/readyz")
        return json.loads(body)["checks"].get("cleanup")

    async with asyncio.timeout(20):
        while (check := await cleanup()) is None:
            await asyncio.sleep(0.02)
    assert (check["status"], "InvalidRequest" in check["detail"]) == ("degraded", True)
    assert check["since"] <= f"{clock.now().isoformat()}"
    odd.undeletable = set()
    async with asyncio.timeout(20):
        while await cleanup() is not None:
            await asyncio.sleep(0.02)


async def test_a_gateway_s_page_in_place_of_an_answer_makes_no_store_one_without_conditions(
    s3: dict[str, str], tmp_path: Path
) -> None:
    async with behaving(Dialect(), s3["S3_ENDPOINT_URL"]) as proxy:
        async with store_of({**s3, "S3_ENDPOINT_URL": proxy.url}, tmp_path) as store:
            proxy.instead = 501
            with pytest.raises(StorageFailure):
                await store._bucket.create_once("commit", "key", b"{}")
            proxy.instead = None
            assert store._bucket.objects.capabilities.conditional_put
            assert await store._bucket.create_once("commit", "key", b"{}")
