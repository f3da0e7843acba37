"""Bodies that a gateway has compressed in spite of `Accept-Encoding: identity`, unpacked in bounded steps.

Any deflate data may expand a thousandfold (RFC 1951), so what is unpacked comes in pieces of at most MAX_PIECE_BYTES:
the reader counts them, and gives the event loop a turn between them. br, zstd and compress are refused: the standard
library does not have them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from sidecar.errors import bounded

MAX_PIECE_BYTES = 256 * 1024
CODINGS = frozenset({"gzip", "x-gzip", "deflate"})
_MAX_MEMBERS = 100  # of a gzip body (RFC 1952, section 2.2); a gateway sends one
_ANY_HEADER = zlib.MAX_WBITS + 32  # of zlib or gzip
_NO_HEADER = -zlib.MAX_WBITS  # what some servers mean by deflate (RFC 9110, section 8.4.1.2)
_GZIP_START = 0x1F


class UnknownCoding(Exception):
    """The body has the Content-Encoding `coding`, which is not unpacked here."""

    def __init__(self, coding: str) -> None:
        super().__init__(coding)
        self.coding = bounded(coding, 40)


class DamagedPacking(Exception):
    """The body does not fit its Content-Encoding."""


class Unpacker:
    """Unpacks gzip, zlib and raw deflate. A body that ends too early is the reader's to notice."""

    def __init__(self) -> None:
        self._member: zlib._Decompress | None = None
        self._members = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What the next bytes hold, in pieces of at most MAX_PIECE_BYTES. Raises DamagedPacking."""
        pending = False  # the decompressor may hold output when all input is taken
        while data or pending:
            member = self._member or self._begin(data[0])
            if member.eof:
                return  # what is behind the end means nothing
            try:
                piece = member.decompress(data, MAX_PIECE_BYTES)
            except zlib.error as error:
                raise DamagedPacking(str(error)) from error
            pending = len(piece) == MAX_PIECE_BYTES
            data = member.unconsumed_tail
            if member.eof:
                pending, data = False, member.unused_data
                if data[:1] == bytes([_GZIP_START]):
                    self._member = None
            yield piece

    def _begin(self, first: int) -> zlib._Decompress:
        self._members += 1
        if self._members > _MAX_MEMBERS:
            raise DamagedPacking(f"more than {_MAX_MEMBERS} members")
        has_header = first == _GZIP_START or first & 0x0F == zlib.DEFLATED
        self._member = zlib.decompressobj(_ANY_HEADER if has_header else _NO_HEADER)
        return self._member
