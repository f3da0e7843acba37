"""The commands as a user, a kubelet and an MCP host run them: real processes."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import hypothesis
import pytest
from hypothesis import strategies
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from PIL import Image

from sidecar import __version__
from sidecar.clients import client_configurations, for_terminal, this_program
from sidecar.demo.painter import paint
from tests.conftest import ERAS, TOOL_NAMES
from tests.fake_kserve import FakeKServe, say, succeed_when
from tests.odd_store import Odd, at, odd

__all__ = ["odd"]

COMMAND = (sys.executable, "-m", "sidecar")


def settings(kserve: FakeKServe, tmp_path: Path, **more: str) -> dict[str, str]:
    return {
        **os.environ,
        "LISTEN_PORT": "0",
        "KSERVE_ENDPOINT": f"http://127.0.0.1:{kserve.server.port}/v1/models/painter",
        "STORAGE_PATH": str(tmp_path / "images"),
        **more,
    }


class Served:
    """`mcp-image-sidecar serve` as a process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.url = ""
        self.metrics_url: str | None = None
        self.lines: list[str] = []
        self._reading: asyncio.Task[None] | None = None

    async def listening(self) -> None:
        while not self.url:
            line = json.loads(await self._line())
            if line["event"] == "listening":
                self.url, self.metrics_url = line["url"], line["metrics"]
        self._reading = asyncio.create_task(self._rest())

    async def _line(self) -> str:
        assert self.process.stderr is not None
        line = (await self.process.stderr.readline()).decode()
        assert line, "the sidecar ended"
        self.lines.append(line)
        return line

    async def _rest(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.lines.append(line.decode())

    async def ended(self) -> int:
        async with asyncio.timeout(20):
            code = await self.process.wait()
            if self._reading is not None:
                await self._reading
        return code

    async def generate(self, **arguments: Any) -> Any:
        async with Client(f"{self.url}/mcp") as client:
            return await client.call_tool("generate_image", {"prompt": "a cat", "result": "link", **arguments})

    async def status(self, path: str) -> int:
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}{path}") as response:
            return response.status

    async def shows(self, sample: str) -> None:
        """Wait until /metrics has this line."""
        async with asyncio.timeout(30), aiohttp.ClientSession() as session:
            while True:
                async with session.get(f"{self.url}/metrics") as response:
                    if sample in (await response.text()).splitlines():
                        return

    async def becomes(self, path: str, status: int) -> None:
        async with asyncio.timeout(30):
            while await self.status(path) != status:
                await asyncio.sleep(0.02)


@asynccontextmanager
async def served(environment: dict[str, str], *before: str) -> AsyncIterator[Served]:
    """A running `serve`; `before` is a command that runs it, such as one that sets limits."""
    command = (*before, *COMMAND, "serve")
    process = await asyncio.create_subprocess_exec(*command, env=environment, stderr=subprocess.PIPE)
    sidecar = Served(process)
    try:
        await sidecar.listening()
        yield sidecar
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_on_a_signal_it_finishes_what_it_has_begun_with_the_doors_open(
    number: signal.Signals, kserve: FakeKServe, tmp_path: Path
) -> None:
    async with served(settings(kserve, tmp_path)) as sidecar:
        first = (await sidecar.generate()).structured_content["images"][0]["url"].removeprefix(sidecar.url)
        await sidecar.becomes("/readyz", 200)
        kserve.script.append(succeed_when(release := asyncio.Event()))
        in_flight = asyncio.create_task(sidecar.generate())
        queued = asyncio.create_task(sidecar.generate())
        await kserve.seen(2)
        await sidecar.shows('imagegen_queue_depth{model="painter"} 1.0')
        drained = asyncio.create_task(sidecar.status("/drained"))
        sidecar.process.send_signal(number)
        await sidecar.becomes("/readyz", 503)
        assert await sidecar.status("/livez") == 200
        assert await sidecar.status(first) == 200
        refused = await sidecar.generate()
        assert (refused.is_error, refused.content[0].text) == (
            True,
            "The sidecar is shutting down and takes no new generations.",
        )
        assert not drained.done()
        release.set()
        for result in await asyncio.gather(in_flight, queued):
            assert result.structured_content["status"] == "completed"
        assert await drained == 200
        assert await sidecar.ended() == 0
    assert len(list((tmp_path / "images").rglob("*.png"))) == 3


async def test_after_its_grace_it_ends_all_the_same(kserve: FakeKServe, tmp_path: Path) -> None:
    async with served(settings(kserve, tmp_path, SHUTDOWN_GRACE="100ms")) as sidecar:
        kserve.script.append(succeed_when(asyncio.Event()))
        in_flight = asyncio.create_task(sidecar.generate())
        await kserve.seen(1)
        sidecar.process.terminate()
        result = await in_flight
        assert (result.is_error, "stopped before the image was made" in result.content[0].text) == (True, True)
        assert await sidecar.ended() == 0


async def test_a_second_signal_ends_it_at_once(kserve: FakeKServe, tmp_path: Path) -> None:
    async with served(settings(kserve, tmp_path)) as sidecar:
        await sidecar.becomes("/readyz", 200)
        kserve.script.append(succeed_when(asyncio.Event()))
        in_flight = asyncio.create_task(sidecar.generate())
        await kserve.seen(1)
        sidecar.process.terminate()
        await sidecar.becomes("/readyz", 503)
        sidecar.process.terminate()
        assert await sidecar.ended() == 0
        await asyncio.gather(in_flight, return_exceptions=True)


async def test_a_second_signal_waits_for_no_store(odd: Odd, kserve: FakeKServe, tmp_path: Path) -> None:
    """Neither to hand over what waits, nor to record how things ended, nor to tidy up."""
    away = {**at(odd), "SPOOL_PATH": str(tmp_path / "spool"), "RESPONSE_BUDGET": "0.2s"}
    async with served(settings(kserve, tmp_path, **away)) as sidecar:
        await sidecar.becomes("/readyz", 200)
        kserve.script.append(succeed_when(asyncio.Event()))
        for prompt in ("running", "waiting"):
            told = await sidecar.generate(prompt=prompt)
            assert told.structured_content["job_id"]
        odd.answering.clear()
        sidecar.process.terminate()
        await sidecar.becomes("/readyz", 503)
        sidecar.process.terminate()
        async with asyncio.timeout(10):  # less than any call of the store may take
            assert await sidecar.ended() == 0
        odd.answering.set()


async def test_each_line_of_the_log_is_json_and_tells_no_prompt(kserve: FakeKServe, tmp_path: Path) -> None:
    kserve.script.extend([succeed_when(ready := asyncio.Event()), say(500, {"error": "xyzzy broke"})])
    ready.set()
    async with served(settings(kserve, tmp_path, LOG_LEVEL="info")) as sidecar:
        image = (await sidecar.generate(prompt="plugh\nplugh")).structured_content["images"][0]
        await sidecar.generate(prompt="plugh")
        sidecar.process.terminate()
        assert await sidecar.ended() == 0
    lines = [json.loads(line) for line in sidecar.lines]
    told = {line["event"]: line for line in lines}
    stored = told["image stored"]
    assert (stored["model"], stored["level"], stored["bytes"]) == ("painter", "info", image["size_bytes"])
    assert stored["seconds"] >= 0
    assert len(stored["request_id"]) == 16
    assert told["generation failed"]["reason"] == "runtime_failed"
    text = "".join(sidecar.lines)
    assert "plugh" not in text
    assert image["image_id"] not in text


async def test_prompts_are_logged_at_debug_on_one_bounded_line(kserve: FakeKServe, tmp_path: Path) -> None:
    async with served(settings(kserve, tmp_path, LOG_LEVEL="debug")) as sidecar:
        await sidecar.generate(prompt='plugh\n{"event": "forged"}')
        sidecar.process.terminate()
        await sidecar.ended()
    events = [json.loads(line) for line in sidecar.lines]
    assert [line["prompt"] for line in events if "prompt" in line] == ['plugh\n{"event": "forged"}']
    assert "forged" not in {line["event"] for line in events}


async def test_the_log_for_people(kserve: FakeKServe, tmp_path: Path) -> None:
    environment = settings(kserve, tmp_path, LOG_FORMAT="console")
    process = await asyncio.create_subprocess_exec(*COMMAND, "serve", env=environment, stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert b"listening" in await process.stderr.readuntil(b"listening")
    process.terminate()
    await process.communicate()
    assert process.returncode == 0


async def test_a_terminal_gets_the_log_for_people_and_the_gallerys_address(kserve: FakeKServe, tmp_path: Path) -> None:
    here, there = os.openpty()
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "serve", env=settings(kserve, tmp_path, LOG_FORMAT=""), stderr=there
    )
    os.close(there)
    said = b""
    while b"gallery" not in said or not said.endswith(b"\n"):
        said += await asyncio.to_thread(os.read, here, 4096)
    process.terminate()
    assert await process.wait() == 0
    os.close(here)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", said.decode())
    assert re.search(r"listening .*gallery=http://127\.0\.0\.1:\d+/ ", plain)
    assert '{"' not in plain


@pytest.mark.parametrize("era", ERAS)
async def test_a_host_that_starts_its_servers_itself(era: str, kserve: FakeKServe, tmp_path: Path) -> None:
    environment = settings(kserve, tmp_path)
    parameters = StdioServerParameters(command=sys.executable, args=["-m", "sidecar", "stdio"], env=environment)
    with (tmp_path / "log").open("w") as log:
        async with Client(stdio_client(parameters, errlog=log), mode=era) as client:
            assert [tool.name for tool in (await client.list_tools()).tools] == TOOL_NAMES
            told: list[str | None] = []

            async def on_progress(progress: float, total: float | None, message: str | None) -> None:
                told.append(message)

            result = await client.call_tool("generate_image", {"prompt": "a cat"}, progress_callback=on_progress)
            assert not result.is_error
            url = result.structured_content["images"][0]["url"]
            async with aiohttp.ClientSession() as session, session.get(url) as response:
                assert (response.status, response.content_type) == (200, "image/png")
    assert "Traceback" not in (tmp_path / "log").read_text()


async def test_a_host_that_goes_away_loses_no_image_that_was_begun(kserve: FakeKServe, tmp_path: Path) -> None:
    kserve.script.append(succeed_when(release := asyncio.Event()))
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "stdio", env=settings(kserve, tmp_path), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "host", "version": "1"}}
    for message in (
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {
            "jsonrpc": "2.0",
            "id": 2,
            "method": "tools/call",
            "params": {"name": "generate_image", "arguments": {"prompt": "a cat"}},
        },
    ):
        process.stdin.write(json.dumps(message).encode() + b"\n")
    await kserve.seen(1)
    process.stdin.close()
    release.set()
    async with asyncio.timeout(20):
        output, _ = await process.communicate()
    assert process.returncode == 0
    assert all(json.loads(line)["jsonrpc"] == "2.0" for line in output.splitlines())
    assert len(list((tmp_path / "images").rglob("*.png"))) == 1


def run(*arguments: str, said: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    everything = {**os.environ, **environment}
    command = [*COMMAND, *arguments]
    return subprocess.run(command, env=everything, input=said, capture_output=True, text=True, timeout=60, check=False)


def test_the_demonstration_makes_an_image_and_says_what_it_is(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("demo", "--once", "--clients", LISTEN_PORT=str(port), STORAGE_PATH=str(tmp_path))
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    said = done.stdout
    assert "not a diffusion model" in said
    assert "generating, " in said
    assert f":{port}/" not in said
    assert re.search(rf" Port {port} is taken, so it took \d+ \(LISTEN_PORT\)\.$", said, re.MULTILINE)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", said.splitlines()[-1])
    (mcp_url,) = re.findall(r"^MCP +(\S+)$", said, re.MULTILINE)
    assert for_terminal(client_configurations(mcp_url, this_program("stdio", "--demo"))) in said
    (png,) = tmp_path.rglob("*.png")
    with Image.open(png) as image:
        assert (image.size, f"/images/{png.name}" in said) == ((512, 512), True)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (512, 512), (2048, 64)])
def test_the_painter_paints_the_same_picture_again(width: int, height: int) -> None:
    first = paint("a cat 🐈 " * 100, 7, width, height)
    assert first == paint("a cat 🐈 " * 100, 7, width, height)
    assert first != paint("a cat 🐈 " * 100, 8, width, height)
    with Image.open(io.BytesIO(first)) as image:
        assert image.size == (width, height)


def test_a_sweep_by_hand_says_what_it_did_in_one_line(tmp_path: Path) -> None:
    done = run("sweep", STORAGE_PATH=str(tmp_path))
    (line,) = done.stdout.splitlines()
    report = json.loads(line)
    assert (done.returncode, report["deleted"], report["errors"]) == (0, 0, 0)


async def test_the_health_check_of_a_container(kserve: FakeKServe, tmp_path: Path) -> None:
    async with served(settings(kserve, tmp_path)) as sidecar:
        await sidecar.becomes("/readyz", 200)
        port = sidecar.url.rsplit(":", 1)[1]
        assert (await asyncio.to_thread(run, "healthcheck", LISTEN_PORT=port)).returncode == 0
        kserve.script.append(succeed_when(asyncio.Event()))
        sidecar.process.terminate()
        await sidecar.ended()
    done = await asyncio.to_thread(run, "healthcheck", LISTEN_PORT=port)
    assert (done.returncode, done.stdout, "not reachable" in done.stderr) == (1, "", True)


async def test_the_health_check_asks_the_port_of_the_probes_where_there_is_one(
    kserve: FakeKServe, tmp_path: Path
) -> None:
    async with served(settings(kserve, tmp_path, METRICS_LISTEN_PORT="0")) as sidecar:
        await sidecar.becomes("/readyz", 200)
        assert sidecar.metrics_url is not None
        port = sidecar.metrics_url.rsplit(":", 1)[1]
        with socket.create_server(("127.0.0.1", 0)) as full:  # a main port that answers nobody
            main = str(full.getsockname()[1])
            done = await asyncio.to_thread(run, "healthcheck", LISTEN_PORT=main, METRICS_LISTEN_PORT=port)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_setting_is_shown_with_what_it_is_set_to() -> None:
    done = run("config", IMAGE_TTL="7d", KSERVE_TOKEN="hush")
    assert done.returncode == 0
    assert "IMAGE_TTL = 7d\n    default 24h, seconds; allowed:" in done.stdout
    assert "KSERVE_TOKEN = ***" in done.stdout
    shown = json.loads(run("config", "--format", "json", IMAGE_TTL="7d").stdout)
    assert (shown["IMAGE_TTL"], shown["RESULT_MODE"]) == ("7d", "thumbnail")
    wrong = run("config", IMAGE_TTL="long")
    assert (wrong.returncode, "IMAGE_TTL = long" in wrong.stdout) == (2, True)


def test_version_and_unknown_commands() -> None:
    assert run("--version").stdout == f"mcp-image-sidecar {__version__}\n"
    assert (run("paint").returncode, run().returncode) == (2, 2)


HELLO = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "host", "version": "1"}}


async def spoken_to(environment: dict[str, str], *messages: dict[str, Any]) -> asyncio.subprocess.Process:
    """`stdio` as a process that has answered initialize, with its standard input left open."""
    pipe = subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "stdio", env=environment, stdin=pipe, stdout=pipe, stderr=pipe
    )
    assert process.stdin is not None
    assert process.stdout is not None
    for message in ({"id": 1, "method": "initialize", "params": HELLO}, *messages):
        process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
    assert json.loads(await process.stdout.readline())["id"] == 1
    return process


async def ended_by_itself(process: asyncio.subprocess.Process) -> int | str:
    """The exit code; its pipes stay open as long as a host may keep them."""
    try:
        async with asyncio.timeout(8):
            return await process.wait()
    except TimeoutError:
        return "still running"
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_host_may_end_its_server_by_a_signal_without_closing_its_input(
    number: signal.Signals, kserve: FakeKServe, tmp_path: Path
) -> None:
    process = await spoken_to(settings(kserve, tmp_path))
    process.send_signal(number)
    assert await ended_by_itself(process) == 0


async def test_a_host_that_has_gone_and_signals_need_not_wait_for_a_silent_runtime(
    kserve: FakeKServe, tmp_path: Path
) -> None:
    kserve.script.append(succeed_when(asyncio.Event()))
    call = {"name": "generate_image", "arguments": {"prompt": "a cat"}}
    process = await spoken_to(
        settings(kserve, tmp_path),
        {"method": "notifications/initialized"},
        {"id": 2, "method": "tools/call", "params": call},
    )
    await kserve.seen(1)
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.close()
    async with asyncio.timeout(30):
        while b"standard input has ended" not in await process.stderr.readline():
            pass
    process.terminate()
    assert await ended_by_itself(process) == 0


async def test_a_host_that_says_nothing_and_leaves_ends_its_server(kserve: FakeKServe, tmp_path: Path) -> None:
    done = await asyncio.to_thread(run, "stdio", said="", **settings(kserve, tmp_path))
    assert (done.returncode, done.stdout) == (0, "")
    assert "Traceback" not in done.stderr


async def test_rubbish_on_standard_input_is_survived(kserve: FakeKServe, tmp_path: Path) -> None:
    process = await spoken_to(settings(kserve, tmp_path))
    assert process.stdin is not None
    assert process.stdout is not None
    for rubbish in (b"not JSON\n", b"{}\n", b"\xff\xfe\n", b"[" * 5000 + b"\n", b"\n", b"null\n"):
        process.stdin.write(rubbish)
    process.stdin.write(b'{"jsonrpc":"2.0","id":99,"method":"ping"}\n')
    async with asyncio.timeout(30):
        while (answer := json.loads(await process.stdout.readline())).get("id") != 99:
            assert answer["jsonrpc"] == "2.0"
    process.stdin.close()
    assert await ended_by_itself(process) == 0


async def test_on_a_signal_with_nothing_to_do_it_ends_with_0(kserve: FakeKServe, tmp_path: Path) -> None:
    async with served(settings(kserve, tmp_path)) as sidecar:
        sidecar.process.terminate()
        assert await sidecar.ended() == 0


@pytest.mark.parametrize("says", [b"SSH-2.0-OpenSSH_9.9\r\n", b"", b"HTTP/1.1 teapot\r\n\r\n"])
def test_the_health_check_takes_a_stranger_on_the_port_for_what_it_is(says: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:

        def answer() -> None:
            connection, _ = stranger.accept()
            with connection:
                connection.sendall(says)
                connection.recv(4096)

        threading.Thread(target=answer, daemon=True).start()
        done = run("healthcheck", LISTEN_PORT=str(stranger.getsockname()[1]))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)


@pytest.mark.parametrize("host", ["0.0.0.0", "localhost", "::", "::1"])
async def test_the_health_check_finds_the_sidecar_wherever_it_listens(
    host: str, kserve: FakeKServe, tmp_path: Path
) -> None:
    if ":" in host and not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    async with served(settings(kserve, tmp_path, LISTEN_HOST=host)) as sidecar:
        port = sidecar.url.rsplit(":", 1)[1]
        await sidecar.becomes("/readyz", 200)  # where it says that it listens, it does
        done = await asyncio.to_thread(run, "healthcheck", LISTEN_PORT=port, LISTEN_HOST=host)
    assert (done.returncode, done.stderr) == (0, "")


async def test_a_sweep_by_hand_deletes_what_has_expired(kserve: FakeKServe, tmp_path: Path) -> None:
    given = settings(kserve, tmp_path, IMAGE_TTL="100ms", CLEANUP_INTERVAL="7d")
    async with served(given) as sidecar:
        (image,) = (await sidecar.generate()).structured_content["images"]
        await sidecar.becomes(f"/images/{image['image_id']}", 404)
        assert len(list((tmp_path / "images").rglob("*.png"))) == 1
        done = await asyncio.to_thread(run, "sweep", **given)
    report = json.loads(done.stdout)
    assert (done.returncode, report["deleted"], report["freed_bytes"] >= image["size_bytes"]) == (0, 1, True)
    assert list((tmp_path / "images").rglob("*.png")) == []


def test_a_sweep_of_a_store_in_trouble_fails_with_its_line_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = run("sweep", STORAGE_PATH=str(tmp_path / "file" / "images"))
    assert (done.returncode, json.loads(done.stdout)["errors"] > 0, "Traceback" in done.stderr) == (1, True, False)


async def test_an_interrupted_demonstration_ends_cleanly_and_leaves_no_painter_behind(tmp_path: Path) -> None:
    """The painter shares standard error, which reads to its end only once both have gone."""
    environment = {**os.environ, "LISTEN_PORT": "0", "STORAGE_PATH": str(tmp_path)}
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "demo", env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(20):
        while b"Calling generate_image" not in await process.stdout.readline():
            pass
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(20):
        _, said = await process.communicate()
    assert (process.returncode in (0, 130), b"Traceback" in said) == (True, False)


def test_the_demonstration_says_so_when_no_port_is_left(tmp_path: Path) -> None:
    with socket.socket() as taken:
        try:
            taken.bind(("127.0.0.1", 65535))
        except OSError:
            pytest.skip("somebody else has the last port")
        taken.listen()
        done = run("demo", "--once", LISTEN_PORT="65535", STORAGE_PATH=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("mcp-image-sidecar: LISTEN_PORT: cannot listen on 127.0.0.1:65535")
    assert "Traceback" not in done.stderr


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(
    strategies.text(max_size=200), strategies.integers(0, 2**32 - 1), strategies.sampled_from([64, 72, 96])
)
def test_the_painter_paints_whatever_it_is_told(prompt: str, seed: int, side: int) -> None:
    with Image.open(io.BytesIO(paint(prompt, seed, side, 64))) as image:
        image.load()
        assert (image.size, image.format) == ((side, 64), "PNG")
