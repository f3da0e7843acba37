"""`mcp-image-sidecar stdio --demo`: the MCP server on standard input and output, with the painter as its runtime."""

from __future__ import annotations

from collections.abc import Mapping

from sidecar.config import read_settings
from sidecar.demo.painter_process import demo_environment, painter
from sidecar.observe.logs import configure_logging
from sidecar.process import StopSignals
from sidecar.stdio import on_loopback, serve_stdio


async def serve_demo_on_stdio(environment: Mapping[str, str], signals: StopSignals) -> None:
    """Serve as `serve_stdio` does. Raises BadConfiguration before the painter is started."""
    configure_logging(read_settings(demo_environment(environment)).log)
    async with painter() as endpoint:
        await serve_stdio(on_loopback(read_settings(demo_environment(environment, endpoint))), signals)
