"""A runtime that vanishes without a word: power loss, or a network that is cut. In a network namespace of its own."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace

import pytest
from structlog.testing import capture_logs

from sidecar.runtimes.http_session import Keepalive, client_session
from sidecar.runtimes.kserve_v1 import KServeV1Runtime
from tests.conftest import Sidecar, metric_becomes
from tests.real_parts import require

QUICK = Keepalive(idle=1, interval=1, count=2)
SILENT = """
import asyncio, sys
async def serve(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    print("asked", flush=True)
    await asyncio.Event().wait()
async def main():
    server = await asyncio.start_server(serve, sys.argv[1], 8080)
    print("listening", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@dataclass(frozen=True)
class Far:
    """A network namespace behind a pair of virtual interfaces. `link` is the near end; cut, nothing gets through."""

    namespace: str
    link: str
    address: str

    def cut(self) -> None:
        ip("link", "set", self.link, "down")


@contextmanager
def far_away() -> Iterator[Far]:
    name, net = f"far{secrets.token_hex(4)}", f"10.{secrets.randbelow(100) + 100}.{secrets.randbelow(256)}"
    far = Far(name, f"v{name}", f"{net}.2")
    ip("netns", "add", name)
    try:
        ip("link", "add", far.link, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("addr", "add", f"{net}.1/24", "dev", far.link)
        ip("link", "set", far.link, "up")
        ip("-n", name, "addr", "add", f"{far.address}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        yield far
    finally:
        subprocess.run(
            ["ip", "link", "del", far.link], check=False, capture_output=True
        )  # sockets may keep the other end
        ip("netns", "del", name)


@asynccontextmanager
async def silent_runtime(far: Far) -> AsyncIterator[asyncio.StreamReader]:
    """A server in the namespace that answers nothing; what it prints."""
    command = ("ip", "netns", "exec", far.namespace, sys.executable, "-c", SILENT, far.address)
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"listening\n"
        yield process.stdout
    finally:
        process.kill()
        await process.wait()


@pytest.mark.real
async def test_a_vanished_runtime_frees_its_slot_and_a_silent_one_keeps_it(sidecar: Sidecar) -> None:
    require(os.geteuid() == 0 and shutil.which("ip") is not None, "needs root and ip (Debian: iproute2)")
    lane = sidecar.service.lane(None)
    with far_away() as far:
        async with silent_runtime(far) as said, client_session(QUICK) as session:
            settings = replace(lane.settings, endpoint=f"http://{far.address}:8080/v1/models/painter")
            lane.runtime = KServeV1Runtime(settings, session, max_image_bytes=2**20, observer=lambda _event: None)
            call = asyncio.create_task(sidecar.generate(result="link"))
            assert await said.readline() == b"asked\n"

            done, _ = await asyncio.wait({call}, timeout=QUICK.limit + 2)
            assert not done  # its kernel answers while it paints
            await metric_becomes(sidecar, 'imagegen_in_flight{model="painter"}', 1)

            with capture_logs() as logs:
                far.cut()
                result = await asyncio.wait_for(call, 30)
        assert (result.is_error, "connection to the model's runtime broke" in result.content[0].text) == (True, True)
        await metric_becomes(sidecar, 'imagegen_in_flight{model="painter"}', 0)
        assert ("generation failed", "lost_answer") in [(line["event"], line.get("reason")) for line in logs]
