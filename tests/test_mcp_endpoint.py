"""`POST /mcp` as clients of every revision use it, and as clients that are broken or hostile do."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.conftest import ERAS, TOOL_NAMES, Sidecar, StartSidecar, metric_becomes, raw_tool_call
from tests.fake_kserve import FakeKServe, succeed_when

ACCEPT = {"Accept": "application/json, text/event-stream"}
HANDSHAKE_REVISIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")


def message(body: bytes) -> dict[str, Any]:
    """The last JSON-RPC message of an answer, from JSON or from an event stream."""
    text = body.decode()
    data = [line.removeprefix("data:") for line in text.splitlines() if line.startswith("data:") and line[5:].strip()]
    found: dict[str, Any] = json.loads(data[-1] if data else text)
    return found


async def post(sidecar: Sidecar, data: Any, **headers: str) -> tuple[int, bytes]:
    sent = {**ACCEPT, "Content-Type": "application/json", **headers}
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    response, answer = await sidecar.get("/mcp", method="POST", data=body, headers=sent)
    return response.status, answer


def request(method: str, params: Any = None) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, **({} if params is None else {"params": params})}


async def works(sidecar: Sidecar) -> None:
    """The server is alive: a good call succeeds."""
    for era in ERAS:
        assert not (await sidecar.generate(era, result="link")).is_error


@pytest.mark.parametrize("revision", HANDSHAKE_REVISIONS)
async def test_each_handshake_revision_is_answered_in_kind_without_a_session(revision: str, sidecar: Sidecar) -> None:
    hello = {"protocolVersion": revision, "capabilities": {}, "clientInfo": {"name": "old", "version": "1"}}
    status, body = await post(sidecar, request("initialize", hello))
    assert (status, message(body)["result"]["protocolVersion"]) == (200, revision)
    assert message(body)["result"]["serverInfo"]["name"] == "mcp-image-sidecar"
    version = {"MCP-Protocol-Version": revision} if revision >= "2025-06-18" else {}
    status, _ = await post(sidecar, {"jsonrpc": "2.0", "method": "notifications/initialized"}, **version)
    assert status == 202
    status, body = await post(sidecar, request("tools/list"), **version)
    assert [tool["name"] for tool in message(body)["result"]["tools"]] == TOOL_NAMES
    call = {"name": "generate_image", "arguments": {"prompt": "a cat", "result": "link"}}
    status, body = await post(sidecar, request("tools/call", call), **version)
    result = message(body)["result"]
    assert (status, result.get("isError", False)) == (200, False)
    assert "/images/" in result["content"][0]["text"]


async def test_the_stateless_revision_needs_no_handshake(sidecar: Sidecar) -> None:
    response, body = await sidecar.get("/mcp", method="POST", **raw_tool_call("auto", {"prompt": "a cat"}))
    result = message(body)["result"]
    assert (response.status, "Mcp-Session-Id" in response.headers) == (200, False)
    assert result["structuredContent"]["status"] == "completed"


async def test_the_server_can_be_discovered(sidecar: Sidecar) -> None:
    about = "io.modelcontextprotocol"
    meta = {f"{about}/protocolVersion": "2026-07-28", f"{about}/clientCapabilities": {}}
    status, body = await post(
        sidecar,
        request("server/discover", {"_meta": meta}),
        **{"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "server/discover"},
    )
    assert status == 200
    assert "2026-07-28" in message(body)["result"]["supportedVersions"]


async def test_any_replica_answers_any_request(start_sidecar: StartSidecar) -> None:
    one, other = await start_sidecar(), await start_sidecar()
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "old", "version": "1"}}
    assert (await post(one, request("initialize", hello)))[0] == 200
    status, body = await post(other, request("tools/list"), **{"MCP-Protocol-Version": "2025-06-18"})
    assert (status, "tools" in message(body)["result"]) == (200, True)


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT", "PATCH"])
async def test_only_post_is_answered(method: str, sidecar: Sidecar) -> None:
    response, _ = await sidecar.get("/mcp", method=method, headers=ACCEPT)
    assert (response.status, response.headers["Allow"]) == (405, "POST")


def tool_call(arguments: Any) -> dict[str, Any]:
    return request("tools/call", {"name": "generate_image", "arguments": arguments})


BROKEN: dict[str, Any] = {
    "nothing": b"",
    "no json": b"prompt=a+cat",
    "cut off": b'{"jsonrpc": "2.0", "id": 1, "meth',
    "no utf-8": b'{"jsonrpc":"2.0","id":1,"method":"\xff\xfe"}',
    "utf-16": json.dumps(request("ping")).encode("utf-16"),
    "a list": [request("ping")],
    "a number": 7,
    "null": None,
    "no version": {"id": 1, "method": "ping"},
    "deep": b"[" * 100_000,
    "deep arguments": b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"generate_image","arguments":'
    + b'{"a":' * 20_000
    + b"1"
    + b"}" * 20_003,
    "params a text": request("tools/call", "generate_image"),
    "arguments a list": tool_call(["a cat"]),
    "arguments a text": tool_call("a cat"),
    "name a number": request("tools/call", {"name": 7, "arguments": {}}),
    "no name": request("tools/call", {"arguments": {"prompt": "a cat"}}),
    "unknown method": request("images/paint", {}),
    "unknown tool": request("tools/call", {"name": "x" * 5000, "arguments": {}}),
    "huge number": b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"generate_image",'
    b'"arguments":{"prompt":"a cat","seed":1e400}}}',
    "many digits": b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"generate_image",'
    b'"arguments":{"prompt":"a cat","seed":' + b"9" * 5000 + b"}}}",
    "not a number": b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"generate_image",'
    b'"arguments":{"prompt":"a cat","guidance_scale":NaN}}}',
    "id an object": {"jsonrpc": "2.0", "id": {"a": 1}, "method": "ping"},
    "half a character": b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"generate_image",'
    b'"arguments":{"prompt":"a \\ud800 cat"}}}',
    "too large": b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":"' + b"a" * 300_000 + b'"}}',
}


@pytest.mark.parametrize("version", ["2025-06-18", "2026-07-28", "1999-01-01", None])
@pytest.mark.parametrize("name", BROKEN)
async def test_what_is_no_good_request_gets_a_clear_error(
    name: str, version: str | None, sidecar: Sidecar, kserve: FakeKServe
) -> None:
    headers = {"MCP-Protocol-Version": version} if version else {}
    if version == "2026-07-28":
        headers |= {"Mcp-Method": "tools/call", "Mcp-Name": "generate_image"}
    status, body = await post(sidecar, BROKEN[name], **headers)
    if name == "too large":
        assert (status, json.loads(body)) == (413, {"error": "The request body is larger than 262,144 bytes."})
    else:
        told = message(body)
        assert 200 <= status < 500
        assert "error" in told or told["result"]["isError"]
    for leak in (b"Traceback", b"site-packages", b'.py"'):
        assert leak not in body
    assert (kserve.instances, sidecar.stored()) == ([], [])
    await works(sidecar)


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("prompt", ["a 🐈 in the 雨", "a\x00cat", "</script><b>", "x" * 2000, "a\ncat\u202e"])
async def test_any_text_may_be_a_prompt(era: str, prompt: str, sidecar: Sidecar, kserve: FakeKServe) -> None:
    assert not (await sidecar.generate(era, prompt=prompt)).is_error
    assert kserve.instances[0]["prompt"] == prompt


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 400),
        ({"Accept": "text/html"}, 406),
        ({"Content-Type": "application/json", "Content-Length": "0"}, 400),
    ],
)
async def test_headers_that_do_not_fit_are_refused(headers: dict[str, str], status: int, sidecar: Sidecar) -> None:
    given = {"MCP-Protocol-Version": "2025-06-18", **headers}
    data = b"" if "Content-Length" in headers else request("ping")
    got, body = await post(sidecar, data, **given)
    assert got in (status, 415)
    assert b"Traceback" not in body


@pytest.mark.parametrize("era", ERAS)
async def test_a_caller_whose_connection_breaks_is_noticed(era: str, sidecar: Sidecar, kserve: FakeKServe) -> None:
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    first = asyncio.create_task(sidecar.generate(era, result="link"))
    await kserve.seen(1)
    waiting = asyncio.create_task(
        sidecar.get("/mcp", method="POST", **raw_tool_call(era, {"prompt": "nobody waits for this"}))
    )
    await metric_becomes(sidecar, 'imagegen_queue_depth{model="painter"}', 1)
    waiting.cancel()
    await metric_becomes(sidecar, 'imagegen_queue_depth{model="painter"}', 0)
    release.set()
    assert not (await first).is_error
    assert len(kserve.instances) == 1


async def test_a_body_that_breaks_off_leaves_nothing_behind(sidecar: Sidecar, kserve: FakeKServe) -> None:
    host, port = sidecar.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /mcp HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n"
    writer.write(head.encode() + b'{"jsonrpc":')
    await writer.drain()
    writer.close()
    await works(sidecar)
    response, _ = await sidecar.get("/drained")
    assert (response.status, len(kserve.instances)) == (200, 2)


async def test_a_request_id_is_given_back(sidecar: Sidecar, kserve: FakeKServe) -> None:
    response, _ = await sidecar.get("/livez", headers={"X-Request-ID": "abc-123"})
    assert response.headers["X-Request-ID"] == "abc-123"
    response, _ = await sidecar.get("/livez", headers={"X-Request-ID": "no good\tid" * 50})
    assert response.headers["X-Request-ID"].isalnum()


async def test_forty_clients_of_both_eras_at_once_are_all_served(start_sidecar: StartSidecar) -> None:
    sidecar = await start_sidecar(QUEUE_LIMIT="40", RUNTIME_CONCURRENCY="4")
    results = await asyncio.gather(*(sidecar.generate(ERAS[n % 2], result="link", seed=n) for n in range(40)))
    seeds = [result.structured_content["images"][0]["seed"] for result in results]
    assert seeds == list(range(40))


async def test_every_answer_names_its_request_event_streams_and_refusals_too(sidecar: Sidecar) -> None:
    named = {"X-Request-ID": "call-17"}
    kinds = set()
    for era in ERAS:
        call = raw_tool_call(era, {"prompt": "a cat", "result": "link"}, named)
        response, _ = await sidecar.get("/mcp", method="POST", **call)
        kinds.add(response.content_type)
        assert response.headers["X-Request-ID"] == "call-17"
    assert kinds == {"application/json", "text/event-stream"}
    for path, status in (("/livez", 200), ("/nowhere", 404), ("/mcp", 405)):
        response, _ = await sidecar.get(path, headers=named)
        assert (response.status, response.headers["X-Request-ID"]) == (status, "call-17")
