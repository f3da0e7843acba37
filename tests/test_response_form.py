"""The form in which /mcp answers, by the client's Accept header, in both eras and at both spellings of the path."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conftest import ERAS, Sidecar, raw_tool_call

JSON, EVENTS = "application/json", "text/event-stream"


async def asked(sidecar: Sidecar, era: str, accept: str | None, path: str = "/mcp") -> tuple[int, str, bytes]:
    call = raw_tool_call(era, {"prompt": "a cat", "result": "link"})
    del call["headers"]["Accept"]
    headers = {**call["headers"], **({} if accept is None else {"Accept": accept})}
    skip = ["Accept"] if accept is None else []
    response, body = await sidecar.get(
        path, method="POST", json=call["json"], headers=headers, skip_auto_headers=skip, allow_redirects=False
    )
    return response.status, response.content_type, body


def result_in(content_type: str, body: bytes) -> dict[str, Any]:
    text = body.decode()
    message = json.loads(text.split("data: ")[-1] if content_type == EVENTS else text)
    result: dict[str, Any] = message["result"]
    return result


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(
    ("accept", "answered"),
    [
        (None, JSON),
        ("*/*", JSON),
        (JSON, JSON),
        ("application/*", JSON),
        (f"{JSON};q=0.9, */*;q=0.1", JSON),
        (f"{JSON}, {EVENTS};q=0", JSON),
        (f"{JSON}, {EVENTS}; q=0.000", JSON),
        (EVENTS, EVENTS),
        ("text/*", EVENTS),
        (f"{EVENTS}, {JSON};q=0", EVENTS),
        ("APPLICATION/JSON", JSON),
    ],
)
async def test_a_client_gets_the_one_form_it_accepts(
    era: str, accept: str | None, answered: str, sidecar: Sidecar
) -> None:
    status, content_type, body = await asked(sidecar, era, accept)
    assert (status, content_type) == (200, answered)
    assert result_in(content_type, body)["structuredContent"]["status"] == "completed"


@pytest.mark.parametrize("era", ERAS)
async def test_a_client_that_accepts_both_gets_what_it_got_before(era: str, sidecar: Sidecar) -> None:
    status, content_type, _ = await asked(sidecar, era, f"{JSON}, {EVENTS}")
    assert (status, content_type) == (200, JSON if era == "auto" else EVENTS)


@pytest.mark.parametrize("era", ERAS)
async def test_a_client_that_accepts_neither_is_refused(era: str, sidecar: Sidecar) -> None:
    status, _, _ = await asked(sidecar, era, "text/html;q=0, image/png")
    assert (status, sidecar.stored()) == (406, [])


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("path", ["/mcp/", "/mcp/?result=link"])
async def test_a_trailing_slash_is_the_same_endpoint(era: str, path: str, sidecar: Sidecar) -> None:
    status, content_type, body = await asked(sidecar, era, "*/*", path)
    assert (status, content_type) == (200, JSON)
    assert result_in(content_type, body)["structuredContent"]["status"] == "completed"
    client = sidecar.client(era)
    async with client:
        assert (await client.list_tools()).tools


async def test_an_error_keeps_its_status_for_a_client_of_event_streams(sidecar: Sidecar) -> None:
    response, body = await sidecar.get(
        "/mcp", method="POST", data=b"{", headers={"Accept": EVENTS, "Content-Type": JSON}
    )
    assert (response.status, json.loads(body)["error"]["code"]) == (400, -32700)
