"""A KServe v1 server on a free port that answers recorded shapes and misbehaves when told to."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from tests.pictures import picture

Behaviour = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


class FakeKServe:
    """One model, `painter`. `script` holds behaviours for the coming predicts; after it, every predict succeeds."""

    model = "painter"

    def __init__(self) -> None:
        self.server: Any = None
        self.instances: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.script: deque[Behaviour] = deque()
        self.readiness: tuple[int, Any] = (200, {"name": self.model, "ready": True})
        self.silent_until: asyncio.Event | None = None  # a synchronous predict blocks the probes too
        self.metrics_stall_until: asyncio.Event | None = None
        self.in_flight = 0
        self.most_in_flight = 0
        self._changed = asyncio.Condition()
        self.app = web.Application(client_max_size=2**24)
        self.app.router.add_get(f"/v1/models/{self.model}", self._ready)
        self.app.router.add_post(f"/v1/models/{self.model}:predict", self._predict)
        self.app.router.add_get("/metrics", self._metrics)

    async def seen(self, count: int) -> None:
        """Wait until `count` predicts have arrived."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.instances) >= count)

    async def idle(self) -> None:
        """Wait until no predict is being answered."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.in_flight == 0)

    async def _ready(self, _request: web.Request) -> web.Response:
        if self.silent_until is not None:
            await self.silent_until.wait()
        status, body = self.readiness
        return web.json_response(body, status=status)

    async def _metrics(self, _request: web.Request) -> web.Response:
        if self.metrics_stall_until is not None:
            await self.metrics_stall_until.wait()
        return web.Response(
            text="# HELP request_predict_seconds s\n# TYPE request_predict_seconds gauge\nrequest_predict_seconds 1\n"
        )

    async def _predict(self, request: web.Request) -> web.StreamResponse:
        instance = (await request.json())["instances"][0]
        async with self._changed:
            self.instances.append(instance)
            self.headers.append(dict(request.headers))
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            self._changed.notify_all()
        try:
            behaviour = self.script.popleft() if self.script else succeed()
            return await behaviour(request, instance)
        finally:
            async with self._changed:
                self.in_flight -= 1
                self._changed.notify_all()


def answer(data: bytes, form: str = "PNG") -> dict[str, Any]:
    """The v1 answer that carries `data`."""
    image = {"format": form, "b64": base64.b64encode(data).decode()}
    return {"predictions": [{"model_name": "painter", "prompt": "…", "image": image}]}


def succeed(data: bytes | None = None) -> Behaviour:
    async def behaviour(_request: web.Request, instance: dict[str, Any]) -> web.StreamResponse:
        width, height = instance.get("width", 64), instance.get("height", 64)
        return web.json_response(answer(picture(width, height) if data is None else data))

    return behaviour


def succeed_when(event: asyncio.Event, data: bytes | None = None) -> Behaviour:
    """Succeed as soon as `event` is set, like a runtime that takes its time."""

    async def behaviour(request: web.Request, instance: dict[str, Any]) -> web.StreamResponse:
        await event.wait()
        return await succeed(data)(request, instance)

    return behaviour


def say(status: int, body: Any, headers: dict[str, str] | None = None) -> Behaviour:
    """Answer JSON, or text where `body` is a str."""

    async def behaviour(_request: web.Request, _instance: dict[str, Any]) -> web.StreamResponse:
        text = body if isinstance(body, str) else json.dumps(body)
        kind = "text/html" if isinstance(body, str) else "application/json"
        return web.Response(status=status, text=text, content_type=kind, headers=headers)

    return behaviour


def cut_off(after: int) -> Behaviour:
    """Die in the middle of the answer."""

    async def behaviour(request: web.Request, instance: dict[str, Any]) -> web.StreamResponse:
        body = json.dumps(answer(picture(256, 256, noise=True))).encode()
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(body))})
        await response.prepare(request)
        await response.write(body[:after])
        assert request.transport is not None
        request.transport.abort()
        return response

    return behaviour


def flood(size: int) -> Behaviour:
    """Answer far more than an image, without saying how much."""

    async def behaviour(request: web.Request, _instance: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(b'{"predictions":[{"image":{"b64":"')
        chunk = b"A" * 2**20
        try:
            for _ in range(size // len(chunk)):
                await response.write(chunk)
        except ConnectionError:
            pass
        return response

    return behaviour
