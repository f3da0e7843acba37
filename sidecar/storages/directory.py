"""A directory on a volume that may stall, fill up, vanish, or be shared by several pods.

All disk work runs on threads of the store's own, each call under a deadline, so a volume that stalls costs an error and
not the event loop. Whatever becomes visible is complete.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from sidecar.errors import StorageFailure, StorageFull
from sidecar.ports import Observer
from sidecar.storages import disk
from sidecar.storages.stated import stated

_T = TypeVar("_T")

_DEADLINE_SECONDS = 30.0
_THREADS = 8
_TRIES = 3
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class Directory:
    """What the stores on one directory share: its threads, and small files that are whole or absent."""

    backend = "file"

    def __init__(self, root: Path, observer: Observer) -> None:
        self.root = root
        self.instance = secrets.token_hex(6)
        self.threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="file-store")
        self._observer = observer
        self._was_writable = False
        self._on_a_mount = False

    def close(self) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)

    async def run(self, operation: str, work: Callable[..., _T], *arguments: Any) -> _T:
        """Run `work` on a thread of the store, timed, bounded, its OSErrors translated."""
        with stated(self._observer, self.backend, operation):
            try:
                async with asyncio.timeout(_DEADLINE_SECONDS):
                    return await asyncio.get_running_loop().run_in_executor(self.threads, work, *arguments)
            except TimeoutError as error:
                raise StorageFailure(
                    "The image store does not answer at the moment.",
                    retry_after=30,
                    detail="The directory of the image store does not answer.",
                ) from error
            except OSError as error:
                raise failure_of(error) from error

    def write(self, final: Path, data: bytes) -> None:
        """Write a small file so that it is either whole or absent, also after a power cut."""
        part = self._part(data)
        try:
            self.place(part, final)
            disk.sync(final.parent)
        except OSError:
            part.unlink(missing_ok=True)
            raise

    def create_once(self, final: Path, data: bytes) -> bool:
        """Write a small file unless it is there; whether it was us. Of many who try at once one succeeds.

        By `link` of a finished file: readers never see half of it, and nobody overwrites. The count of links decides,
        because on NFS the answer to a link that was made may be lost.
        """
        part = self._part(data)
        try:
            try:
                self.in_directory(final, lambda path: os.link(part, path))
            except OSError as error:
                if part.stat().st_nlink != 2:
                    if isinstance(error, FileExistsError):
                        return False
                    raise
            disk.sync(final.parent)
            return True
        finally:
            part.unlink(missing_ok=True)

    def _part(self, data: bytes) -> Path:
        """A small file under `staging/`."""
        part = self.private_path()
        try:
            with part.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            part.unlink(missing_ok=True)
            raise
        return part

    def private_path(self) -> Path:
        """Where nobody else looks; swept after an hour should this process die."""
        return self.root / "staging" / f"{self.instance}-{secrets.token_hex(8)}.part"

    def place(self, source: Path, final: Path) -> None:
        self.in_directory(final, source.rename)

    def in_directory(self, path: Path, action: Callable[[Path], object]) -> None:
        """Do something to `path`, making its shard first if need be; another pod may be removing empty shards.

        A new shard is made durable, since a power cut that takes it away takes along what is in it.
        """
        made: list[Path] = []
        for _ in range(_TRIES):
            try:
                action(path)
                break
            except FileNotFoundError:
                made += self._make_shard(path.parent)
        else:
            action(path)
        for directory in dict.fromkeys(made):
            disk.sync(directory.parent)

    def _make_shard(self, shard: Path) -> list[Path]:
        """Make a directory below the root; never the root itself, whose absence means that the volume is gone.

        What was not there before.
        """
        self.require_volume()
        new = [path for path in (shard, *shard.parents) if self.root in path.parents and not path.exists()]
        shard.mkdir(parents=True, exist_ok=True)
        return new

    def require_volume(self) -> None:
        """Raise OSError where the directory is gone: a missing volume is neither an empty store nor one to write to."""
        os.stat(f"{self.root}/.")  # noqa: PTH116 - a Path would drop the dot, which only a directory answers to
        if self._on_a_mount and not os.path.ismount(self.root):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def check(self) -> None:
        """Prove that the directory can be written. Blocks; raises OSError."""
        if not self._was_writable:
            self.root.mkdir(parents=True, exist_ok=True)
        self.require_volume()
        (self.root / "staging").mkdir(exist_ok=True)
        probe = self.root / "staging" / f"{self.instance}-probe.part"
        probe.write_bytes(b"writable")
        probe.unlink()
        self._was_writable = True
        self._on_a_mount = os.path.ismount(self.root)


def failure_of(error: OSError) -> StorageFailure:
    """What a caller is told of a disk in trouble."""
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    if error.errno in _NO_ROOM:
        return StorageFull("The image store's disk is full. Delete images that are no longer needed.", retry_after=60)
    return StorageFailure(f"The image store cannot be used at the moment ({reason}).", retry_after=30)
