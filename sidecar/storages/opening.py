"""The store that the settings name. What only a bucket needs is loaded only for one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Protocol

from sidecar.config import StorageSettings
from sidecar.errors import BadConfiguration
from sidecar.ports import Clock, JobStore, Observer, Storage
from sidecar.storages.file import FileStorage

if TYPE_CHECKING:
    from sidecar.storages.migration import MigrationReport


class Store(Storage, Protocol):
    """Images and, beside them, generations."""

    @property
    def jobs(self) -> JobStore: ...


@asynccontextmanager
async def opened_store(
    settings: StorageSettings, *, clock: Clock, observer: Observer, sends: bool = True
) -> AsyncIterator[Store]:
    """The store between start and stop. Raises BadConfiguration where an extra is not installed.

    `sends` False leaves alone what waits in a bucket's spool.
    """
    if settings.s3 is None:
        store = FileStorage(settings.path, max_bytes=settings.max_bytes, clock=clock, observer=observer)
        async with store.opened() as files:
            yield files
        return
    with _needing_the_extra():
        from sidecar.storages.s3 import opened_s3
    async with opened_s3(settings, clock=clock, observer=observer, sends=sends) as bucket:
        yield bucket


async def migrated(
    settings: StorageSettings, *, clock: Clock, observer: Observer
) -> tuple[MigrationReport, Sequence[str]]:
    """The directory's images and ended generations copied to the bucket: how many, and what did not come along."""
    with _needing_the_extra():
        from sidecar.storages.migration import Migration
        from sidecar.storages.s3 import opened_s3
    source = FileStorage(settings.path, max_bytes=None, clock=clock, observer=observer)
    async with source.opened() as files, opened_s3(settings, clock=clock, observer=observer, sends=False) as bucket:
        migration = Migration(files, bucket, clock=clock)
        return await migration.run(), migration.notes


@contextmanager
def _needing_the_extra() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise BadConfiguration(
            [f"STORAGE_BACKEND: s3 needs the extra `s3` ({error.name} is missing): pip install mcp-image-sidecar[s3]"]
        ) from error
