"""The sidecar on standard input and output: what a host sends, and how it goes away. Issue 13, section 7."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fake_kserve import FakeKServe, succeed_when
from tests.malformed import MALFORMED
from tests.test_commands import COMMAND, HELLO, settings

ABOUT = "io.modelcontextprotocol"
META = {
    f"{ABOUT}/protocolVersion": "2026-07-28",
    f"{ABOUT}/clientCapabilities": {},
    f"{ABOUT}/clientInfo": {"name": "pipe", "version": "1"},
}
CALL = {"name": "generate_image", "arguments": {"prompt": "a cat", "result": "link"}}
LEGACY = (
    {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": HELLO},
    {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": CALL},
)
MODERN = ({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {**CALL, "_meta": META}},)


def lines(*messages: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(message).encode() + b"\n" for message in messages)


def images(tmp_path: Path) -> int:
    return len(list((tmp_path / "images").rglob("*.png")))


@asynccontextmanager
async def hosted(environment: dict[str, str], log: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """`stdio` as a host's child, its log in a file."""
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *COMMAND, "stdio", env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ended(process: asyncio.subprocess.Process) -> int:
    async with asyncio.timeout(20):
        return await process.wait()


STOPPED_AT_ONCE = """
import asyncio, os
from sidecar.config import read_settings
from sidecar.observe.logs import configure_logging
from sidecar.process import StopSignals
from sidecar.stdio import on_loopback, serve_stdio

settings = read_settings(os.environ)
configure_logging(settings.log)

async def main():
    signals = StopSignals()
    signals.begin_stop()
    await serve_stdio(on_loopback(settings), signals)

asyncio.run(main())
"""


async def test_a_stop_while_messages_are_on_their_way_is_no_crash(kserve: FakeKServe, tmp_path: Path) -> None:
    """As when a host that has gone sends SIGHUP during the start: its requests are still in the pipe."""
    pings = ({"jsonrpc": "2.0", "id": number, "method": "ping"} for number in range(2, 8))
    unread, output = os.pipe()
    os.close(unread)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", STOPPED_AT_ONCE),
        env=settings(kserve, tmp_path),
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.PIPE,
    )
    os.close(output)
    async with asyncio.timeout(30):
        _, log = await process.communicate(lines(LEGACY[0], *pings))
    assert (process.returncode, log.count(b"Traceback"), log.count(b"crashed")) == (0, 0, 0)
    assert b"stopped" in log


@pytest.mark.parametrize("end", [b"", b"\n"], ids=["no last line end", "ended"])
@pytest.mark.parametrize("messages", [LEGACY, MODERN], ids=["legacy", "modern"])
async def test_a_pipe_that_holds_a_request_gets_its_result(
    messages: tuple[dict[str, Any], ...], end: bytes, kserve: FakeKServe, tmp_path: Path
) -> None:
    """`printf … | mcp-image-sidecar stdio`: the end of the input is no cancellation."""
    kserve.script.append(succeed_when(release := asyncio.Event()))
    async with hosted(settings(kserve, tmp_path), tmp_path / "log") as process:
        talking = asyncio.create_task(process.communicate(lines(*messages).rstrip() + end))
        await kserve.seen(1)
        async with asyncio.timeout(20):
            while "standard input has ended" not in (tmp_path / "log").read_text():
                await asyncio.sleep(0.01)
        release.set()
        async with asyncio.timeout(20):
            output, _ = await talking
    answers = {answer["id"]: answer for line in output.splitlines() if "id" in (answer := json.loads(line))}
    assert sorted(answers) == [message["id"] for message in messages]
    result = answers[2]["result"]
    assert (process.returncode, result["structuredContent"]["status"], images(tmp_path)) == (0, "completed", 1)


async def test_a_subscription_that_never_ends_does_not_hold_a_pipe(kserve: FakeKServe, tmp_path: Path) -> None:
    wanted = {"notifications": {"toolsListChanged": True}, "_meta": META}
    listen = {"jsonrpc": "2.0", "id": 1, "method": "subscriptions/listen", "params": wanted}
    listing = {"jsonrpc": "2.0", "id": 2, "method": "tools/list", "params": {"_meta": META}}
    async with hosted(settings(kserve, tmp_path), tmp_path / "log") as process:
        async with asyncio.timeout(20):
            output, _ = await process.communicate(lines(listen, listing))
    assert process.returncode == 0
    assert 2 in [json.loads(line).get("id") for line in output.splitlines()]


async def test_a_cancelled_request_is_not_waited_for(kserve: FakeKServe, tmp_path: Path) -> None:
    kserve.script.append(succeed_when(release := asyncio.Event()))
    cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 2}}
    async with hosted(settings(kserve, tmp_path), tmp_path / "log") as process:
        assert process.stdin is not None
        process.stdin.write(lines(*LEGACY))
        await kserve.seen(1)
        process.stdin.write(lines(cancel))
        process.stdin.close()
        async with asyncio.timeout(20):
            while "draining" not in (tmp_path / "log").read_text():
                await asyncio.sleep(0.01)
        release.set()
        assert (await ended(process), images(tmp_path)) == (0, 1)


def close_input(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    process.stdin.close()


def close_output(process: asyncio.subprocess.Process) -> None:
    process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]


def close_both(process: asyncio.subprocess.Process) -> None:
    close_input(process)
    close_output(process)


def hang_up(process: asyncio.subprocess.Process) -> None:
    process.send_signal(signal.SIGHUP)


def hang_up_again_and_close(process: asyncio.subprocess.Process) -> None:
    """A terminal that goes away does all of it."""
    hang_up(process)
    close_both(process)
    hang_up(process)


def terminate(process: asyncio.subprocess.Process) -> None:
    process.terminate()


@pytest.mark.parametrize("leave", [close_input, close_output, close_both, hang_up, hang_up_again_and_close, terminate])
async def test_however_the_host_leaves_what_the_runtime_has_begun_is_stored(
    leave: Callable[[asyncio.subprocess.Process], None], kserve: FakeKServe, tmp_path: Path
) -> None:
    kserve.script.append(succeed_when(release := asyncio.Event()))
    async with hosted(settings(kserve, tmp_path), tmp_path / "log") as process:
        assert process.stdin is not None
        process.stdin.write(lines(*MODERN))
        await kserve.seen(1)
        leave(process)
        release.set()
        assert (await ended(process), images(tmp_path)) == (0, 1)
    assert "Traceback" not in (tmp_path / "log").read_text()


PARENT = """
import subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdin.write(sys.stdin.buffer.readline())
child.stdin.flush()
sys.stdin.read()
"""


async def test_the_death_of_its_parent_loses_no_image_that_was_begun(kserve: FakeKServe, tmp_path: Path) -> None:
    """The parent is killed; standard error, which the sidecar shares, reads to its end once the sidecar has gone."""
    kserve.script.append(succeed_when(release := asyncio.Event()))
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, *COMMAND, "stdio",
        env=settings(kserve, tmp_path), stdin=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert parent.stdin is not None
    assert parent.stderr is not None
    parent.stdin.write(lines(*MODERN))
    await kserve.seen(1)
    parent.kill()
    release.set()
    async with asyncio.timeout(20):
        log = (await parent.stderr.read()).decode()
        await parent.wait()
    assert (images(tmp_path), "stopped" in log, "Traceback" in log) == (1, True, False)


async def test_what_is_no_json_rpc_is_answered_and_logged_and_the_next_message_served(
    kserve: FakeKServe, tmp_path: Path
) -> None:
    too_long = b'{"jsonrpc":"2.0","id":1,"method":"' + b"plugh" * 100_000 + b'"}'
    sent = [*MALFORMED, (too_long, -32600)]
    ping = {"jsonrpc": "2.0", "id": 99, "method": "ping"}
    async with hosted(settings(kserve, tmp_path), tmp_path / "log") as process:
        async with asyncio.timeout(20):
            output, _ = await process.communicate(b"\n".join(line for line, _ in sent) + b"\n\n" + lines(ping))
    answers = [json.loads(line) for line in output.splitlines()]
    assert [(answer["id"], answer["error"]["code"]) for answer in answers[:-1]] == [(None, code) for _, code in sent]
    assert answers[-1] == {"jsonrpc": "2.0", "id": 99, "result": {}}
    logged = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["code"] for line in logged if "no JSON-RPC" in line["event"]] == [code for _, code in sent]
    assert "plugh" not in (tmp_path / "log").read_text()


async def test_a_host_that_reads_nothing_stalls_its_own_answers_alone(kserve: FakeKServe, tmp_path: Path) -> None:
    """Images are served, and a signal ends the process, while more than a pipe holds waits for the host."""
    listing = [{"jsonrpc": "2.0", "id": number, "method": "tools/list"} for number in range(2, 60)]
    reading, writing = os.pipe()
    with (tmp_path / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *COMMAND, "stdio", env=settings(kserve, tmp_path), stdin=subprocess.PIPE, stdout=writing, stderr=log
        )
    os.close(writing)
    try:
        assert process.stdin is not None
        process.stdin.write(lines(LEGACY[0], *listing, LEGACY[1] | {"id": 100}))
        await kserve.seen(1)
        process.terminate()
        assert (await ended(process), images(tmp_path)) == (0, 1)
    finally:
        os.close(reading)
        if process.returncode is None:
            process.kill()
            await process.wait()
