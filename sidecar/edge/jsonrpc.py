"""What is no JSON-RPC message is refused here, in the same way over HTTP and on standard input.

The SDK's transports differ: one answers such a message with 202 and no word, another takes it for wrong parameters,
a third drops it. JSON-RPC 2.0, section 5.1: -32700 for what is no JSON, -32600 for what is no message; the id is null.
"""

from __future__ import annotations

from typing import Any

import pydantic_core
import structlog
from mcp_types import INVALID_REQUEST, PARSE_ERROR, ErrorData, JSONRPCError, JSONRPCMessage, jsonrpc_message_adapter
from pydantic import ValidationError

from sidecar.edge.asgi_bridge import ASGIApp, Message, Receive, Send
from sidecar.edge.bodies import MAX_BODY_BYTES

MAX_MESSAGE_BYTES = MAX_BODY_BYTES

_log = structlog.stdlib.get_logger("sidecar.jsonrpc")


class MalformedMessage(Exception):
    """The bytes are no JSON-RPC message. `answer` is what their sender is told; it repeats nothing of them."""

    def __init__(self, code: int, problem: str) -> None:
        super().__init__(problem)
        self.answer = JSONRPCError(jsonrpc="2.0", id=None, error=ErrorData(code=code, message=problem))


def parse_message(data: bytes) -> JSONRPCMessage:
    """One JSON-RPC message from its bytes. Logs and raises MalformedMessage."""
    try:
        return _parsed(data)
    except MalformedMessage as error:
        _log.warning("refused what is no JSON-RPC message", code=error.answer.error.code, problem=str(error))
        raise


def _parsed(data: bytes) -> JSONRPCMessage:
    if len(data) > MAX_MESSAGE_BYTES:
        raise MalformedMessage(INVALID_REQUEST, f"Invalid request: a message has at most {MAX_MESSAGE_BYTES} bytes.")
    try:
        message: Any = pydantic_core.from_json(data, allow_inf_nan=False)
    except ValueError as error:  # also for lone surrogates, which no text can be written with, and for endless nesting
        raise MalformedMessage(PARSE_ERROR, f"Parse error: {error}") from None
    if isinstance(message, list):
        raise MalformedMessage(INVALID_REQUEST, "Invalid request: batches are not supported; send one message.")
    if not isinstance(message, dict):
        raise MalformedMessage(INVALID_REQUEST, "Invalid request: a message is a JSON object.")
    if "method" in message and "id" in message and not _is_request_id(message["id"]):
        # the SDK would take it for a notification, which gets no answer
        raise MalformedMessage(INVALID_REQUEST, "Invalid request: the id of a request is a text or a whole number.")
    try:
        return jsonrpc_message_adapter.validate_python(message, by_name=False)
    except ValidationError:
        problem = 'Invalid request: neither a request nor a notification nor a response of "jsonrpc": "2.0".'
        raise MalformedMessage(INVALID_REQUEST, problem) from None


def _is_request_id(given: Any) -> bool:
    return isinstance(given, (str, int)) and not isinstance(given, bool)


def refusing_malformed(app: ASGIApp) -> ASGIApp:
    """An ASGI application before the SDK's that answers 400 to what is no JSON-RPC message.

    The bridge gives the whole body in one message (`edge/bodies.py` has read it).
    """

    async def checked(scope: Message, receive: Receive, send: Send) -> None:
        request = await receive()

        async def replay() -> Message:
            nonlocal request
            replayed, request = request, {}
            return replayed or await receive()

        try:
            if scope["method"] == "POST":
                parse_message(request["body"])
        except MalformedMessage as error:
            await _refuse(error, send)
        else:
            await app(scope, replay, send)

    return checked


async def _refuse(error: MalformedMessage, send: Send) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": as_line(error.answer)})


def as_line(message: JSONRPCMessage) -> bytes:
    """A message as JSON on one line, without a line end. An id that is null stays."""
    return message.model_dump_json(by_alias=True, exclude_unset=True).encode()
