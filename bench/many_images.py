"""A file store with very many small images, written the way the sidecar lays them out but without its care."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path

from sidecar.domain import GenerationRequest, ImageId, ImageRecord, Picture
from sidecar.storages import keys
from sidecar.storages.records import encode_record

PICTURE = Picture(media_type="image/png", width=512, height=512)
SPREAD = timedelta(hours=20)


def fill(root: Path, count: int, expired: int, png: bytes) -> None:
    """`count` images made over the last twenty hours, the `expired` oldest of them past their time."""
    now = datetime.now(UTC)
    made = sorted(now - SPREAD * random.random() for _ in range(count))
    for number, created in enumerate(made):
        expires = now - timedelta(seconds=1) if number < expired else created + timedelta(hours=24)
        _put(root, png, _record(ImageId.new(created), created, expires, len(png)))


def _put(root: Path, png: bytes, record: ImageRecord) -> None:
    image_id = record.image_id
    _at(root, keys.image_key(image_id, "image/png"), lambda path: path.write_bytes(png))
    _at(root, keys.record_key(image_id), lambda path: path.write_bytes(encode_record(record)))
    if record.expires is not None:
        _at(root, keys.expiry_key(record.expires, image_id), Path.touch)


def _at(root: Path, key: str, write: Callable[[Path], object]) -> None:
    path = root / key
    _make(path.parent)
    write(path)


@lru_cache
def _make(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)


def record_of(image_id: ImageId, size: int) -> ImageRecord:
    """Of an image made just now for a day."""
    return _record(image_id, image_id.created, image_id.created + timedelta(hours=24), size)


def _record(image_id: ImageId, created: datetime, expires: datetime, size: int) -> ImageRecord:
    return ImageRecord(
        image_id=image_id,
        owner="anonymous",
        request=GenerationRequest(model="instant", prompt="a cat on a sofa, soft light", seed=1),
        picture=PICTURE,
        size_bytes=size,
        sha256="0" * 64,
        seed_applied=True,
        dropped_parameters=(),
        created=created,
        expires=expires,
        queue_seconds=0.1,
        runtime_seconds=4.0,
    )
