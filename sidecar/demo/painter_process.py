"""The painter in a process of its own, for `demo` and `stdio --demo`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

DEFAULTS = {"LOG_FORMAT": "console", "LOG_LEVEL": "warning", "RUNTIME_PROFILE": "diffusers-seed"}


def demo_environment(environment: Mapping[str, str], endpoint: str = "") -> dict[str, str]:
    """`environment` with the painter at `endpoint` as its only model; "" before the painter is there."""
    return {**DEFAULTS, **environment, "KSERVE_ENDPOINT": endpoint, "MODELS_FILE": ""}


@asynccontextmanager
async def painter() -> AsyncIterator[str]:
    """The painter as a child process; its model's URL. It ends with us: its standard input is our life line."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sidecar.demo.runtime", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for us, so that what is being painted can finish
    )  # fmt: skip
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the painter has no pipes")
    try:
        endpoint = (await asyncio.wait_for(process.stdout.readline(), 30)).decode().strip()
        if not endpoint:
            raise RuntimeError("the painter did not start")
        yield endpoint
    finally:
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 5)
        except TimeoutError:
            process.kill()
            await process.wait()
