"""Jobs in a bucket keep the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sidecar.config import read_settings
from sidecar.ports import JobStore, SystemClock
from sidecar.storages.opening import opened_store
from tests.job_store_contract import JobStoreContract

pytestmark = pytest.mark.real


@pytest.fixture
async def jobs(s3: dict[str, str], tmp_path: Path) -> AsyncIterator[JobStore]:
    settings = read_settings({**s3, "STORAGE_PATH": str(tmp_path)}).storage
    async with opened_store(settings, clock=SystemClock(), observer=lambda event: None) as store:
        yield store.jobs


class TestS3Jobs(JobStoreContract):
    """The bucket keeps the contract."""
