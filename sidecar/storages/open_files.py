"""Image files kept open for a moment: one that many ask for is opened and read once, and not for each of them.

A socket takes bytes from memory for half of what sendfile costs the kernel, so the beginning of a file, which is most
images' whole, is read on the thread that opens it. Only so much of it is kept as a small container can spare.
"""

from __future__ import annotations

import asyncio
import os
from functools import partial

from sidecar.errors import ImageDamaged, ImageNotFound
from sidecar.storages.directory import Directory
from sidecar.storages.disk import DamagedFile

LONGEST_HEAD = 2 * 1024 * 1024
_SECONDS = 1.0  # as long as the store believes that an image is still there; a deleted file frees its bytes after that
_FILES = 64
_BYTES = 16 * 1024 * 1024


class _Descriptor:
    """Open until its last holder releases it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.holders = 0

    def release(self) -> None:
        self.holders -= 1
        if self.holders <= 0 <= self.number:
            os.close(self.number)
            self.number = -1

    def __del__(self) -> None:
        if hasattr(self, "number"):  # it was opened after its caller had left
            self.release()


class OpenFile:
    """The `OpenFile` port: one reader's hold on a file."""

    def __init__(self, descriptor: _Descriptor, head: bytes) -> None:
        descriptor.holders += 1
        self._descriptor: _Descriptor | None = descriptor
        self.head = head

    def again(self) -> OpenFile:
        """For another reader. Raises ValueError after the release."""
        if self._descriptor is None:
            raise ValueError("the file has been released")
        return OpenFile(self._descriptor, self.head)

    def fileno(self) -> int:
        return -1 if self._descriptor is None else self._descriptor.number

    def forget_head(self) -> None:
        self.head = b""

    def release(self) -> None:
        descriptor, self._descriptor, self.head = self._descriptor, None, b""
        if descriptor is not None:
            descriptor.release()

    def __del__(self) -> None:
        self.release()  # its reader left before anything could be sent, or it was opened for others to hold


class OpenFiles:
    """The files of one directory opened within the last second. Beyond what there is room for, they come without heads
    and are not kept.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._kept: dict[str, OpenFile] = {}
        self._opening: dict[str, asyncio.Task[OpenFile]] = {}
        self._files = self._bytes = 0

    async def open(self, key: str, head: int) -> OpenFile:
        """A file, as far as may be with its first `head` bytes. Raises ImageNotFound, StorageFailure."""
        kept = self._kept.get(key)
        if kept is not None:
            return kept.again()
        opening = self._opening.get(key)
        if opening is None:
            opening = self._opening[key] = asyncio.create_task(self._open(key, min(head, LONGEST_HEAD)))
            opening.add_done_callback(partial(self._opened, key))
        return (await asyncio.shield(opening)).again()

    def _opened(self, key: str, opening: asyncio.Task[OpenFile]) -> None:
        del self._opening[key]
        if not opening.cancelled():
            opening.exception()  # mark it as retrieved: there may be no waiter left

    async def _open(self, key: str, head: int) -> OpenFile:
        """Once for all waiters. The bytes are counted before they are read."""
        if self._files == _FILES or self._bytes + head > _BYTES:
            return OpenFile(*await self._directory.run("get", self._read, key, 0))
        self._take(1, head)
        try:
            file = OpenFile(*await self._directory.run("get", self._read, key, head))
        except BaseException:
            self._take(-1, -head)
            raise
        self._kept[key] = file.again()
        asyncio.get_running_loop().call_later(_SECONDS, self._forget, key, head)
        return file

    def _take(self, files: int, size: int) -> None:
        self._files += files
        self._bytes += size

    def _read(self, key: str, head: int) -> tuple[_Descriptor, bytes]:
        try:
            descriptor = _Descriptor(self._directory.tree.open(key))
        except FileNotFoundError:
            self._directory.require_volume()
            raise ImageNotFound from None
        except (DamagedFile, NotADirectoryError) as error:
            self._directory.damaged(key, error)
            raise ImageDamaged(str(error)) from None
        return descriptor, os.pread(descriptor.number, head, 0) if head else b""

    def _forget(self, key: str, head: int) -> None:
        self._take(-1, -head)
        self._kept.pop(key).release()
