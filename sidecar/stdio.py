"""The same MCP server on standard input and output, for hosts that start it as a child, with its images on loopback."""

from __future__ import annotations

import asyncio
import signal

from mcp.server.stdio import stdio_server

from sidecar.app import MCP_SERVER
from sidecar.config import Settings
from sidecar.edge import keys
from sidecar.serving import drain, running


async def serve_stdio(settings: Settings) -> None:
    """Serve until standard input ends or SIGTERM comes; what the runtime has begun is still stored."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    async with running(settings) as sidecar:
        server = sidecar.app[MCP_SERVER].server
        async with stdio_server() as (read_stream, write_stream):
            talking = asyncio.create_task(server.run(read_stream, write_stream, server.create_initialization_options()))
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait({talking, stopping}, return_when=asyncio.FIRST_COMPLETED)
            sidecar.app[keys.HEALTH].stopping = True
            hurry = asyncio.Event()
            loop.add_signal_handler(signal.SIGTERM, hurry.set)
            await drain(sidecar, settings, hurry)
            talking.cancel()
            stopping.cancel()
            await asyncio.gather(talking, stopping, return_exceptions=True)
