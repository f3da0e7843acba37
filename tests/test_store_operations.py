"""How an operation of a store ended is stated as what it was, for a directory and for a bucket."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sidecar.config import read_settings
from sidecar.errors import StorageFailure
from sidecar.events import Event, StorageOperation
from sidecar.storages.directory import Directory
from sidecar.storages.s3_bucket import Bucket
from sidecar.storages.s3_client import opened_bucket
from tests.odd_store import Odd, at, odd
from tests.storage_contract import HeldClock

__all__ = ["odd"]


class Stated:
    """An observer that remembers how operations ended."""

    def __init__(self) -> None:
        self.ends: list[tuple[str, str, str | None]] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, StorageOperation):
            self.ends.append((event.operation, event.outcome, event.detail))


@pytest.fixture
def stated() -> Stated:
    return Stated()


@pytest.fixture
def directory(tmp_path: Path, stated: Stated) -> Directory:
    return Directory(tmp_path, stated)


@pytest.fixture
async def bucket(odd: Odd, stated: Stated) -> AsyncIterator[Bucket]:
    given = read_settings(at(odd)).storage.s3
    assert given is not None
    async with opened_bucket(given, HeldClock(), stated) as opened:
        yield opened


async def left(call: asyncio.Task[object]) -> None:
    """The caller goes away."""
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_a_call_of_a_directory_whose_caller_left_counts_as_cancelled(
    directory: Directory, stated: Stated
) -> None:
    begun, release = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        release.wait()

    call: asyncio.Task[object] = asyncio.create_task(directory.run("get", work))
    await asyncio.to_thread(begun.wait)
    await left(call)
    release.set()
    assert stated.ends == [("get", "cancelled", None)]


async def test_what_nobody_foresaw_at_a_directory_counts_as_internal(directory: Directory, stated: Stated) -> None:
    with pytest.raises(ZeroDivisionError):
        await directory.run("list", lambda: 1 / 0)
    assert stated.ends == [("list", "internal", "ZeroDivisionError('division by zero')")]


async def test_a_directory_that_does_not_answer_counts_as_its_error_says(directory: Directory, stated: Stated) -> None:
    def work() -> None:
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    with pytest.raises(StorageFailure) as told:
        await directory.run("get", work)
    assert told.value.message == "The image store does not answer at the moment."
    assert stated.ends == [("get", told.value.reason, "The directory of the image store does not answer.")]


@pytest.mark.real
async def test_a_call_of_a_bucket_whose_caller_left_counts_as_cancelled(
    odd: Odd, bucket: Bucket, stated: Stated
) -> None:
    odd.going_on.clear()
    call: asyncio.Task[object] = asyncio.create_task(bucket.put("commit", "records/1", b"{}"))
    await odd.asked.wait()
    await left(call)
    odd.going_on.set()
    assert stated.ends == [("commit", "cancelled", None)]


@pytest.mark.real
async def test_what_nobody_foresaw_at_a_bucket_counts_as_internal(bucket: Bucket, stated: Stated) -> None:
    async def call() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await bucket.run("list", call)
    assert stated.ends == [("list", "internal", "ZeroDivisionError()")]
