"""GET and HEAD of an image and of its thumbnail: RFC 9110 conditions and ranges.

The ETag is the image's own SHA-256, strong and the same from every replica. Unknown, malformed, deleted and expired ids
are one 404.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from functools import lru_cache
from typing import IO, cast

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.web_request import BaseRequest

from sidecar.domain import IMAGE_EXTENSIONS, ImageId, ImageRecord, StoredImage
from sidecar.edge.keys import CLOCK, SERVICE, SETTINGS
from sidecar.errors import ImageDamaged, ImageNotFound, SidecarError
from sidecar.ports import Link, OpenFile

_FOLLOWING_SECONDS = 5.0  # between being given a redirect and following it
_EXTENSION = re.compile(r"\.(png|jpe?g|webp)$", re.ASCII | re.IGNORECASE)
_ETAG = re.compile(r'(W/)?"([^"]*)"')
_RANGE = re.compile(r"bytes=(\d*)-(\d*)", re.ASCII)


def routes() -> list[web.RouteDef]:
    return [
        web.get("/images/{image_id}", image),
        web.get("/images/{image_id}/thumbnail{extension:(\\.webp)?}", thumbnail),
    ]


async def image(request: web.Request) -> web.StreamResponse:
    """Asked for once more where it has gone: an image that waited here has then just reached its store."""
    service, image_id = request.app[SERVICE], image_id_of(request)
    try:
        return await _image(request, await service.get(image_id))
    except ImageDamaged:
        raise
    except ImageNotFound:
        return await _image(request, await service.get(image_id))


async def _image(request: web.Request, stored: StoredImage) -> web.StreamResponse:
    record = stored.record
    headers = _headers(request, record, record.sha256, record.picture.media_type)
    plan = _plan(request, etag=record.sha256, modified=record.created, size=record.size_bytes)
    if plan.status in (304, 416):
        return _bodyless(plan, headers)
    if request.method != hdrs.METH_GET:
        return web.Response(status=plan.status, headers={**headers, hdrs.CONTENT_LENGTH: str(plan.length)})
    if stored.path is None:
        return await _from_afar(request, stored, plan, headers)
    file = await request.app[SERVICE].open(stored, 0 if plan.start else plan.length)
    return _FileSlice(file, stored, plan, headers)


async def _from_afar(
    request: web.Request, stored: StoredImage, plan: _Plan, headers: dict[str, str]
) -> web.StreamResponse:
    """An image of a store that is elsewhere, and that its reader may be led on to."""
    service = request.app[SERVICE]
    # no store that we know looks at If-Range, and each takes ranges that mean nothing here in its own way
    same_part = plan.status == 206 or not (hdrs.RANGE in request.headers or hdrs.IF_RANGE in request.headers)
    link = await service.link(stored) if same_part else None
    if link is not None:
        return _redirect(request, link)
    pieces = service.stream(stored, plan.start, plan.length)
    try:
        return _Relay(await anext(pieces), pieces, plan, headers)
    except BaseException:
        await _closed(pieces)
        raise


async def _closed(pieces: AsyncIterator[bytes]) -> None:
    """Let go of the store's connection now rather than when the garbage is collected."""
    if isinstance(pieces, AsyncGenerator):
        await pieces.aclose()


def _redirect(request: web.Request, link: Link) -> web.Response:
    """To be kept for less time than the link lives: who got it late must still be able to follow it."""
    left = (link.expires - request.app[CLOCK].now()).total_seconds() - _FOLLOWING_SECONDS
    age = max(0, int(min(left, request.app[SETTINGS].storage.cache_max_age)))
    return web.Response(status=302, headers={hdrs.LOCATION: link.url, hdrs.CACHE_CONTROL: f"private, max-age={age}"})


async def thumbnail(request: web.Request) -> web.StreamResponse:
    service, image_id = request.app[SERVICE], image_id_of(request)
    record = (await service.get(image_id)).record
    etag = f"{record.sha256}-thumbnail"
    headers = _headers(request, record, etag, "image/webp")
    if _unchanged(request, etag, record.created):
        return _bodyless(_Plan(304, 0, 0, 0), headers)
    data = await service.thumbnail(image_id)
    plan = _plan(request, etag=etag, modified=record.created, size=len(data))
    if plan.status == 416:
        return _bodyless(plan, headers)
    headers.update(plan.headers)
    return web.Response(status=plan.status, headers=headers, body=data[plan.start : plan.start + plan.length])


def image_id_of(request: web.Request) -> ImageId:
    """The id in the route, with or without a file extension. Raises ImageNotFound."""
    return ImageId.parse(_EXTENSION.sub("", request.match_info["image_id"]))


@dataclass(frozen=True, slots=True)
class _Plan:
    """What to send: `length` bytes from `start` of `size`."""

    status: int
    start: int
    length: int
    size: int

    @property
    def headers(self) -> dict[str, str]:
        if self.status == 206:
            return {hdrs.CONTENT_RANGE: f"bytes {self.start}-{self.start + self.length - 1}/{self.size}"}
        return {hdrs.CONTENT_RANGE: f"bytes */{self.size}"} if self.status == 416 else {}


def _plan(request: web.Request, *, etag: str, modified: datetime, size: int) -> _Plan:
    """RFC 9110 sections 13.2.2 and 14.2: conditions first, then the range, if it still applies."""
    if _unchanged(request, etag, modified):
        return _Plan(304, 0, 0, size)
    whole = _Plan(200, 0, size, size)
    match = _RANGE.fullmatch(request.headers.get(hdrs.RANGE, "").replace(" ", ""))
    if match is None or request.method != hdrs.METH_GET or not _range_applies(request, etag, modified):
        return whole
    first, last = match[1], match[2]
    if not first and not last:
        return whole
    if len(first) > 18 or len(last) > 18:  # numbers beyond any file
        return whole if first and len(first) <= 18 else _Plan(416, 0, 0, size)
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return whole
    return _Plan(206, start, end - start, size) if start < end else _Plan(416, 0, 0, size)


def _unchanged(request: web.Request, etag: str, modified: datetime) -> bool:
    if (given := request.headers.get(hdrs.IF_NONE_MATCH)) is not None:
        return given == f'"{etag}"' or given.strip() == "*" or any(tag == etag for _, tag in _ETAG.findall(given))
    since = _http_date(request.headers.get(hdrs.IF_MODIFIED_SINCE))
    return since is not None and modified.replace(microsecond=0) <= since


def _range_applies(request: web.Request, etag: str, modified: datetime) -> bool:
    given = request.headers.get(hdrs.IF_RANGE)
    if given is None:
        return True
    if given.lstrip().startswith(('"', "W/")):
        return given.strip() == f'"{etag}"'
    return _http_date(given) == modified.replace(microsecond=0)


def _http_date(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _headers(request: web.Request, record: ImageRecord, etag: str, media_type: str) -> dict[str, str]:
    return {
        **_lasting_headers(record.image_id, record.created, etag, media_type),
        hdrs.CACHE_CONTROL: f"{_who_may_keep(request)}, max-age={_max_age(request, record)}",
    }


@lru_cache(maxsize=1024)
def _lasting_headers(image_id: ImageId, created: datetime, etag: str, media_type: str) -> Mapping[str, str]:
    name = f"image-{created:%Y%m%d-%H%M%S}-{image_id.text[-6:]}.{IMAGE_EXTENSIONS[media_type]}"
    return {
        hdrs.CONTENT_TYPE: media_type,
        hdrs.ETAG: f'"{etag}"',
        hdrs.LAST_MODIFIED: format_datetime(created.replace(microsecond=0), usegmt=True),
        hdrs.ACCEPT_RANGES: "bytes",
        hdrs.CONTENT_DISPOSITION: f'inline; filename="{name}"',
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",  # a browser's own view of a picture
    }


def _who_may_keep(request: web.Request) -> str:
    """PUBLIC_BASE_URL may be a CDN's, which keeps only what is public; an image's address is its key there, too."""
    return "private" if request.app[SETTINGS].listen.public_base_url is None else "public"


def _max_age(request: web.Request, record: ImageRecord) -> int:
    allowed = timedelta(seconds=request.app[SETTINGS].storage.cache_max_age)
    left = allowed if record.expires is None else record.expires - request.app[CLOCK].now()
    return max(0, int(min(allowed, left).total_seconds()))


def _bodyless(plan: _Plan, headers: dict[str, str]) -> web.Response:
    if plan.status == 304:
        del headers[hdrs.CONTENT_TYPE]
    if plan.status == 416:  # an answer to this one asker, whatever may be kept of the image
        headers[hdrs.CACHE_CONTROL] = "no-store"
    headers.update(plan.headers)
    return web.Response(status=plan.status, headers=headers)


class _FileSlice(web.StreamResponse):
    """Part of an open file, the beginning from memory. Releases the file."""

    def __init__(self, file: OpenFile, stored: StoredImage, plan: _Plan, headers: dict[str, str]) -> None:
        super().__init__(status=plan.status, headers={**headers, **plan.headers})
        self.content_length = plan.length
        self._file = file
        self._stored = stored
        self._plan = plan

    async def prepare(self, request: BaseRequest) -> AbstractStreamWriter | None:
        try:
            writer = await super().prepare(request)
            if writer is not None:
                await self._send(cast("web.Request", request), writer)
        finally:
            self._file.release()
        return writer

    async def _send(self, request: web.Request, writer: AbstractStreamWriter) -> None:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the peer has left")
        start, left = self._plan.start, self._plan.length
        sent = _send_at_once(transport, self._file, start, left)
        if sent < left:
            self._file.forget_head()
            sent += await self._send_slowly(request, transport, writer, start + sent, left - sent)
        if sent < left:
            transport.abort()  # the length was promised: nothing else may follow on this connection
            raise ConnectionResetError("the file is shorter than its record says")
        await super().write_eof()

    async def _send_slowly(
        self, request: web.Request, transport: asyncio.Transport, writer: AbstractStreamWriter, start: int, left: int
    ) -> int:
        """As the peer takes it; how much there was. By the kernel, where the loop and the connection let it."""
        try:
            return await asyncio.get_running_loop().sendfile(
                transport, cast("IO[bytes]", self._file), start, left, fallback=False
            )
        except TimeoutError as error:
            raise ConnectionResetError("the peer has taken nothing for too long") from error
        except (NotImplementedError, RuntimeError):
            sent = 0
            async for piece in request.app[SERVICE].stream(self._stored, start, left):
                await writer.write(piece)
                sent += len(piece)
            return sent


def _send_at_once(transport: asyncio.Transport, file: OpenFile, start: int, length: int) -> int:
    """As much as the socket takes now; most images go whole, without the loop's turns for waiting."""
    head = memoryview(file.head)[start : start + length]
    sock = transport.get_extra_info("socket")
    if not head or sock is None or transport.get_extra_info("sslcontext") or transport.get_write_buffer_size():
        return 0
    try:
        return os.write(sock.fileno(), head)
    except OSError:  # it takes nothing now, or the peer has left: the loop finds out which
        return 0


class _Relay(web.StreamResponse):
    """Bytes of a store elsewhere, passed on as they come. The first are there before anything is promised."""

    def __init__(self, first: bytes, rest: AsyncIterator[bytes], plan: _Plan, headers: dict[str, str]) -> None:
        super().__init__(status=plan.status, headers={**headers, **plan.headers})
        self.content_length = plan.length
        self._first = first
        self._rest = rest

    async def prepare(self, request: BaseRequest) -> AbstractStreamWriter | None:
        try:
            writer = await super().prepare(request)
            await self.write(self._first)
            self._first = b""  # a slow client keeps this response for long
            async for piece in self._rest:
                await self.write(piece)
        except SidecarError as error:
            if request.transport is not None:
                request.transport.abort()  # the length was promised: nothing else may follow on this connection
            raise ConnectionResetError("the store has left in the middle") from error
        finally:
            await _closed(self._rest)
        await self.write_eof()
        return writer
