"""When a store counts as away, and how it is found back: by one call, and never for what only this side is slow at."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

import pytest

from sidecar.config import read_settings
from sidecar.errors import StorageFailure, StoreAway
from sidecar.storages.s3_bucket import Bucket
from sidecar.storages.s3_client import opened_bucket
from tests.odd_store import Odd, at, odd
from tests.storage_contract import HeldClock

__all__ = ["odd"]

pytestmark = pytest.mark.real

BRIEF = 0.3
"""Seconds, for a call that shall not be answered."""
SHORT = 2.0
"""For one that may be, on a busy machine."""
LONG = 20.0
BEFORE_THE_PROBE = timedelta(seconds=5)


@asynccontextmanager
async def bucket_of(
    odd: Odd, clock: HeldClock, *, deadline: float = SHORT, pool_size: int = 32
) -> AsyncIterator[Bucket]:
    given = read_settings({**at(odd), "S3_POOL_SIZE": str(pool_size)}).storage.s3
    assert given is not None
    async with opened_bucket(given, clock, lambda event: None, deadline=deadline) as bucket:
        yield bucket


async def fall_silent(odd: Odd, bucket: Bucket) -> None:
    """The store takes a call and does not answer it."""
    odd.going_on.clear()
    with pytest.raises(StoreAway):
        await bucket.run("put", lambda: bucket.objects.put("silence", Body=b""), BRIEF)
    assert bucket.away
    odd.asked.clear()


async def put(bucket: Bucket, key: str) -> str:
    try:
        await bucket.put("put", key, b"{}")
    except StoreAway:
        return "away"
    return "put"


async def test_whoever_waits_for_a_connection_in_vain_does_not_take_the_store_for_away(odd: Odd) -> None:
    odd.going_on.clear()
    async with bucket_of(odd, HeldClock(), pool_size=1) as bucket:
        uploading = asyncio.create_task(bucket.run("commit", lambda: bucket.objects.put("large", Body=b""), LONG))
        await odd.asked.wait()
        with pytest.raises(StorageFailure, match="more to do with the image store") as told:
            await bucket.get("get", "small")
        assert not isinstance(told.value, StoreAway)
        assert (told.value.detail, told.value.retry_after) == (
            "All connections to the image store are busy: look at S3_POOL_SIZE.",
            SHORT,
        )
        assert not bucket.away
        odd.going_on.set()
        await uploading
        assert await bucket.get("get", "small") is None


async def test_a_download_holds_a_connection_while_it_fetches_and_not_longer(odd: Odd) -> None:
    odd.kept["image"] = bytes(300)
    async with bucket_of(odd, HeldClock(), pool_size=1) as bucket:
        async with bucket.downloading("get") as fetch:
            assert await fetch("image", 0, 300) == [bytes(300)]
            with pytest.raises(StorageFailure, match="more to do"):
                await bucket.get("get", "image")
        assert await bucket.get("get", "image")


@pytest.mark.parametrize(("pool_size", "share"), [(2, 1), (3, 2), (4, 3)])
async def test_downloads_leave_a_quarter_of_the_connections_to_everything_else(
    pool_size: int, share: int, odd: Odd
) -> None:
    odd.kept["image"] = bytes(300)
    async with bucket_of(odd, HeldClock(), pool_size=pool_size) as bucket, AsyncExitStack() as downloads:
        for _ in range(share):
            await downloads.enter_async_context(bucket.downloading("get"))
        with pytest.raises(StorageFailure, match="more to do"):
            await downloads.enter_async_context(bucket.downloading("get"))
        assert await bucket.get("get", "image")


async def test_a_call_that_is_too_slow_while_the_store_answers_others_does_not_take_it_for_away(odd: Odd) -> None:
    clock = HeldClock()
    odd.going_on.clear()
    async with bucket_of(odd, clock) as bucket:
        await bucket.get("get", "anything")
        assert await put(bucket, "slow") == "away"
        assert not bucket.away
        clock.advance(timedelta(seconds=11))
        assert await put(bucket, "slow") == "away"
        assert bucket.away


async def test_an_answer_that_breaks_off_while_the_store_answers_others_does_not_take_it_for_away(odd: Odd) -> None:
    clock = HeldClock()
    async with bucket_of(odd, clock) as bucket:
        await bucket.put("put", "anything", b"")
        odd.breaks_off = True
        with pytest.raises(StoreAway):
            async with bucket.downloading("get") as fetch:
                await fetch("image", 0, 1000)
        with pytest.raises(StoreAway):
            await bucket.get("get", "anything")
        assert not bucket.away
        clock.advance(timedelta(seconds=11))
        with pytest.raises(StoreAway):
            await bucket.get("get", "anything")
        assert not bucket.away  # its beginning was an answer, too


async def test_an_error_that_the_store_answers_is_an_answer(odd: Odd) -> None:
    odd.refused = {"refused"}
    odd.going_on.set()
    async with bucket_of(odd, HeldClock()) as bucket:
        with pytest.raises(StorageFailure):
            await bucket.put("put", "refused", b"")
        odd.going_on.clear()
        assert await put(bucket, "slow") == "away"
        assert not bucket.away


async def test_a_store_that_was_away_is_tried_by_one_call_while_the_others_fail_at_once(odd: Odd) -> None:
    clock = HeldClock()
    async with bucket_of(odd, clock, deadline=LONG) as bucket:
        await fall_silent(odd, bucket)
        assert [await put(bucket, "early") for _ in range(3)] == ["away"] * 3
        clock.advance(BEFORE_THE_PROBE)
        probe = asyncio.create_task(put(bucket, "probing"))
        await odd.asked.wait()
        assert await asyncio.gather(*(put(bucket, "others") for _ in range(20))) == ["away"] * 20
        odd.going_on.set()
        assert await probe == "put"
        assert await asyncio.gather(*(put(bucket, "after") for _ in range(20))) == ["put"] * 20
        assert odd.puts[-21:] == ["probing", *["after"] * 20]
        assert not {"early", "others"} & set(odd.puts)


async def test_of_many_who_come_at_once_after_the_time_one_tries(odd: Odd) -> None:
    clock = HeldClock()
    async with bucket_of(odd, clock) as bucket:
        await fall_silent(odd, bucket)
        clock.advance(BEFORE_THE_PROBE)
        before = len(odd.puts)
        assert await asyncio.gather(*(put(bucket, "rush") for _ in range(20))) == ["away"] * 20
        assert odd.puts[before:] == ["rush"]
        assert await put(bucket, "too early again") == "away"
        assert odd.puts[before:] == ["rush"]


async def test_a_probe_that_is_given_up_leaves_it_to_the_next_call(odd: Odd) -> None:
    clock = HeldClock()
    async with bucket_of(odd, clock, deadline=LONG) as bucket:
        await fall_silent(odd, bucket)
        clock.advance(BEFORE_THE_PROBE)
        probe = asyncio.create_task(put(bucket, "probing"))
        await odd.asked.wait()
        probe.cancel()
        await asyncio.gather(probe, return_exceptions=True)
        odd.going_on.set()
        assert await put(bucket, "next") == "put"


async def test_signing_a_url_proves_nothing_of_a_store_that_is_away(odd: Odd) -> None:
    clock = HeldClock()
    async with bucket_of(odd, clock) as bucket:
        await fall_silent(odd, bucket)
        clock.advance(BEFORE_THE_PROBE)
        with pytest.raises(StoreAway):
            await bucket.signer()
        assert bucket.away
