"""How the process takes signals, logs where nobody reads, and ends. Issue 13, section 7."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from sidecar.observe.log_filters import FloodLimit
from sidecar.observe.log_writer import LogWriter, QueuedHandler
from tests.fake_kserve import FakeKServe, succeed_when
from tests.test_commands import COMMAND, Served, served, settings
from tests.test_logs import _answers, _port_that_nobody_is_given

# --- signals ----------------------------------------------------------------------------------------------------------


async def test_a_hangup_drains_like_a_termination(kserve: FakeKServe, tmp_path: Path) -> None:
    async with served(settings(kserve, tmp_path)) as sidecar:
        kserve.script.append(succeed_when(release := asyncio.Event()))
        in_flight = asyncio.create_task(sidecar.generate())
        await kserve.seen(1)
        sidecar.process.send_signal(signal.SIGHUP)
        await sidecar.becomes("/readyz", 503)
        sidecar.process.send_signal(signal.SIGHUP)  # a terminal that has gone is in no hurry
        release.set()
        assert (await in_flight).structured_content["status"] == "completed"
        assert await sidecar.ended() == 0


def terminate(process: asyncio.subprocess.Process) -> None:
    """Without asyncio's own, which may reap the process before its watcher does and so lose the exit code."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM)


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
async def test_twenty_terminations_at_once_end_it_with_0(busy: bool, kserve: FakeKServe, tmp_path: Path) -> None:
    """They may arrive as one, which lets the runtime finish, or as several, which does not."""
    async with served(settings(kserve, tmp_path)) as sidecar:
        if busy:
            kserve.script.append(succeed_when(release := asyncio.Event()))
            call = asyncio.create_task(sidecar.generate())
            await kserve.seen(1)
        for _ in range(20):
            terminate(sidecar.process)
        if busy:
            release.set()
            await asyncio.gather(call, return_exceptions=True)
        assert await sidecar.ended() == 0


async def test_terminations_until_the_very_end_change_no_exit_code(kserve: FakeKServe, tmp_path: Path) -> None:
    async with served(settings(kserve, tmp_path)) as sidecar:
        async with asyncio.timeout(20):
            while sidecar.process.returncode is None:
                terminate(sidecar.process)
                await asyncio.sleep(0.001)
        assert await sidecar.ended() == 0


async def test_a_termination_while_it_starts_is_not_lost(kserve: FakeKServe, tmp_path: Path) -> None:
    """As process 1 of a container it would be, until a handler is there."""
    script = (
        "import os, signal\n"
        "from sidecar.process import StopSignals\n"
        "signals = StopSignals().install()\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "from sidecar.cli import main\n"
        "import asyncio\n"
        "from sidecar.config import read_settings\n"
        "from sidecar.serving import serve\n"
        "asyncio.run(serve(read_settings(os.environ), signals))\n"
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script], env=settings(kserve, tmp_path), timeout=30, check=False
    )
    assert done.returncode == 0


async def test_a_thread_that_never_ends_does_not_hold_the_exit() -> None:
    """On a stalled volume, or in a decoder: Python itself waits for such threads as it exits."""
    script = (
        "import asyncio, threading\n"
        "from sidecar.process import StopSignals, leave\n"
        "from sidecar.serving import stopped\n"
        "async def main():\n"
        "    asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)\n"
        "    await stopped(signals)\n"
        "signals = StopSignals().install()\n"
        "asyncio.run(main())\n"
        "leave(0)\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=subprocess.PIPE)
    assert process.stdout is not None
    async with asyncio.timeout(30):
        assert b"stopped" in await process.stdout.readline()
    began = time.monotonic()
    async with asyncio.timeout(10):
        assert await process.wait() == 0
    assert time.monotonic() - began < 5  # a second, and what a busy machine adds


# --- a log that nobody reads ------------------------------------------------------------------------------------------


@asynccontextmanager
async def logging_into(descriptor: int, environment: dict[str, str], command: str = "serve") -> AsyncIterator[Served]:
    """A sidecar whose standard error is `descriptor`, on a port chosen beforehand since the log does not tell it."""
    port = str(_port_that_nobody_is_given())
    process = await asyncio.create_subprocess_exec(
        *COMMAND, command, env={**environment, "LISTEN_PORT": port}, stderr=descriptor, stdin=subprocess.DEVNULL
    )
    sidecar = Served(process)
    sidecar.url = f"http://127.0.0.1:{port}"
    try:
        async with asyncio.timeout(20):
            while not await _answers(sidecar):
                await asyncio.sleep(0.02)
        yield sidecar
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_log_pipe_that_is_not_read_stops_neither_images_nor_the_exit(
    kserve: FakeKServe, tmp_path: Path
) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    while True:  # full before the sidecar has written a line
        try:
            os.write(writing, b"\n" * 4096)
        except BlockingIOError:
            break
    os.set_blocking(writing, True)
    try:
        async with logging_into(writing, settings(kserve, tmp_path, LOG_LEVEL="debug")) as sidecar:
            for _ in range(3):
                assert not (await sidecar.generate()).is_error
            sidecar.process.terminate()
            assert await sidecar.ended() == 0
    finally:
        os.close(writing)
        os.close(reading)


async def test_lines_that_cannot_be_written_are_counted(kserve: FakeKServe, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        async with logging_into(writing, settings(kserve, tmp_path)) as sidecar:
            await sidecar.generate()
            async with aiohttp.ClientSession() as session, session.get(f"{sidecar.url}/metrics") as response:
                (sample,) = [line for line in (await response.text()).splitlines() if line.startswith(DROPPED)]
            assert float(sample.split()[1]) >= 3
            sidecar.process.terminate()
            assert await sidecar.ended() == 0
    finally:
        os.close(writing)


DROPPED = "imagegen_log_lines_dropped_total "


class Pipe:
    """A pipe with a log writer at one end; at the other a test reads when it likes."""

    def __init__(self, max_bytes: int) -> None:
        self.reading, self._writing = os.pipe()
        self.writer = LogWriter(self._writing, max_bytes=max_bytes)
        self._logger = logging.getLogger("sidecar.logs")
        self._handler = QueuedHandler(self.writer)
        self._logger.addHandler(self._handler)

    def until(self, end: bytes) -> bytes:
        data = b""
        while not data.endswith(end):
            data += os.read(self.reading, 65536)
        return data

    def close(self) -> None:
        self._logger.removeHandler(self._handler)
        os.close(self._writing)
        os.close(self.reading)


@pytest.fixture
def pipe() -> Any:
    pipe = Pipe(max_bytes=200_000)
    yield pipe
    pipe.close()


def test_every_line_is_written_in_order_by_a_flush(pipe: Pipe) -> None:
    for number in range(5000):
        pipe.writer.put(str(number))
    written = pipe.until(b"4999\n")
    assert pipe.writer.flush(10)
    assert (written.split(), pipe.writer.dropped) == ([str(number).encode() for number in range(5000)], 0)


def test_a_full_queue_drops_counts_and_reports_once_its_reader_is_back(pipe: Pipe) -> None:
    for number in range(5000):
        pipe.writer.put(f"{number:0200d}")
    dropped = pipe.writer.dropped
    assert dropped > 3000
    assert not pipe.writer.flush(0.0)
    text = pipe.until(b"%d\n" % dropped)
    assert text.count(b"\n") == 5000 - dropped + 1
    assert text.splitlines()[-1].endswith(b"lines dropped: %d" % dropped)


def test_a_pipe_that_another_process_has_made_non_blocking_loses_nothing(pipe: Pipe) -> None:
    os.set_blocking(pipe._writing, False)
    for number in range(900):
        pipe.writer.put(f"{number:0200d}")
    assert (len(pipe.until(b"899\n").splitlines()), pipe.writer.dropped) == (900, 0)


def test_a_full_disk_is_survived() -> None:
    """Lines are lost, and counted, for as long as there is no room."""
    descriptor = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        os.write(descriptor, b"x")
    writer = LogWriter(descriptor)
    for _ in range(3):
        writer.put("no room")
        assert writer.flush(10)
    assert writer.dropped == 3
    os.close(descriptor)


# --- floods -----------------------------------------------------------------------------------------------------------


def line(event: str) -> logging.LogRecord:
    return logging.LogRecord("sidecar.guard", logging.WARNING, __file__, 1, {"event": event}, (), None)


def test_of_one_kind_a_burst_is_logged_and_then_one_a_second_that_tells_of_the_others() -> None:
    now = 0.0
    flood = FloodLimit(burst=2, per_second=1.0, now=lambda: now)
    assert [flood.filter(line("refused")) for _ in range(5)] == [True, True, False, False, False]
    assert flood.filter(line("another"))
    now = 1.0
    next_one: Any = line("refused")
    assert flood.filter(next_one)
    assert next_one.msg["left_out"] == 3


async def test_a_flood_of_refused_requests_leaves_few_lines(kserve: FakeKServe, tmp_path: Path) -> None:
    async with served(settings(kserve, tmp_path)) as sidecar:
        async with aiohttp.ClientSession() as session:
            for _ in range(300):
                async with session.post(f"{sidecar.url}/mcp", data=b"{") as response:
                    assert response.status == 400
        sidecar.process.terminate()
        assert await sidecar.ended() == 0
    refused = [json.loads(text) for text in sidecar.lines if "no JSON-RPC" in text]
    assert 20 <= len(refused) < 150
