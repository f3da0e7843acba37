"""What is no JSON-RPC message, over HTTP: the same answers as on standard input (test_stdio). Issue 13, section 7."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.conftest import Sidecar, raw_tool_call
from tests.malformed import MALFORMED

REVISIONS = ("2025-06-18", "2026-07-28")


@pytest.mark.parametrize("revision", REVISIONS)
async def test_what_is_no_json_rpc_message_is_refused_alike_in_both_eras(revision: str, sidecar: Sidecar) -> None:
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": revision,
    }
    answers = []
    for body, _ in MALFORMED:
        response, data = await sidecar.get("/mcp", method="POST", data=body, headers=headers)
        answer = json.loads(data)
        answers.append((response.status, response.content_type, answer["id"], answer["error"]["code"]))
    assert answers == [(400, "application/json", None, code) for _, code in MALFORMED]


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_a_message_that_comes_in_pieces_is_one(era: str, sidecar: Sidecar) -> None:
    call = raw_tool_call(era, {"prompt": "a cat", "result": "link"})
    body = json.dumps(call.pop("json")).encode()

    async def pieces() -> Any:
        for start in range(0, len(body), 7):
            yield body[start : start + 7]
            await asyncio.sleep(0)

    headers = {**call["headers"], "Content-Type": "application/json"}
    response, data = await sidecar.get("/mcp", method="POST", data=pieces(), headers=headers)
    assert (response.status, b'"completed"' in data) == (200, True)


@pytest.mark.parametrize("revision", REVISIONS)
async def test_a_message_that_is_too_large_is_told_so(revision: str, sidecar: Sidecar) -> None:
    headers = {"Content-Type": "application/json", "MCP-Protocol-Version": revision}
    response, _ = await sidecar.get("/mcp", method="POST", data=b" " * 300_000, headers=headers)
    assert response.status == 413


async def said(sidecar: Sidecar, raw: bytes) -> bytes:
    host, port = sidecar.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(raw)
    writer.write_eof()
    async with asyncio.timeout(30):
        answer = await reader.read()
    writer.close()
    return answer


RAW = {
    "a page": b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    "a probe": b"GET /livez HTTP/1.0\r\n\r\n",
    "nothing there": b"GET /nothing HTTP/1.0\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01",
    "no version": b"GET / HTTP/9\r\n\r\n",
    "a method that is none": b"G\xffT / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a long head": b"GET / HTTP/1.1\r\nA: " + b"y" * 9000 + b"\r\n\r\n",
    "chunks that are none": b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a body cut off": b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{",
}


@pytest.mark.parametrize("raw", RAW.values(), ids=RAW)
async def test_no_answer_names_python_or_aiohttp(raw: bytes, sidecar: Sidecar) -> None:
    """Also none that aiohttp makes itself for what is no HTTP."""
    answer = await said(sidecar, raw)
    head = answer.partition(b"\r\n\r\n")[0].lower()
    assert (b"python" in head, b"aiohttp" in head) == (False, False)
    assert not head or b"\r\nserver: mcp-image-sidecar" in head
