"""What an image's bytes say as they arrive, without decoding the pixels: structure, checksums, size.

PNG: ISO/IEC 15948 (signature, chunk lengths and CRCs, IHDR first, IDAT present, IEND last). JPEG: ITU-T T.81 (markers
from SOI to EOI, a frame header, a bounded number of scans). WebP: RIFF container of the WebP specification. A full
decode, the only proof of a picture, happens where a thumbnail is made.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Generator
from typing import NamedTuple

from sidecar.domain import Picture
from sidecar.errors import UndecodablePicture, bounded
from sidecar.imaging import exif
from sidecar.imaging.webp import HEAD_BYTES, webp_has_exif, webp_size

MAX_SIDE = 16384
MAX_PIXELS = 64 * 1024 * 1024
MOST_PARTS = 4096
"""Chunks beside one for each KiB, or markers of a JPEG. Each costs a step; pictures have a few dozen."""
MAX_SCANS = 100
"""Of a JPEG. Progressive ones have about ten; each takes every decoder another pass over all pixels (issue 13)."""
_BYTES_PER_CHUNK = 1024
_DEFLATE_BEST_RATIO = 1032  # RFC 1951 cannot expand further: a header that promises more pixels lies
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_APP1 = 0xE1
_FRAME_BYTES = 5  # precision, height and width
_WEBP_CHUNK = struct.Struct("<4sI")
_FILL = re.compile(rb"(?>\xff*)")
_MARKER = re.compile(rb"\xff(?:[^\x00\x01\xd0-\xd7\xff]|\Z)")  # or the first half of one, where the piece ends
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a length


def _fill(view: memoryview) -> int:
    """How many fill bytes there are at the start."""
    match = _FILL.match(view)
    return match.end() if match else 0


def _until_marker(view: memoryview) -> int:
    """How many bytes there are before what may be a marker."""
    match = _MARKER.search(view)
    return match.start() if match else len(view)


class _Need(NamedTuple):
    """What a parser asks for: exactly `size` bytes, or up to `size` of what there is. `past` counts what to skip."""

    size: int
    exactly: bool = True
    past: Callable[[memoryview], int] | None = None


class _Found(NamedTuple):
    """A parser's result, and how many bytes the whole file has at least."""

    picture: Picture
    size_bytes: int = 0


_Parser = Generator[_Need, bytes | memoryview, _Found]


def inspect(data: bytes) -> Picture:
    """Check the bytes of one PNG, JPEG or WebP file. Raises UndecodablePicture saying what is wrong."""
    inspector = PictureInspector()
    inspector.feed(data)
    return inspector.finish()


class PictureInspector:
    """Looks at a picture piece by piece, in memory that does not grow with it."""

    def __init__(self) -> None:
        self._parser = _parse()
        self._need = next(self._parser)
        self._held = bytearray()
        self._found: _Found | None = None
        self._head = b""
        self._size = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises UndecodablePicture as soon as something is wrong."""
        self._size += len(data)
        self._head += data[: 16 - len(self._head)]
        view = memoryview(data)
        while self._found is None and view:
            view = self._step(view)

    def _step(self, view: memoryview) -> memoryview:
        """Give the parser what it asked for, if it is there; the bytes that remain."""
        if self._need.past is not None and not self._held:
            view = view[self._need.past(view) :]
        if self._need.exactly:
            missing = self._need.size - len(self._held)
            self._held += view[:missing]
            if len(self._held) < self._need.size:
                return view[missing:]
            piece: bytes | memoryview = bytes(self._held)
            self._held.clear()
        else:
            missing = self._need.size
            piece = view[:missing]
        try:
            self._need = self._parser.send(piece)
        except StopIteration as stop:
            self._found = stop.value
        return view[missing:]

    def finish(self) -> Picture:
        """That was all. Raises UndecodablePicture. Bytes behind a picture's end are no part of it."""
        if self._found is None:
            raise UndecodablePicture(_cut_off(self._head))
        picture = self._found.picture
        if self._size < self._found.size_bytes:
            raise UndecodablePicture("a WebP shorter than it says: it is cut off")
        return picture


def _cut_off(head: bytes) -> str:
    for start, name in ((b"\x89PNG", "PNG"), (b"\xff\xd8", "JPEG"), (b"RIFF", "WebP")):
        if head.startswith(start):
            return f"a {name} without its end: it is cut off"
    return _unknown(head)


def _unknown(head: bytes) -> str:
    return f"neither PNG, JPEG nor WebP: it starts with {bounded(repr(head), 60)}"


def _parse() -> _Parser:
    start = yield _Need(2)
    if start == b"\xff\xd8":
        return (yield from _jpeg())
    head = bytes(start) + bytes((yield _Need(14)))
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return (yield from _png(head[8:]))
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return (yield from _webp(head))
    raise UndecodablePicture(_unknown(head))


def _sane(picture: Picture) -> Picture:
    sides = (picture.width, picture.height)
    if not all(1 <= side <= MAX_SIDE for side in sides) or picture.width * picture.height > MAX_PIXELS:
        raise UndecodablePicture(f"its header claims {picture.width}×{picture.height} pixels")
    return picture


def _as_shown(picture: Picture, exif_data: bytes) -> Picture:
    if exif.orientation(exif_data) not in exif.TURNED:
        return picture
    return Picture(media_type=picture.media_type, width=picture.height, height=picture.width)


def _png(chunk_head: bytes) -> _Parser:
    """`chunk_head`: length and kind of the first chunk."""
    length, kind = struct.unpack(">I4s", chunk_head)
    if kind != b"IHDR" or length != 13:
        raise UndecodablePicture("a PNG that does not start with its header")
    header = bytes((yield _Need(13)))
    _check((yield _Need(4)), zlib.crc32(header, zlib.crc32(kind)))
    picture, needed = _png_header(header)
    compressed = chunks = size = 0
    exif_data = b""
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", (yield _Need(8)))
        chunks, size = chunks + 1, size + length
        if chunks > MOST_PARTS + size // _BYTES_PER_CHUNK:
            raise UndecodablePicture(f"a PNG of more than {MOST_PARTS:,} chunks that hold next to nothing")
        checksum = zlib.crc32(kind)
        left = length
        while left:
            piece = yield _Need(left, exactly=False)
            checksum = zlib.crc32(piece, checksum)
            if kind == b"eXIf":
                exif_data += piece[: max(0, exif.HEAD_BYTES - len(exif_data))]
            left -= len(piece)
        _check((yield _Need(4)), checksum)
        compressed += length if kind == b"IDAT" else 0
    if compressed * _DEFLATE_BEST_RATIO < needed:
        raise UndecodablePicture(
            f"a PNG whose header claims {picture.width}×{picture.height} pixels but whose data cannot hold them"
        )
    return _Found(_as_shown(picture, exif_data))


def _check(stored: bytes | memoryview, checksum: int) -> None:
    if int.from_bytes(stored) != checksum:
        raise UndecodablePicture("a PNG with a wrong checksum: it was damaged on the way")


def _png_header(body: bytes) -> tuple[Picture, int]:
    """The picture and the number of bytes its rows take before compression."""
    width, height, depth, color = struct.unpack_from(">IIBB", body)
    bits = _PNG_CHANNELS.get(color, 1) * depth
    return _sane(Picture(media_type="image/png", width=width, height=height)), height * (1 + (width * bits + 7) // 8)


def _jpeg() -> _Parser:
    """Markers up to EOI. Behind a frame header compressed data may come before each, where 0xFF 0x00 is no marker."""
    picture = None
    exif_data = b""
    markers = scans = 0
    while markers < MOST_PARTS:
        lead, marker = yield _Need(2, past=_until_marker if picture else None)
        while lead == marker == 0xFF:
            (marker,) = yield _Need(1, past=_fill)
        if picture is None and (lead != 0xFF or marker in {0xD9, 0xDA}):
            raise UndecodablePicture("a JPEG without a frame header")
        if picture is not None and (marker == 0 or marker in _JPEG_BARE):
            continue  # one of these at a time, where a piece ends within it: _until_marker goes past the others
        markers += 1
        if marker in _JPEG_BARE:
            continue
        if picture is not None and marker == 0xD9:
            return _jpeg_found(picture, exif_data, scans)
        scans += marker == 0xDA
        if scans > MAX_SCANS:
            raise UndecodablePicture(f"a JPEG of more than {MAX_SCANS} scans; progressive ones have about ten")
        head = yield from _segment(marker)
        if marker in _JPEG_FRAMES and len(head) == _FRAME_BYTES:
            picture = _frame(head)
        elif head.startswith(exif.MARK) and not scans:
            exif_data = exif_data or head
    raise UndecodablePicture(f"a JPEG with more than {MOST_PARTS:,} markers")


def _jpeg_found(picture: Picture, exif_data: bytes, scans: int) -> _Found:
    if not scans:
        raise UndecodablePicture("a JPEG without a scan")
    return _Found(_as_shown(picture, exif_data))


def _segment(marker: int) -> Generator[_Need, bytes | memoryview, bytes]:
    """One with a length; its first bytes, so far as a frame header or Exif data is looked at."""
    left = int.from_bytes((yield _Need(2))) - 2
    if left < 0:
        raise UndecodablePicture("a JPEG with a segment shorter than its length")
    wanted = _FRAME_BYTES if marker in _JPEG_FRAMES else exif.HEAD_BYTES if marker == _JPEG_APP1 else 0
    size = min(wanted, left)
    head = bytes((yield _Need(size))) if size else b""
    left -= size
    while left:
        left -= len((yield _Need(left, exactly=False)))
    return head


def _frame(head: bytes) -> Picture:
    height, width = struct.unpack_from(">HH", head, 1)
    return _sane(Picture(media_type="image/jpeg", width=width, height=height))


def _webp(head: bytes) -> _Parser:
    (length,) = struct.unpack_from("<I", head, 4)
    head += bytes((yield _Need(HEAD_BYTES - len(head))))
    size = webp_size(head)
    if size is None:
        raise UndecodablePicture("a WebP without an image")
    picture = _sane(Picture(media_type="image/webp", width=size[0], height=size[1]))
    if webp_has_exif(head):
        picture = _as_shown(picture, (yield from _webp_exif(length + 8 - HEAD_BYTES)))
    return _Found(picture, length + 8)


def _webp_exif(left: int) -> Generator[_Need, bytes | memoryview, bytes]:
    """The start of the Exif data, which is behind the picture; `left` is how much the file has to its end."""
    for _ in range(MOST_PARTS):
        if left < _WEBP_CHUNK.size:
            break
        kind, size = _WEBP_CHUNK.unpack((yield _Need(_WEBP_CHUNK.size)))
        left -= _WEBP_CHUNK.size
        if kind == b"EXIF":
            wanted = min(size, left, exif.HEAD_BYTES)
            return bytes((yield _Need(wanted))) if wanted else b""
        padded = min(size + size % 2, left)
        left -= padded
        while padded:
            padded -= len((yield _Need(padded, exactly=False)))
    return b""
