"""Image files kept open for a moment: one that many ask for is opened and read once, and not for each of them.

A socket takes bytes from memory for half of what sendfile costs the kernel, so the beginning of a file, which is most
images' whole, is read on the thread that opens it. Only so much of it is kept as a small container can spare.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from sidecar.errors import ImageNotFound
from sidecar.storages.directory import Directory

LONGEST_HEAD = 2 * 1024 * 1024
_SECONDS = 1.0  # as long as the store believes that an image is still there; a deleted file frees its bytes after that
_FILES = 64
_BYTES = 16 * 1024 * 1024


class _Descriptor:
    """Open until the last who holds it lets go."""

    def __init__(self, path: Path) -> None:
        """Blocks; raises OSError."""
        self.number = os.open(path, os.O_RDONLY)
        self.holders = 0

    def release(self) -> None:
        self.holders -= 1
        if self.holders <= 0 <= self.number:
            os.close(self.number)
            self.number = -1

    def __del__(self) -> None:
        if hasattr(self, "number"):  # it could be opened, and whoever wanted it had left
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
        self.release()  # its reader left before anything could be sent


class OpenFiles:
    """The files of one directory opened within the last second, as far as there is room for them."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._kept: dict[Path, tuple[OpenFile, asyncio.TimerHandle]] = {}

    async def open(self, path: Path, head: int) -> OpenFile:
        """A file with its first `head` bytes, at most LONGEST_HEAD. Raises ImageNotFound, StorageFailure."""
        head = min(head, LONGEST_HEAD)
        kept = self._kept.get(path)
        if kept is not None and len(kept[0].head) >= head:
            return kept[0].again()
        file = OpenFile(*await self._directory.run("get", self._open, path, head))
        self._keep(path, file.again())
        return file

    def _open(self, path: Path, head: int) -> tuple[_Descriptor, bytes]:
        try:
            descriptor = _Descriptor(path)
        except FileNotFoundError:
            self._directory.require_volume()
            raise ImageNotFound from None
        return descriptor, os.pread(descriptor.number, head, 0) if head else b""

    def _keep(self, path: Path, file: OpenFile) -> None:
        self._forget(path)
        held = sum(len(kept.head) for kept, _ in self._kept.values())
        if len(self._kept) < _FILES and held + len(file.head) <= _BYTES:
            self._kept[path] = file, asyncio.get_running_loop().call_later(_SECONDS, self._forget, path)
        else:
            file.release()

    def _forget(self, path: Path) -> None:
        kept = self._kept.pop(path, None)
        if kept is not None:
            file, timer = kept
            timer.cancel()
            file.release()
