"""Image files kept open for a moment: one that many ask for is opened once, and not on a thread for each of them.

They are mapped, because the kernel sends what is mapped for half of what sendfile costs, and read into the page cache
on the thread that opens them, so that a slow volume does not stop the event loop. Only system calls read the mapping:
where a volume fails they return an error, while Python's own access would end the process (SIGBUS).
"""

from __future__ import annotations

import asyncio
import mmap
import os
from pathlib import Path

_SECONDS = 1.0  # as long as the store believes that an image is still there; a deleted file frees its bytes after that
_ENTRIES = 64


class OpenFile:
    """A descriptor that any number of readers share, each with offsets of its own."""

    def __init__(self, path: Path) -> None:
        """Blocks; raises OSError."""
        self._descriptor = os.open(path, os.O_RDONLY)
        self._holders = 1
        self._mapped = _mapped(self._descriptor)

    def fileno(self) -> int:
        return self._descriptor

    def write_to(self, descriptor: int, start: int, length: int) -> int:
        """How many bytes were taken: as many as a non-blocking socket takes now. Raises OSError."""
        return os.write(descriptor, self._mapped[start : start + length])

    def read(self, count: int, offset: int) -> bytes:
        """Blocks; raises OSError."""
        return os.pread(self._descriptor, count, offset)

    def hold(self) -> OpenFile:
        self._holders += 1
        return self

    def release(self) -> None:
        """The last who holds it closes it."""
        self._holders -= 1
        if not self._holders:
            self._mapped.release()
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:  # its reader left before anything could be sent
            os.close(self._descriptor)


def _mapped(descriptor: int) -> memoryview:
    """A file's bytes, now in memory; none where the file is empty or its volume maps nothing."""
    try:
        flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_POPULATE", 0)  # Linux has it
        return memoryview(mmap.mmap(descriptor, 0, flags=flags, prot=mmap.PROT_READ))
    except (OSError, ValueError):
        return memoryview(b"")


class OpenFiles:
    """The files opened within the last second, a bounded number of them."""

    def __init__(self) -> None:
        self._files: dict[Path, OpenFile] = {}

    async def open(self, path: Path) -> OpenFile:
        """A file that the caller releases. Raises OSError, FileNotFoundError among them."""
        known = self._files.get(path)
        if known is not None:
            return known.hold()
        file = await asyncio.to_thread(OpenFile, path)
        if len(self._files) < _ENTRIES and path not in self._files:
            self._files[path] = file.hold()
            asyncio.get_running_loop().call_later(_SECONDS, self._forget, path)
        return file

    def _forget(self, path: Path) -> None:
        self._files.pop(path).release()
