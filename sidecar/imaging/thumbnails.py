"""Thumbnails, made by a worker process: started when it is needed, ended when it is idle, killed when it is late."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog

from sidecar.errors import (
    DecoderUnavailable,
    NoPreview,
    UndecodablePicture,
    bounded,
)

DECODING_BYTES = 64 * 1024 * 1024
"""Memory that one decode may take: 4096×4096 pixels of a PNG (docs/architecture.md has the other formats)."""
DECODING_SECONDS = 10.0
_IDLE_SECONDS = 60.0
_ENDING_SECONDS = 1.0
_PIECE_BYTES = 1024 * 1024
_RETRY_LATE_SECONDS = 600.0  # a decode that was too slow may have met a busy machine
_START = "import sys; sys.path[:] = {path!r}; from sidecar.imaging.worker import main; main({budget}, {seconds})"
_log = structlog.stdlib.get_logger("sidecar.imaging")


class PillowThumbnailer:
    """The `Thumbnailer` port. One picture at a time: the others wait, in memory that does not grow with them."""

    def __init__(
        self, *, budget: int = DECODING_BYTES, deadline: float = DECODING_SECONDS, idle: float = _IDLE_SECONDS
    ) -> None:
        """`budget` in bytes, `deadline` and `idle` in seconds."""
        self._budget = budget
        self._deadline = deadline
        self._idle = idle
        self._turn = asyncio.Lock()
        self._closed = False
        self._worker: asyncio.subprocess.Process | None = None
        self._retirement: asyncio.TimerHandle | None = None
        self._ending: set[asyncio.Task[int]] = set()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[PillowThumbnailer]:
        try:
            yield self
        finally:
            self._closed = True
            self._kill()
            if self._ending:  # a process that hangs in a read of a dead volume is left to the kernel
                await asyncio.wait(self._ending, timeout=_ENDING_SECONDS)

    @property
    def worker_pid(self) -> int | None:
        """The process that runs, if one does."""
        return None if self._worker is None else self._worker.pid

    async def thumbnail(self, source: bytes, *, pixels: int, max_bytes: int) -> bytes:
        return await self._made(source, {"make": "thumbnail", "pixels": pixels, "max_bytes": max_bytes})

    async def is_black(self, source: bytes) -> bool:
        return await self._made(source, {"make": "is_black"}) == b"\1"

    async def _made(self, source: bytes, request: dict[str, Any]) -> bytes:
        async with self._turn:
            if self._retirement is not None:
                self._retirement.cancel()
            worker = await self._running()
            try:
                return await self._ask(worker, source, request)
            finally:
                self._retirement = asyncio.get_running_loop().call_later(self._idle, self._retire)

    async def _ask(self, worker: Process, source: bytes, request: dict[str, Any]) -> bytes:
        try:
            async with asyncio.timeout(self._deadline):
                answer, thumbnail = await _exchange(worker, source, request)
        except TimeoutError:
            self._kill()
            _log.warning("a decode took too long and was given up", seconds=self._deadline)
            raise NoPreview(
                f"decoding it took longer than {self._deadline:g} s", retry_after=_RETRY_LATE_SECONDS
            ) from None
        except (OSError, EOFError, ValueError) as error:
            self._kill()
            if self._closed:
                raise _unavailable() from error
            _log.warning("the decoding process ended in the middle of a picture", status=worker.returncode)
            raise NoPreview("decoding it ended the process that was at it") from None
        except BaseException:  # the caller has left in the middle, so what comes next is no answer to anything
            self._kill()
            raise
        return _outcome(answer, thumbnail)

    async def _running(self) -> Process:
        """The worker, started where there is none. Raises DecoderUnavailable."""
        if self._closed:
            raise _unavailable()
        if self._worker is not None and self._worker.returncode is None:
            return self._worker
        try:
            async with asyncio.timeout(self._deadline):
                self._worker = await self._start()
                await _answer(self._worker)
                return self._worker
        except (OSError, EOFError, ValueError) as error:  # a time-out is an OSError
            self._kill()
            _log.warning("the decoding process does not start", error=bounded(repr(error)))
            raise _unavailable() from error
        except BaseException:
            self._kill()
            raise

    async def _start(self) -> Process:
        """It finds modules where this process does, and gets no signal that a terminal sends."""
        code = _START.format(path=sys.path, budget=self._budget, seconds=self._deadline)
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-B", "-c", code),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )

    def _retire(self) -> None:
        """A worker without work ends by itself once nothing more can come."""
        if not self._turn.locked() and self._worker is not None and self._worker.stdin is not None:
            self._worker.stdin.close()
            self._let_go(self._worker)

    def _kill(self) -> None:
        if self._retirement is not None:
            self._retirement.cancel()
        if self._worker is not None:
            with contextlib.suppress(ProcessLookupError):
                self._worker.kill()
            self._let_go(self._worker)

    def _let_go(self, worker: Process) -> None:
        self._worker = None
        ending = asyncio.create_task(worker.wait())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)


async def _exchange(worker: Process, source: bytes, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """One request and its answer. Raises OSError, EOFError or ValueError where the worker has ended."""
    if worker.stdin is None:
        raise EOFError
    worker.stdin.write(json.dumps({**request, "bytes": len(source)}).encode() + b"\n")
    view = memoryview(source)
    for start in range(0, len(view), _PIECE_BYTES):  # asyncio copies what the pipe does not take at once
        worker.stdin.write(view[start : start + _PIECE_BYTES])
        await worker.stdin.drain()
    return await _answer(worker)


async def _answer(worker: Process) -> tuple[dict[str, Any], bytes]:
    if worker.stdout is None:
        raise EOFError
    answer = json.loads(await worker.stdout.readline())
    return answer, await worker.stdout.readexactly(answer["bytes"])


def _unavailable() -> DecoderUnavailable:
    return DecoderUnavailable("No preview can be made at the moment; the image itself can be had.", retry_after=30)


def _outcome(answer: dict[str, Any], thumbnail: bytes) -> bytes:
    """The thumbnail, or the error that the worker tells."""
    why = bounded(answer.get("why", ""), 120)
    match answer["is"]:
        case "done":
            return thumbnail
        case "refused":
            raise NoPreview(why)
        case _:
            raise UndecodablePicture(why)
