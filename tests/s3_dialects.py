"""A proxy in front of a real store that behaves like others do: it refuses, ignores or leaves out what they lack.

What each does is taken from public reports (issue 14): 501 to If-None-Match at Backblaze B2 and Alibaba OSS, 400 or 501
to DeleteObjects at Google Cloud Storage, HEAD without Content-Length at R2 and Google Cloud Storage, 400 for another
region at Garage and Amazon S3, 403 to paths at Alibaba OSS.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from yarl import URL

from tests import ceph


@dataclass(frozen=True)
class Dialect:
    """What a store makes of requests that the one behind the proxy answers as Amazon S3 does."""

    conditions: Literal["kept", "refused", "ignored"] = "kept"
    batches: Literal["kept", "invalid", "unknown"] = "kept"
    tells_lengths: bool = True
    knows_ranges: bool = True
    absent_is_an_error: bool = False
    region: str | None = None
    names_region: bool = False


STORES = {
    "Backblaze B2, Alibaba OSS": Dialect(conditions="refused"),
    "Google Cloud Storage": Dialect(batches="invalid", tells_lengths=False, absent_is_an_error=True),
    "Google Cloud Storage, lately": Dialect(batches="unknown", tells_lengths=False, absent_is_an_error=True),
    "Cloudflare R2": Dialect(tells_lengths=False),
    "one that ignores conditions": Dialect(conditions="ignored"),
}
POOREST = Dialect(conditions="refused", batches="invalid", tells_lengths=False, absent_is_an_error=True)
"""All of these at once."""


_OF_THE_CONNECTION = frozenset(
    {"host", "authorization", "x-amz-date", "x-amz-content-sha256", "transfer-encoding", "content-length", "connection"}
)


def refusal(status: int, code: str, more: str = "", **headers: str) -> web.Response:
    """An error in the form of S3. `more` are further elements."""
    text = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code>{more}</Error>"
    return web.Response(status=status, text=text, content_type="application/xml", headers=headers)


@dataclass
class Proxy:
    """`passed` has the method and path of every request, also of those that were refused."""

    store: str
    dialect: Dialect
    session: aiohttp.ClientSession
    url: str = ""
    passed: list[tuple[str, str]] = field(default_factory=list)
    instead: int | None = None
    """The status of a page that is answered to everything, as by a gateway whose store is gone."""
    there: set[str] = field(default_factory=set)
    """Paths of objects that were put through this proxy and not deleted."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        is_batch = request.method == "POST" and "delete" in request.query
        self.passed.append(("BATCH" if is_batch else request.method, request.path))
        refused = self._refused(request, is_batch)
        if refused is not None:
            await request.read()
            return refused
        if request.method == "DELETE" and self.dialect.absent_is_an_error and request.path not in self.there:
            return refusal(404, "NoSuchKey")
        return await self._forward(request)

    def _refused(self, request: web.Request, is_batch: bool) -> web.Response | None:
        dialect = self.dialect
        if self.instead is not None:
            return web.Response(status=self.instead, text="<!doctype html><p>Sorry<br>", content_type="text/html")
        if dialect.region and f"/{dialect.region}/s3/" not in request.headers.get("Authorization", ""):
            named = f"<Region>{dialect.region}</Region>" if dialect.names_region else ""
            scope = f"unexpected scope: 20260101/x/s3/aws4_request, expected: 20260101/{dialect.region}/s3/aws4_request"
            return refusal(400, "AuthorizationHeaderMalformed", f"<Message>{scope}</Message>{named}")
        if dialect.conditions == "refused" and "If-None-Match" in request.headers and request.method == "PUT":
            return refusal(501, "NotImplemented")
        if is_batch and dialect.batches != "kept":
            invalid = dialect.batches == "invalid"
            return refusal(400, "InvalidArgument") if invalid else refusal(501, "NotImplemented")
        return None

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        url = URL(self.store + request.raw_path, encoded=True)
        body = await request.read()
        headers = self._signed(request, str(url), body)
        async with self.session.request(request.method, url, headers=headers, data=body or None) as answer:
            data = await answer.read()
            self._note(request, answer.status)
            kept = {name: value for name, value in answer.headers.items() if name not in ("Transfer-Encoding", "Date")}
            if request.method != "HEAD":
                return web.Response(status=answer.status, headers=kept, body=data)
            return await self._head(request, answer.status, kept)

    def _signed(self, request: web.Request, url: str, body: bytes) -> dict[str, str]:
        """Signed anew, because what is left out and the region are covered by the signature."""
        dropped = set(_OF_THE_CONNECTION)
        if self.dialect.conditions == "ignored":
            dropped.add("if-none-match")
        if not self.dialect.knows_ranges:
            dropped.add("range")
        headers = {name: value for name, value in request.headers.items() if name.lower() not in dropped}
        signed = AWSRequest(request.method, url, data=body, headers=headers)
        S3SigV4Auth(Credentials(ceph.ACCESS_KEY, ceph.SECRET_KEY), "s3", "us-east-1").add_auth(signed)
        return dict(signed.headers.items())

    def _note(self, request: web.Request, status: int) -> None:
        if request.method == "PUT" and status == 200:
            self.there.add(request.path)
        if request.method == "DELETE":
            self.there.discard(request.path)

    async def _head(self, request: web.Request, status: int, headers: dict[str, str]) -> web.StreamResponse:
        if self.dialect.tells_lengths:
            return web.Response(status=status, headers=headers)
        headers.pop("Content-Length", None)
        response = web.StreamResponse(status=status, headers=headers)
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write_eof()
        return response


@asynccontextmanager
async def behaving(dialect: Dialect, store: str) -> AsyncIterator[Proxy]:
    """The proxy between start and stop, in front of the store at this address."""
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        proxy = Proxy(store, dialect, session)
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", proxy.handle)
        async with TestServer(app, host="127.0.0.1") as server:
            proxy.url = f"http://127.0.0.1:{server.port}"
            yield proxy
