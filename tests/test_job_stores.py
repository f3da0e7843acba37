"""Both stores of generations keep one contract."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sidecar.config import read_settings
from sidecar.ports import JobStore, SystemClock
from sidecar.storages.opening import opened_store
from tests.jobs_contract import JobsContract


class TestFileJobs(JobsContract):
    """The file store's generations."""

    @pytest.fixture
    async def jobs(self, tmp_path: Path) -> AsyncIterator[JobStore]:
        settings = read_settings({"STORAGE_PATH": str(tmp_path)}).storage
        async with opened_store(settings, clock=SystemClock(), observer=lambda event: None) as store:
            yield store.jobs


class TestS3Jobs(JobsContract):
    """The bucket's generations."""

    @pytest.fixture
    async def jobs(self, s3: dict[str, str], tmp_path: Path) -> AsyncIterator[JobStore]:
        settings = read_settings({**s3, "STORAGE_PATH": str(tmp_path)}).storage
        async with opened_store(settings, clock=SystemClock(), observer=lambda event: None) as store:
            yield store.jobs
