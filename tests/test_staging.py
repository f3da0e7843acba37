"""A staged file, whose writer may be cancelled while a thread still writes for it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path

import pytest

from sidecar.errors import StorageFailure
from sidecar.storages.disk import Tree
from sidecar.storages.staging import LocalFile

PIECES = [bytes([number % 256]) * 1024 for number in range(2048)]
"""More than is written at once."""


class Pipe:
    """A file that takes no more than somebody reads."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._threads = ThreadPoolExecutor(1)
        self.file = LocalFile(
            Tree(path.parent),
            path.name,
            FileIO(str(path), "w"),
            threads=self._threads,
            room=2**30,
            reserve=lambda more: None,
        )

    async def first_byte(self) -> bytes:
        """Wait until somebody writes."""
        readable = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._reader, readable.set)
        await readable.wait()
        loop.remove_reader(self._reader)
        return os.read(self._reader, 1)

    def rest(self) -> bytes:
        """All until the writer's end is closed."""
        os.set_blocking(self._reader, True)
        read = bytearray()
        while data := os.read(self._reader, 2**16):
            read += data
        return bytes(read)

    def close(self) -> None:
        self._threads.shutdown()
        os.close(self._reader)


@pytest.fixture
async def pipe(tmp_path: Path) -> AsyncIterator[Pipe]:
    made = Pipe(tmp_path / "staged")
    yield made
    made.close()


async def test_a_file_is_not_closed_under_the_thread_that_writes_it(pipe: Pipe) -> None:
    async def write() -> None:
        for piece in PIECES:
            await pipe.file.write(piece)

    writing = asyncio.create_task(write())
    start = await pipe.first_byte()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    discarding = threading.Thread(target=pipe.file.discard)
    discarding.start()
    read = start + await asyncio.to_thread(pipe.rest)
    discarding.join()
    assert read == b"".join(PIECES)
    assert not pipe.file.path.exists()


async def test_nothing_is_written_into_a_file_that_was_discarded(tmp_path: Path) -> None:
    path = tmp_path / "staged"
    with ThreadPoolExecutor(1) as threads:
        file = LocalFile(
            Tree(tmp_path),
            path.name,
            FileIO(str(path), "x"),
            threads=threads,
            room=2**30,
            reserve=lambda more: None,
        )
        file.discard()
        with pytest.raises(StorageFailure, match="Operation canceled"):
            for piece in PIECES:
                await file.write(piece)
        with pytest.raises(StorageFailure, match="Operation canceled"):
            await file.restart()
