"""`mcp-image-sidecar demo`: the painter in a process of its own, the sidecar, one image made by a real MCP client."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from typing import Any

from mcp.client import Client

from sidecar.clients import client_configurations, for_terminal, this_program
from sidecar.config import Settings, read_settings
from sidecar.demo.painter import DISCLAIMER
from sidecar.demo.painter_process import demo_environment, painter
from sidecar.observe.logs import configure_logging
from sidecar.process import StopSignals
from sidecar.serving import drain, running, stopped

PROMPT = "a lighthouse on a cliff at dawn, soft light, wide view"
_PORTS_TO_TRY = 50


async def demo(environment: Mapping[str, str], signals: StopSignals, *, once: bool, clients: bool = False) -> int:
    """Show the whole way of an image; serve on until Ctrl-C unless `once`. The exit code.

    `clients`: also print what connects each MCP client.
    """
    before = read_settings(demo_environment(environment))  # a wrong setting is told before the painter is started
    configure_logging(before.log)
    signals.started()  # from the start: a Ctrl-C at any moment is an orderly end
    async with painter() as endpoint:
        settings = read_settings(demo_environment(environment, endpoint))
        wanted = settings.listen.port
        settings = replace(settings, listen=replace(settings.listen, port=_free_port(settings)))
        async with running(settings) as sidecar:
            _say(f"The sidecar listens at {sidecar.url}, beside a {DISCLAIMER}.{_instead(settings, wanted)}")
            image = await _unless(signals.stop, _make_one(f"{sidecar.url}/mcp"))
            if image is not None:
                _say(_how_to_connect(sidecar.url, image, clients=clients))
                if not once:
                    _say("Serving until Ctrl-C. What was made is shown at")
                _say(f"{sidecar.url}/" if settings.listen.gallery else "(the gallery is off: GALLERY)")
                if not once:
                    await signals.stop.wait()
            await drain(sidecar, settings, signals)
    await stopped(signals)
    return 0


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, str]) -> str | None:
    """What the work gives, or None where `stop` came first."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)


async def _make_one(url: str) -> str:
    """Generate one image as any MCP client would; its URL."""

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        _say(f"  … {message}")

    _say(f'Calling generate_image through MCP: "{PROMPT}"')
    async with Client(url) as client:
        result = await client.call_tool("generate_image", {"prompt": PROMPT, "seed": 7}, progress_callback=on_progress)
    structured: dict[str, Any] = result.structured_content or {}
    if result.is_error or not structured.get("images"):
        raise RuntimeError(f"the demonstration failed: {structured.get('message')}")
    return str(structured["images"][0]["url"])


def _how_to_connect(url: str, image: str, *, clients: bool) -> str:
    mcp = f"{url}/mcp"
    hosts = client_configurations(mcp, this_program("stdio", "--demo"))
    settings = for_terminal(hosts) if clients else "What connects your client: add --clients."
    return f"""
Image     {image}
MCP       {mcp}
Metrics   {url}/metrics

{settings}
"""


def _instead(settings: Settings, wanted: int) -> str:
    """Which port it took where the one that was wanted is taken."""
    taken = settings.listen.port
    return "" if taken == wanted else f" Port {wanted} is taken, so it took {taken} (LISTEN_PORT)."


def _free_port(settings: Settings) -> int:
    """The configured port, or the next free one."""
    first = settings.listen.port
    for port in range(first, min(first + _PORTS_TO_TRY, 65536)):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((settings.listen.hosts[0], port))
            return port
    return first  # let the server say what is wrong with it


def _say(text: str) -> None:
    print(text, flush=True)
