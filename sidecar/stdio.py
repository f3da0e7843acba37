"""The same MCP server on standard input and output, for hosts that start it as a child, with its images on loopback."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator
from typing import cast

import anyio
from mcp.server.stdio import stdio_server

from sidecar.app import MCP_SERVER
from sidecar.config import Settings
from sidecar.serving import drain, running, signals


async def serve_stdio(settings: Settings) -> None:
    """Serve until standard input ends or a signal comes; what the runtime has begun is still stored."""
    stop, hurry = asyncio.Event(), asyncio.Event()
    async with running(settings) as sidecar:
        server = sidecar.app[MCP_SERVER].server
        lines = cast("anyio.AsyncFile[str]", _StandardInput())
        with signals(stop, hurry), anyio.CancelScope() as scope:
            async with stdio_server(stdin=lines) as (read_stream, write_stream):
                talking = asyncio.create_task(
                    server.run(read_stream, write_stream, server.create_initialization_options())
                )
                stopping = asyncio.create_task(stop.wait())
                await asyncio.wait({talking, stopping}, return_when=asyncio.FIRST_COMPLETED)
                stop.set()  # from here on a signal means: at once
                await drain(sidecar, settings, hurry)
                talking.cancel()
                stopping.cancel()
                await asyncio.gather(talking, stopping, return_exceptions=True)
                scope.cancel()


class _StandardInput:
    """Its lines, read on a daemon thread: a read that blocks must not keep the process from ending."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=1)
        threading.Thread(target=self._read, daemon=True, name="standard input").start()

    def _read(self) -> None:
        # A file of its own: the interpreter closes sys.stdin as it ends, and would wait for this thread to let go.
        with os.fdopen(os.dup(sys.stdin.fileno()), "rb") as file:
            for line in file:
                self._put(line)
        self._put(None)

    def _put(self, line: bytes | None) -> None:
        asyncio.run_coroutine_threadsafe(self._lines.put(line), self._loop).result()

    async def __aiter__(self) -> AsyncIterator[str]:
        while (line := await self._lines.get()) is not None:
            yield line.decode(errors="replace")
