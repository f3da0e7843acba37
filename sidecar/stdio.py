"""The same MCP server on standard input and output, for hosts that start it as a child, with its images on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace

import structlog

from sidecar.app import MCP_SERVER
from sidecar.config import Settings
from sidecar.process import StopSignals
from sidecar.serving import drain, running, stopped
from sidecar.stdio_lines import Host, claimed_wire

_LAST_ANSWERS_SECONDS = 1.0  # for a host to take the answers that the end of the drain makes

_log = structlog.stdlib.get_logger("sidecar.stdio")


def on_loopback(settings: Settings) -> Settings:
    """The settings of a child of a host: its images are served on a free port of loopback, whatever is configured."""
    return replace(settings, listen=replace(settings.listen, hosts=("127.0.0.1",), port=0))


async def serve_stdio(settings: Settings, signals: StopSignals) -> None:
    """Serve until standard input ends, standard output is closed or a signal comes.

    The end of the input is no cancellation: requests that were received are answered first. In each case
    what the runtime has begun is still stored, within SHUTDOWN_GRACE.
    """
    with claimed_wire() as wire:
        async with running(settings) as sidecar, Host(wire).connected() as host:
            signals.started()
            server = sidecar.app[MCP_SERVER].server
            talking = asyncio.create_task(
                server.run(host.read_stream, host.write_stream, server.create_initialization_options())
            )
            await _first_of(talking, signals.stop.wait(), host.input_ended.wait(), host.left.wait())
            if not signals.stop.is_set():
                signals.begin_stop()
                if host.input_ended.is_set():
                    _log.info("standard input has ended", unanswered=host.unanswered)
                    await _first_of(host.all_answered(), signals.at_once.wait(), seconds=settings.listen.shutdown_grace)
            await drain(sidecar, settings, signals)
            await _first_of(host.all_answered(), signals.at_once.wait(), seconds=_LAST_ANSWERS_SECONDS)
            await _ended(talking)
    await stopped(signals)


async def _ended(talking: asyncio.Task[None]) -> None:
    """What fails because it is cut off here, such as a message on its way to the server, is no crash."""
    if talking.done() and not talking.cancelled() and (error := talking.exception()) is not None:
        _log.error("the MCP connection crashed", exc_info=error)
    talking.cancel()
    await asyncio.gather(talking, return_exceptions=True)


async def _first_of(*waits: Awaitable[object], seconds: float | None = None) -> None:
    """Return as soon as one of them has ended, or after `seconds`. A task among them is left running."""
    waiting = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for wait, given in zip(waiting, waits, strict=True):
        if wait is not given:
            wait.cancel()
