"""The S3 store: the contract on a real store, and what only a bucket has."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sidecar.config import StorageSettings, read_settings
from sidecar.storages.s3 import S3Storage, opened_s3
from tests.storage_contract import HeldClock, StorageContract


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock()


def storage_settings(s3: dict[str, str], tmp_path: Path, **more: str) -> StorageSettings:
    return read_settings({**s3, "STORAGE_PATH": str(tmp_path / "local"), **more}).storage


@pytest.fixture
async def store(s3: dict[str, str], tmp_path: Path, clock: HeldClock) -> AsyncIterator[S3Storage]:
    settings = storage_settings(s3, tmp_path)
    async with opened_s3(settings, clock=clock, observer=lambda event: None) as opened:
        yield opened


class TestS3Storage(StorageContract):
    """The S3 store keeps the contract."""
