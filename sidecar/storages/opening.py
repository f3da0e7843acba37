"""The store that the settings name. What only a bucket needs is loaded only for one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from sidecar.config import StorageSettings
from sidecar.errors import BadConfiguration
from sidecar.ports import Clock, JobStore, Observer, Storage
from sidecar.storages.file import FileStorage


class Store(Storage, Protocol):
    """Images and, beside them, generations."""

    @property
    def jobs(self) -> JobStore: ...


@asynccontextmanager
async def opened_store(settings: StorageSettings, *, clock: Clock, observer: Observer) -> AsyncIterator[Store]:
    """The store between start and stop. Raises BadConfiguration where an extra is not installed."""
    if settings.s3 is None:
        store = FileStorage(settings.path, max_bytes=settings.max_bytes, clock=clock, observer=observer)
        async with store.opened() as files:
            yield files
        return
    try:
        from sidecar.storages.s3 import opened_s3
    except ImportError as error:
        raise BadConfiguration(
            [f"STORAGE_BACKEND: s3 needs the extra `s3` ({error.name} is missing): pip install mcp-image-sidecar[s3]"]
        ) from error
    async with opened_s3(settings, clock=clock, observer=observer) as bucket:
        yield bucket
