"""Small files of our own over HTTP: read and compressed once, with an ETag for each encoding."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aiohttp import hdrs, web

from sidecar.edge.negotiation import takes_gzip

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml; charset=utf-8",
    ".ico": "image/x-icon",
}


@dataclass(frozen=True, slots=True)
class StaticFile:
    """One file. `version` changes with its content; `compressed` is None where gzip saves nothing."""

    body: bytes
    compressed: bytes | None
    media_type: str
    version: str

    @classmethod
    def read(cls, path: Path) -> StaticFile:
        """Raises OSError, and KeyError for a kind of file that is not served."""
        body = path.read_bytes()
        compressed = gzip.compress(body, 9, mtime=0)
        version = hashlib.sha256(body).hexdigest()[:16]
        return cls(body, compressed if len(compressed) < len(body) else None, _TYPES[path.suffix], version)

    def answer(self, request: web.Request, headers: Mapping[str, str]) -> web.Response:
        """The file, or 304 where the client has it. `headers` say how long it may be kept."""
        zipped = self.compressed if takes_gzip(request) else None
        etag = self.version if zipped is None else f"{self.version}-gzip"
        sent = {**headers, hdrs.ETAG: f'"{etag}"', hdrs.VARY: hdrs.ACCEPT_ENCODING}
        if any(given.value in (etag, "*") for given in request.if_none_match or ()):
            return web.Response(status=304, headers=sent)
        sent[hdrs.CONTENT_TYPE] = self.media_type
        if zipped is not None:
            sent[hdrs.CONTENT_ENCODING] = "gzip"
        return web.Response(body=self.body if zipped is None else zipped, headers=sent)
