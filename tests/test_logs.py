"""What the log tells and keeps to itself, read from a sidecar in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.conftest import ERAS, raw_tool_call
from tests.fake_kserve import FakeKServe, say, succeed_when
from tests.test_commands import COMMAND, Served, served, settings

LONGEST = 10_000
"""Characters that one line of the log may have, whatever a caller sends."""


async def stopped(sidecar: Served) -> list[dict[str, Any]]:
    """End the sidecar; every line it has logged."""
    sidecar.process.terminate()
    assert await sidecar.ended() == 0
    return [json.loads(line) for line in sidecar.lines]


async def told(sidecar: Served, event: str) -> None:
    async with asyncio.timeout(30):
        while not any(event in line for line in sidecar.lines):
            await asyncio.sleep(0.01)


async def test_one_request_id_leads_from_the_caller_through_the_log_to_the_runtime(
    kserve: FakeKServe, tmp_path: Path
) -> None:
    ids = {"trace-1.a_B": True, "a b": False, "x" * 65: False, "é": False}
    asked = [(era, given, kept) for era in ERAS for given, kept in ids.items()]
    async with served(settings(kserve, tmp_path)) as sidecar, aiohttp.ClientSession() as session:
        for era, given, _ in asked:
            call = raw_tool_call(era, {"prompt": "a cat", "result": "link"}, {"X-Request-ID": given})
            async with session.post(f"{sidecar.url}/mcp", **call) as response:
                assert response.status == 200
                await response.read()
        lines = await stopped(sidecar)
    for event in ("image stored", "generation completed"):
        logged = [line["request_id"] for line in lines if line["event"] == event]
        assert logged == [headers["X-Request-ID"] for headers in kserve.headers]
        assert [found == given for found, (_, given, _) in zip(logged, asked, strict=True)] == [
            kept for *_, kept in asked
        ]


async def test_each_generations_end_names_its_model_seconds_and_request(kserve: FakeKServe, tmp_path: Path) -> None:
    kserve.script.extend([say(500, {"error": "broken"})])
    async with served(settings(kserve, tmp_path, QUEUE_LIMIT="0")) as sidecar:
        await sidecar.generate()
        await sidecar.generate()
        kserve.script.append(succeed_when(release := asyncio.Event()))
        slow = asyncio.create_task(sidecar.generate())
        await kserve.seen(3)
        await sidecar.generate()
        release.set()
        await slow
        lines = await stopped(sidecar)
    ends = [line for line in lines if line["event"].startswith("generation ")]
    assert [(line["event"], line["reason"]) for line in ends] == [
        ("generation failed", "runtime_failed"),
        ("generation completed", None),
        ("generation rejected", "queue_full"),
        ("generation completed", None),
    ]
    assert all(line["model"] == "painter" and line["seconds"] >= 0 for line in ends)
    assert len({line["request_id"] for line in ends}) == 4


async def test_nothing_a_caller_wrote_is_logged_at_info(kserve: FakeKServe, tmp_path: Path) -> None:
    """Not even where something goes wrong, which is when texts like to slip into messages."""
    kserve.script.append(say(400, {"error": "Prediction failed: no token for 'plugh'"}))
    async with served(settings(kserve, tmp_path)) as sidecar, aiohttp.ClientSession() as session:
        await sidecar.generate(prompt="plugh", negative_prompt="plugh")
        await sidecar.generate(prompt="plugh", plugh="plugh")
        await sidecar.generate(prompt="plugh", model="plugh")
        for path in ("/plugh", "/images/plugh?plugh", "/metrics/runtime?model=plugh"):
            async with session.get(f"{sidecar.url}{path}") as response:
                assert response.status in (400, 404)
        for body in (b"plugh", b'{"jsonrpc":"2.0","id":1,"method":"plugh"}', b'{"plugh":' * 10_000):
            async with session.post(f"{sidecar.url}/mcp", data=body) as response:
                assert response.status in range(400, 500)
        lines = await stopped(sidecar)
    assert [line for line in lines if "plugh" in json.dumps(line)] == []


@pytest.mark.parametrize("era", ERAS)
async def test_a_prompt_that_the_runtime_repeats_after_its_caller_left_is_not_logged(
    era: str, kserve: FakeKServe, tmp_path: Path
) -> None:
    release = asyncio.Event()

    async def refuse(request: Any, instance: dict[str, Any]) -> Any:
        await release.wait()
        return await say(400, {"error": f"Prediction failed: cannot draw {instance['prompt']!r}"})(request, instance)

    kserve.script.append(refuse)
    async with served(settings(kserve, tmp_path)) as sidecar:
        async with aiohttp.ClientSession() as session:
            call = asyncio.create_task(_posted(session, sidecar, raw_tool_call(era, {"prompt": "plugh"})))
            await kserve.seen(1)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        await sidecar.shows('imagegen_http_requests_total{method="POST",route="/mcp",status="499"} 1.0')
        release.set()
        await told(sidecar, "no image came for a caller that had left")
        lines = await stopped(sidecar)
    assert [line for line in lines if "plugh" in json.dumps(line)] == []


async def _posted(session: aiohttp.ClientSession, sidecar: Served, call: dict[str, Any]) -> None:
    async with session.post(f"{sidecar.url}/mcp", **call) as response:
        await response.read()


@pytest.mark.parametrize("level", ["info", "debug"])
async def test_the_runtimes_token_is_never_logged(level: str, kserve: FakeKServe, tmp_path: Path) -> None:
    kserve.script.append(say(401, {"error": "I do not know Bearer hush-hush-hush"}))
    kserve.script.append(say(500, {"error": "Authorization: Bearer hush-hush-hush"}))
    given = settings(kserve, tmp_path, LOG_LEVEL=level, KSERVE_TOKEN="hush-hush-hush")
    async with served(given) as sidecar:
        answers = [await sidecar.generate() for _ in range(3)]
        lines = await stopped(sidecar)
    assert [answer.is_error for answer in answers] == [True, True, False]
    assert kserve.headers[0]["Authorization"] == "Bearer hush-hush-hush"
    assert "hush-hush" not in json.dumps(lines) + "".join(answer.model_dump_json() for answer in answers)


async def test_no_line_grows_with_what_a_caller_sends(kserve: FakeKServe, tmp_path: Path) -> None:
    long = "plugh " * 40_000
    kserve.script.append(say(500, {"error": long}))
    async with served(settings(kserve, tmp_path, LOG_LEVEL="debug")) as sidecar, aiohttp.ClientSession() as session:
        await sidecar.generate()
        for arguments in ({"prompt": long}, {"prompt": "x", long: 1}, {"prompt": "x", "seed": [long]}):
            await sidecar.generate(**arguments)
        for headers in ({"Host": "h" * 4000}, {"Origin": "http://" + "o" * 4000}):
            async with session.post(f"{sidecar.url}/mcp", data=b"{}", headers=headers) as response:
                assert response.status in (403, 421)
        async with session.post(f"{sidecar.url}/mcp", data=b'{"a":' * 40_000) as response:
            assert response.status in range(400, 500)
        await stopped(sidecar)
    assert max(map(len, sidecar.lines)) < LONGEST


async def test_what_is_no_http_leaves_no_traceback_in_the_log(kserve: FakeKServe, tmp_path: Path) -> None:
    """Port scanners and TLS to a plain port are daily bread."""
    async with served(settings(kserve, tmp_path)) as sidecar:
        host, port = sidecar.url.removeprefix("http://").split(":")
        for raw in (b"\x16\x03\x01\x02\x00\x01", b"GET /plugh HTTP/9.9\r\n\r\n", b"plugh\r\n" * 3000):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(raw)
            writer.write_eof()
            async with asyncio.timeout(30):
                await reader.read()
            writer.close()
            assert await sidecar.status("/livez") == 200
        await stopped(sidecar)
    text = "".join(sidecar.lines)
    assert ("Traceback" in text, "plugh" in text) == (False, False)


@asynccontextmanager
async def logging_to(file: Path, environment: dict[str, str]) -> AsyncIterator[Served]:
    """A sidecar whose log is not JSON, on a port chosen beforehand since the log is not there to tell it."""
    port = str(_port_that_nobody_is_given())
    with file.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *COMMAND, "serve", env={**environment, "LISTEN_PORT": port}, stderr=log
        )
    sidecar = Served(process)
    sidecar.url = f"http://127.0.0.1:{port}"
    try:
        async with asyncio.timeout(20):
            while not await _answers(sidecar):
                await asyncio.sleep(0.02)
        yield sidecar
        process.terminate()
        assert await sidecar.ended() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _port_that_nobody_is_given() -> int:
    """Free, and below those that the system gives to others while this one is starting."""
    while True:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", random.randint(20_000, 32_000))) as probe:
            return int(probe.getsockname()[1])


async def _answers(sidecar: Served) -> bool:
    with contextlib.suppress(aiohttp.ClientConnectorError):
        return await sidecar.status("/livez") == 200
    return False


async def test_the_log_for_people_cannot_be_forged_by_a_prompt(kserve: FakeKServe, tmp_path: Path) -> None:
    """A line feed would start a line of its own, an escape sequence would command the reader's terminal."""
    given = settings(kserve, tmp_path, LOG_LEVEL="debug", LOG_FORMAT="console")
    async with logging_to(tmp_path / "log", given) as sidecar:
        assert not (await sidecar.generate(prompt="plugh\n2026-01-01 [error] forged\r\x1b[2J\x9b2J")).is_error
    text = (tmp_path / "log").read_text()
    assert "plugh" in text
    assert [line for line in text.splitlines() if line.startswith("2026-01-01 [error] forged")] == []
    assert ("\x1b[2J" in text, "\x9b" in text) == (False, False)


async def test_a_damaged_file_is_told_once_and_without_the_key_to_its_image(kserve: FakeKServe, tmp_path: Path) -> None:
    async with served(settings(kserve, tmp_path)) as sidecar, aiohttp.ClientSession() as session:
        call = raw_tool_call("auto", {"prompt": "a cat", "result": "link"}, {})
        async with session.post(f"{sidecar.url}/mcp", **call) as response:
            assert response.status == 200
        (place,) = tmp_path.rglob("*.png")
        place.write_bytes(b"another")
        async with asyncio.timeout(30):
            answers: list[int] = []
            while answers.count(404) < 5:
                async with session.get(f"{sidecar.url}/images/{place.stem}") as response:
                    answers.append(response.status)
                await asyncio.sleep(0.05)
        lines = await stopped(sidecar)
    (line,) = [line for line in lines if line["event"] == "a file of the store is damaged"]
    assert place.stem not in json.dumps(lines)
    assert line["key"].startswith(f"images/{place.parent.name}/{place.stem[:9]}…")
    assert line["reason"] == "not a file of the size that its record says"


async def test_a_good_day_leaves_no_errors_in_the_log(kserve: FakeKServe, tmp_path: Path) -> None:
    async with logging_to(tmp_path / "log", settings(kserve, tmp_path, LOG_LEVEL="error")) as sidecar:
        assert not (await sidecar.generate()).is_error
    assert (tmp_path / "log").read_text() == ""
