"""A store in memory that misbehaves when it is told to, in ways that a real one cannot be brought to."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web

from sidecar.config import read_settings
from sidecar.events import Event
from sidecar.ports import SystemClock
from sidecar.storages.opening import opened_store
from sidecar.storages.s3 import S3Storage


@asynccontextmanager
async def store_of(
    settings: dict[str, str],
    spool: Path,
    observer: Callable[[Event], None] = lambda event: None,
    *,
    sends: bool = True,
) -> AsyncIterator[S3Storage]:
    given = read_settings({"STORAGE_PATH": str(spool), "SPOOL_PATH": str(spool), **settings}).storage
    async with opened_store(given, clock=Hasty(), observer=observer, sends=sends) as store:
        assert isinstance(store, S3Storage)
        yield store


class Hasty(SystemClock):
    """Waits for nothing for long."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.05))


class Odd:
    """A store in memory that does well, unless it is told to do otherwise."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.marks: dict[str, str] = {}
        self.modified: dict[str, str] = {}  # what GET and HEAD say, not what listings do
        self.headers: dict[str, str] = {}
        self.refused: set[str] = set()
        self.unreadable: set[str] = set()
        self.loses: set[str] = set()  # what is done and not acknowledged
        self.undeletable: set[str] = set()
        self.puts: list[str] = []
        self.breaks_off = False
        self.cut_off = 0  # so many GETs of images end in the middle
        self.unlisted: set[str] = set()  # parts of the keys that listings leave out
        self.endless: set[str] = set()  # parts of the keys whose objects do not end
        self.given_endlessly = 0
        self.is_a_web_page = False
        self.is_full = False
        self.conflicts = 0
        self.deletions: list[str] = []
        self.on_get: dict[str, Callable[[], object]] = {}
        self.on_delete: dict[str, Callable[[], Awaitable[object]]] = {}  # awaited before the next one of this key
        self.on_kept: Callable[[str], object] = lambda key: None
        self.giving = asyncio.Event()  # of images, to those who GET them
        self.giving.set()
        self.read_at_once = self.most_read_at_once = 0
        self.going_on = asyncio.Event()
        self.going_on.set()
        self.stalled = {""}  # parts of the keys whose PUTs wait for it
        self.asked = asyncio.Event()
        self.answering = asyncio.Event()
        self.answering.set()
        self.url = ""
        self.date: Callable[[], datetime | None] = lambda: datetime.now(UTC)

    async def date_answers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Stores date their answers by their own clock; some proxies take the date away."""
        date = self.date()
        response.headers["Date"] = "" if date is None else format_datetime(date, usegmt=True)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body, key = await request.read(), request.path.removeprefix("/pictures/")
        await self.answering.wait()
        if self.is_full:
            return web.Response(status=403, text="<Error><Code>QuotaExceeded</Code></Error>")
        if "list-type" in request.query:
            return self._list(request.query["prefix"], request.query.get("start-after", ""))
        if self.is_a_web_page and request.method != "PUT":
            return web.Response(status=404, text="<p>Nothing here<br>", content_type="text/html")
        if request.method == "PUT":
            return await self._put(request, key, body)
        if request.method in ("DELETE", "POST"):
            if key in self.on_delete:
                await self.on_delete.pop(key)()
            named = re.findall(r"<Key>([^<]+)</Key>", body.decode())
            if any(part in one for part in self.undeletable for one in [key, *named]):
                return web.Response(status=400, text="<Error><Code>InvalidRequest</Code></Error>")
            for gone in [key, *named]:
                self.kept.pop(gone, None)
                self.deletions.append(gone)
            return web.Response()
        return await self._read(request, key)

    async def _read(self, request: web.Request, key: str) -> web.StreamResponse:
        if self.breaks_off:
            return await self._break_off(request)
        self.on_get.pop(key, lambda: None)()
        if any(part in key for part in self.unreadable):
            return web.Response(status=400, text="<Error><Code>InvalidRequest</Code></Error>")
        if key not in self.kept:
            return web.Response(status=404, text="<Error><Code>NoSuchKey</Code></Error>")
        about = {"ETag": '"one"', "Last-Modified": self.modified.get(key, "Thu, 01 Jan 2026 00:00:00 GMT")}
        mark = {"x-amz-meta-mark": self.marks[key]} if key in self.marks else {}
        if any(part in key for part in self.endless):
            return await self._never_end(request, about)
        if request.method == "GET" and key.endswith(".png"):
            await self._give()
            if self.cut_off:
                self.cut_off -= 1
                return await self._break_off(request, len(self.kept[key]))
        return self._part(request, key, {**about, **mark})

    def _part(self, request: web.Request, key: str, headers: dict[str, str]) -> web.Response:
        """What a Range asks for, or all of it."""
        data, asked = self.kept[key], request.http_range
        if request.method != "GET" or asked.start is None:
            return web.Response(headers=headers, body=data)
        if asked.start >= len(data):
            return web.Response(status=416, text="<Error><Code>InvalidRange</Code></Error>")
        return web.Response(status=206, headers=headers, body=data[asked])

    async def _never_end(self, request: web.Request, headers: dict[str, str]) -> web.StreamResponse:
        response = web.StreamResponse(headers=headers)
        response.enable_chunked_encoding()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while self.given_endlessly < 100 * 2**20:
                await response.write(bytes(2**16))
                self.given_endlessly += 2**16
        return response

    async def _give(self) -> None:
        self.read_at_once += 1
        self.most_read_at_once = max(self.most_read_at_once, self.read_at_once)
        await self.giving.wait()
        self.read_at_once -= 1

    async def _put(self, request: web.Request, key: str, body: bytes) -> web.Response:
        self.puts.append(key)
        if not key.startswith("probe/") and any(part in key for part in self.stalled):
            self.asked.set()
            await self.going_on.wait()
        if any(part in key for part in self.refused):
            return web.Response(status=400, text="<Error><Code>InvalidRequest</Code></Error>")
        if "If-None-Match" in request.headers and (key in self.kept or self.conflicts):
            self.conflicts = max(0, self.conflicts - 1)
            return web.Response(status=412, text="<Error><Code>PreconditionFailed</Code></Error>")
        self.kept[key] = body
        self.marks[key] = request.headers.get("x-amz-meta-mark", "")
        self.on_kept(key)
        if any(part in key for part in self.loses):
            return web.Response(status=400, text="<Error><Code>InvalidRequest</Code></Error>")
        return web.Response(headers={"ETag": '"one"', **self.headers})

    def _list(self, prefix: str, after: str) -> web.Response:
        about = "<Size>1</Size><ETag>one</ETag><LastModified>2026-01-01T00:00:00Z</LastModified>"
        listed = [
            key
            for key in sorted(self.kept)
            if key.startswith(prefix) and key > after and not any(part in key for part in self.unlisted)
        ]
        found = [f"<Contents><Key>{quote(key)}</Key>{about}</Contents>" for key in listed]
        names = "<Name>pictures</Name><EncodingType>url</EncodingType>"
        return web.Response(text=f"<ListBucketResult>{names}{''.join(found)}</ListBucketResult>")

    async def _break_off(self, request: web.Request, promised: int = 1000) -> web.StreamResponse:
        """Less than was promised."""
        response = web.StreamResponse(headers={"ETag": '"one"', "Content-Length": str(promised)})
        await response.prepare(request)
        await response.write(b"{")
        assert request.transport is not None
        request.transport.close()
        return response

    @property
    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**25)
        app.router.add_route("*", "/{path:.*}", self.handle)
        app.on_response_prepare.append(self.date_answers)
        return app


@pytest.fixture
async def odd(aiohttp_server: Any, monkeypatch: pytest.MonkeyPatch) -> Odd:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "of-no-value")
    stand_in = Odd()
    stand_in.url = f"http://127.0.0.1:{(await aiohttp_server(stand_in.app)).port}"
    return stand_in


def at(odd: Odd) -> dict[str, str]:
    return {"STORAGE_BACKEND": "s3", "S3_BUCKET": "pictures", "S3_ENDPOINT_URL": odd.url}
