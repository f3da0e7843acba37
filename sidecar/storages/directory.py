"""A directory on a volume that may stall, fill up, vanish, or be shared by several pods.

All disk work runs on threads of the store's own, each call under a deadline, so a volume that stalls costs an error and
not the event loop. Every file that becomes visible is complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from sidecar.errors import StorageFailure, StorageFull
from sidecar.events import FileDamaged
from sidecar.ports import Observer
from sidecar.storages import keys
from sidecar.storages.disk import Tree
from sidecar.storages.stated import stated

_T = TypeVar("_T")

_DEADLINE_SECONDS = 30.0
_THREADS = 8
_TRIES = 10  # of making a shard that other pods tidy away while it is empty
WITHOUT_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EMLINK})
"""How file systems say that they have no hard links."""
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class Directory:
    """What the stores on one directory share: its threads, and small files that are whole or absent."""

    backend = "file"

    def __init__(self, root: Path, observer: Observer) -> None:
        self.root = root
        self.tree = Tree(root)
        self.instance = secrets.token_hex(6)
        self.threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="file-store")
        self._observer = observer
        self.has_links = True
        """Whether files can have two names here (see `once`)."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self.was_writable = False
        self._on_a_mount = False

    def close(self) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)

    async def run(self, operation: str, work: Callable[..., _T], *arguments: Any) -> _T:
        """Run `work` on a thread of the store, timed, bounded, its OSErrors translated."""
        self._loop = asyncio.get_running_loop()
        with stated(self._observer, self.backend, operation):
            try:
                async with asyncio.timeout(_DEADLINE_SECONDS):
                    return await self._loop.run_in_executor(self.threads, work, *arguments)
            except TimeoutError as error:
                raise StorageFailure(
                    "The image store does not answer at the moment.",
                    retry_after=30,
                    detail="The directory of the image store does not answer.",
                ) from error
            except OSError as error:
                raise failure_of(error) from error

    def damaged(self, key: str, reason: object) -> None:
        """State that a file cannot be used; raises OSError where the whole volume is gone. On a thread of the store."""
        self.require_volume()
        if self._loop is not None:
            event = FileDamaged(backend=self.backend, key=key, reason=str(reason))
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                self._loop.call_soon_threadsafe(self._observer, event)

    # --- small files --------------------------------------------------------------------------------------------------

    def write(self, key: str, data: bytes) -> None:
        """Write a small file so that it is either whole or absent, also after a power cut."""
        part = self.part(data)
        try:
            self.place(part, key)
            self.tree.sync(parent_of(key))
        except OSError:
            self.tree.unlink(part)
            raise

    def part(self, data: bytes) -> str:
        """A finished small file under `staging/`: its key."""
        part = self.private_key()
        try:
            self.write_through(part, data)
        except OSError:
            self.tree.unlink(part)
            raise
        return part

    def write_through(self, key: str, data: bytes) -> None:
        """A new file, synced; its directory is not."""
        with os.fdopen(self.tree.create(key), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def private_key(self) -> str:
        """Where no other process looks; swept after an hour should this one die."""
        return f"staging/{self.instance}-{secrets.token_hex(8)}.part"

    def owns(self, name: str) -> bool:
        """Whether a file under `staging/` is this process's own."""
        return name.startswith(f"{self.instance}-")

    def place(self, source: str, key: str) -> None:
        self.in_directory(key, lambda: self.tree.rename(source, key))

    def in_directory(self, key: str, action: Callable[[], object]) -> None:
        """Do something to `key`, making its shard first if need be; another pod may be removing empty shards.

        A new shard is made durable, since a power cut that takes it away takes along what is in it.
        """
        made: list[str] = []
        for _ in range(_TRIES):
            try:
                action()
                break
            except (FileNotFoundError, NotADirectoryError):
                made += self._make_shard(parent_of(key))
        else:
            action()
        for directory in dict.fromkeys(made):
            self.tree.sync(parent_of(directory))

    def _make_shard(self, shard: str) -> list[str]:
        """Make a directory below the root; never the root itself, whose absence means that the volume is gone.

        What was not there before.
        """
        self.require_volume()
        parts = shard.split("/")
        directories = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        return [directory for directory in directories if self._make_directory(directory)]

    def _make_directory(self, key: str) -> bool:
        """Whether it was not there. What is in a shard's place goes; in a tree's it may be an operator's."""
        try:
            return self.tree.make_directory(key)
        except NotADirectoryError as error:
            self.damaged(key, "not a directory")
            if key in keys.TREES:
                raise NotADirectoryError(errno.ENOTDIR, f"{key} is not a directory") from error
            self.tree.unlink(key)
            return self.tree.make_directory(key)

    # --- the volume ---------------------------------------------------------------------------------------------------

    def require_volume(self) -> None:
        """Raise OSError where the directory is gone: a missing volume is neither an empty store nor one to write to."""
        os.stat(f"{self.root}/.")  # noqa: PTH116 - a Path would drop the dot, which only a directory answers to
        if self._on_a_mount and not os.path.ismount(self.root):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def check(self) -> None:
        """Prove that the directory can be written. Blocks; raises OSError."""
        if not self.was_writable:
            self.root.mkdir(parents=True, exist_ok=True)
        self.require_volume()
        self._make_directory("staging")
        probe = f"staging/{self.instance}-probe.part"
        self.tree.unlink(probe)
        with os.fdopen(self.tree.create(probe), "wb") as file:
            file.write(b"writable")
        if not self.was_writable:
            self.has_links = self._links(probe, f"staging/{self.instance}-link-probe.part")
        self.tree.unlink(probe)
        self.was_writable = True
        self._on_a_mount = os.path.ismount(self.root)

    def _links(self, probe: str, other: str) -> bool:
        """Whether a file can have two names. Any other trouble is not this question's to report."""
        try:
            self.tree.link(probe, other)
        except OSError as error:
            return error.errno not in WITHOUT_LINKS
        self.tree.unlink(other)
        return True


def parent_of(key: str) -> str:
    """The key of the directory that holds `key`; the empty key is the root."""
    return key.rpartition("/")[0]


def failure_of(error: OSError) -> StorageFailure:
    """What a caller is told of a disk in trouble."""
    reason = error.strerror or type(error).__name__
    if error.errno in _NO_ROOM:
        return StorageFull("The image store's disk is full. Delete images that are no longer needed.", retry_after=60)
    return StorageFailure(f"The image store cannot be used at the moment ({reason}).", retry_after=30)
