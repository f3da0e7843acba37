"""Answers each MCP request in a form its client accepts: one JSON body or an event stream.

The SDK demands `Accept: application/json, text/event-stream` (Streamable HTTP, "Sending Messages to the Server"), which
curl, n8n and others do not send. A client that names one of the two gets that one; `*/*` and no header mean JSON.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sidecar.edge.asgi_bridge import ASGIApp, Message, Receive, Send

_JSON, _EVENTS = b"application/json", b"text/event-stream"
_JSON_RANGES = frozenset({_JSON, b"application/*"})
_EVENT_RANGES = frozenset({_EVENTS, b"text/*"})
_REFUSED = re.compile(rb"q=0(?:\.0{0,3})?")
_BOTH = _JSON + b", " + _EVENTS


@dataclass(frozen=True, slots=True)
class ResponseForm:
    """An ASGI application in front of two: `json` answers with one body, `events` as the SDK sees fit."""

    json: ASGIApp
    events: ASGIApp

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        ranges = _ranges(scope)
        named_json, named_events, anything = ranges & _JSON_RANGES, ranges & _EVENT_RANGES, b"*/*" in ranges
        if named_events and (named_json or anything):
            await self.events(_accepting(scope, _BOTH), receive, send)
        elif named_events:
            await self.events(_accepting(scope, _BOTH), receive, _AsEvents(send).send)
        elif named_json or anything or not ranges:
            await self.json(_accepting(scope, _JSON if named_json else _BOTH), receive, send)
        else:
            await self.events(scope, receive, send)  # which says what is allowed


def _ranges(scope: Any) -> frozenset[bytes]:
    """The media ranges of the Accept header without their parameters (RFC 9110, 12.5.1); refused ones left out."""
    given = b",".join(value for name, value in scope["headers"] if name == b"accept")
    parts = (part.replace(b" ", b"").lower().partition(b";") for part in given.split(b","))
    return frozenset(name for name, _, parameters in parts if name and not _REFUSED.fullmatch(parameters))


def _accepting(scope: Any, media_types: bytes) -> Any:
    others = [(name, value) for name, value in scope["headers"] if name != b"accept"]
    return {**scope, "headers": [*others, (b"accept", media_types)]}


class _AsEvents:
    """Turns a successful JSON answer into an event stream of one message."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._body: list[bytes] | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._send(self._started(message))
        elif self._body is None:
            await self._send(message)
        else:
            self._body.append(message.get("body", b""))
            if not message.get("more_body", False):
                event = b"event: message\ndata: " + b"".join(self._body) + b"\n\n"
                await self._send({**message, "body": event})

    def _started(self, message: Message) -> Message:
        headers = list(message.get("headers", ()))
        is_json = any(name.lower() == b"content-type" and value.startswith(_JSON) for name, value in headers)
        if message["status"] != 200 or not is_json:
            return message
        self._body = []
        kept = [(name, value) for name, value in headers if name.lower() not in (b"content-type", b"content-length")]
        return {**message, "headers": [*kept, (b"content-type", _EVENTS)]}
