"""Files under way on local disk, for the directory they end in or the bucket they are sent to."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from functools import partial
from io import FileIO
from pathlib import Path

from sidecar.domain import ImageId
from sidecar.errors import StorageFailure
from sidecar.storages.directory import Directory, failure_of
from sidecar.storages.disk import Tree

_WRITE_BYTES = 2 * 1024 * 1024
PART = ".part"
ASIDE = ".aside"
"""The suffix of staged files that any process may delete at any time."""
RECORD = ".record"
"""The suffix of records that belong to images being committed (see `unfinished`)."""
_VECTORS = 512  # pieces written at once; the kernel takes 1024


class Staging:
    """The staged files of one directory, by path."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._files: dict[Path, LocalFile] = {}

    @asynccontextmanager
    async def stage(
        self, image_id: ImageId, expected: int, reserve: Callable[[int], AbstractContextManager[None]]
    ) -> AsyncIterator[LocalFile]:
        """A file for `expected` bytes; what exceeds them is reserved. Leaving removes it, unless it was moved."""
        key = f"staging/{self._directory.instance}-{image_id}{PART}"
        path = self._directory.root / key
        opening = asyncio.ensure_future(self._directory.run("stage", self._open, key, expected))
        with ExitStack() as rooms:
            try:
                self._files[path] = LocalFile(
                    self._directory.tree,
                    key,
                    await asyncio.shield(opening),
                    threads=self._directory.threads,
                    room=expected,
                    reserve=lambda more: rooms.enter_context(reserve(more)),
                )
                yield self._files[path]
            finally:
                staged = self._files.pop(path, None)
                if staged is None or not staged.moved:
                    await asyncio.shield(self._discard(staged, key, opening))

    def _open(self, key: str, expected: int) -> FileIO:
        self._directory.require_volume()
        room = os.statvfs(self._directory.root)
        if room.f_bavail * room.f_frsize < expected or (room.f_files and not room.f_favail):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return FileIO(self._directory.tree.create(key), "wb")

    async def _discard(self, staged: LocalFile | None, key: str, opening: asyncio.Future[FileIO]) -> None:
        """Also where the caller left while the file was being opened. What was moved is no longer there."""
        with contextlib.suppress(StorageFailure):
            file = await opening
            work = staged.discard_unmoved if staged is not None else partial(self._close_and_unlink, file, key)
            await self._directory.run("discard", work)

    def _close_and_unlink(self, file: FileIO, key: str) -> None:
        file.close()
        self._directory.tree.unlink(key)

    def file(self, path: Path) -> LocalFile:
        """The staged file at a path. Hold on to it while working on it: its `stage` context may be left meanwhile."""
        return self._files[path]


class LocalFile:
    """A file under `staging/`, written as the image arrives. What exceeds `room` bytes is reserved on the way.

    A thread is asked for every two MiB only, and what is left then is written by the thread that commits.
    """

    def __init__(
        self,
        tree: Tree,
        key: str,
        file: FileIO,
        *,
        threads: ThreadPoolExecutor,
        room: int,
        reserve: Callable[[int], None],
    ) -> None:
        self.key = key
        self.moved = False
        """Whether it no longer goes with its stage."""
        self._tree = tree
        self._file = file
        self._lock = threading.Lock()
        self._finished = self._discarded = False
        self._threads = threads
        self._room = room
        self._reserve = reserve
        self._size = 0
        self._pending: list[bytes] = []
        self._pending_bytes = 0

    @property
    def path(self) -> Path:
        return self._tree.root / self.key

    @property
    def record_key(self) -> str:
        """Where the record is kept while the image is being committed."""
        return self.key.rpartition(".")[0] + RECORD

    async def write(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._room:
            self._reserve(self._size - self._room)
            self._room = self._size
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes >= _WRITE_BYTES:
            await self._on_a_thread(self._write_pending)

    async def restart(self) -> None:
        self._pending.clear()
        self._pending_bytes = self._size = 0
        await self._on_a_thread(self._empty)

    def finish(self, record: bytes) -> None:
        """Write what is left, make the file durable and close it; once more is no harm. Blocks; raises OSError.

        The record is put beside it before anything is waited for: should the process be killed from now on, the next
        one finds a whole image and all that is to be known of it.
        """
        with self._undiscarded():
            if not self._finished:
                self._write_pending()
                self._tree.unlink(self.record_key)  # of a try before
                with os.fdopen(self._tree.create(self.record_key), "wb") as file:
                    file.write(record)
                os.fsync(self._file.fileno())
                self._file.close()
                self._finished = True

    def put_aside(self) -> None:
        """Rename the finished file so that any process may delete it. Blocks; raises OSError."""
        with self._lock:
            if not self._discarded:
                aside = self.key.rpartition(".")[0] + ASIDE
                self._tree.rename(self.key, aside)
                self._tree.unlink(self.record_key)
                self.key = aside

    def take_over(self) -> None:
        """From now on it outlives its stage, however that ends. Blocks; raises OSError where it was discarded."""
        with self._undiscarded():
            self.moved = True

    def discard(self) -> None:
        """Never in the middle of other work: a file cut short must not pass for a whole one. Blocks; raises OSError."""
        with self._lock:
            self._remove()

    def discard_unmoved(self) -> None:
        """The same, unless it was taken over in this moment."""
        with self._lock:
            if not self.moved:
                self._remove()

    def _remove(self) -> None:
        self._discarded = True
        self._file.close()
        self._tree.unlink(self.record_key)
        self._tree.unlink(self.key)

    @contextmanager
    def _undiscarded(self) -> Iterator[None]:
        """Keep `discard` away meanwhile, or raise OSError where it has been: a writer may be cancelled at any time."""
        with self._lock:
            if self._discarded:
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            yield

    def _alone(self, work: Callable[[], None]) -> None:
        with self._undiscarded():
            work()

    def _write_pending(self) -> None:
        views = [memoryview(data) for data in self._pending]
        self._pending.clear()
        self._pending_bytes = 0
        while views:
            written = os.writev(self._file.fileno(), views[:_VECTORS])
            while views and written >= len(views[0]):
                written -= len(views.pop(0))
            if views:  # the kernel may take less than it was given
                views[0] = views[0][written:]

    def _empty(self) -> None:
        self._file.seek(0)
        self._file.truncate()

    async def _on_a_thread(self, work: Callable[[], None]) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, self._alone, work)
        except OSError as error:
            raise failure_of(error) from error
