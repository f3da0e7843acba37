"""A bucket on Ceph's object gateway: memory of uploads, requests of a generation, time of lists."""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import secrets
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from many_images import PICTURE, record_of

from sidecar.config import read_settings
from sidecar.domain import GeneratedImage, ImageId, ImageRecord
from sidecar.ports import SystemClock
from sidecar.storages import keys
from sidecar.storages.records import encode_record
from sidecar.storages.s3 import S3Storage, opened_s3
from tests import ceph

_AT_ONCE = 32
_BLOCK = 1024 * 1024


@asynccontextmanager
async def store(url: str, work: Path) -> AsyncIterator[S3Storage]:
    """A part of the bucket that is this measurement's own."""
    os.environ |= {"AWS_ACCESS_KEY_ID": ceph.ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": ceph.SECRET_KEY}
    given = {
        "STORAGE_BACKEND": "s3",
        "S3_BUCKET": ceph.BUCKET,
        "S3_PREFIX": f"bench-{secrets.token_hex(4)}",
        "S3_ENDPOINT_URL": url,
        "STORAGE_PATH": str(work / "s3"),
    }
    clock = SystemClock()
    async with opened_s3(read_settings(given).storage, clock=clock, observer=lambda _event: None) as opened:
        yield opened


async def upload_memory(opened: S3Storage, count: int, size: int) -> float:
    """Bytes that one upload in flight adds to the process at its peak, of `count` at once."""
    ready = asyncio.Barrier(count)
    before = [0]

    async def upload() -> None:
        image_id = ImageId.new(datetime.now(UTC))
        async with opened.stage(image_id, size) as staged:
            digest = hashlib.sha256()
            for _ in range(size // _BLOCK):
                block = os.urandom(_BLOCK)
                digest.update(block)
                await staged.write(block)
            record = record_of(image_id, size)
            await opened._spool.finish(staged.path, record)
            await ready.wait()
            before[0] = _peak()
            await _commit(opened, staged.path, record, digest.hexdigest())

    await asyncio.gather(*(upload() for _ in range(count)))
    return (_peak() - before[0]) / count


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


async def _commit(opened: S3Storage, path: Path, record: ImageRecord, sha256: str) -> None:
    image = GeneratedImage(path=path, sha256=sha256, size_bytes=record.size_bytes, picture=PICTURE, seed_applied=True)
    stored = await opened.commit(image, replace(record, sha256=sha256))
    if stored.held:
        raise RuntimeError("the bucket did not take the image")


async def calls_of_a_generation(opened: S3Storage, png: bytes) -> dict[str, int]:
    """Requests by method, of one whose call is answered with its image."""
    asked: dict[str, int] = {}

    def note(request: Any, **_: Any) -> None:
        asked[request.method] = asked.get(request.method, 0) + 1

    opened._bucket.client.meta.events.register("request-created.s3", note)
    image_id = ImageId.new(datetime.now(UTC))
    async with opened.stage(image_id, len(png)) as staged:
        await staged.write(png)
        await _commit(opened, staged.path, record_of(image_id, len(png)), hashlib.sha256(png).hexdigest())
    opened._bucket.client.meta.events.unregister("request-created.s3", note)
    return asked


async def fill(opened: S3Storage, count: int, png: bytes) -> None:
    """`count` images over the last twenty hours: records, pictures, expiry entries."""
    now = datetime.now(UTC)
    free = asyncio.Semaphore(_AT_ONCE)

    async def put(number: int) -> None:
        image_id = ImageId.new(now - timedelta(hours=20) * number / count)
        record = record_of(image_id, len(png))
        assert record.expires is not None
        async with free:
            await opened._bucket.put("bench", keys.image_key(image_id, "image/png"), png)
            await opened._bucket.put("bench", keys.expiry_key(record.expires, image_id), b"")
            await opened._bucket.put("bench", keys.record_key(image_id), encode_record(record))

    await asyncio.gather(*(put(number) for number in range(count)))


async def list_50(opened: S3Storage) -> tuple[float, float]:
    """Seconds for the newest 50, by a process that knows none of them, and again; medians of ten."""
    first: list[float] = []
    again: list[float] = []
    for _ in range(10):
        opened._recent._entries.clear()
        for seconds in (first, again):
            began = time.perf_counter()
            page = await opened.page("anonymous", limit=50)
            seconds.append(time.perf_counter() - began)
            if len(page.records) != 50:
                raise RuntimeError(f"{len(page.records)} images were listed, not 50")
    return statistics.median(first), statistics.median(again)
