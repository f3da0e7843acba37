"""What an image's bytes say, without decoding the pixels: structure, checksums, size.

PNG: ISO/IEC 15948 (signature, chunk lengths and CRCs, IHDR first, IDAT present, IEND last). JPEG: ITU-T T.81 (markers
from SOI to a frame header, EOI at the end). WebP: RIFF container of the WebP specification. A full decode, the only
proof of a picture, happens where a thumbnail is made.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from sidecar.domain import Picture
from sidecar.errors import UndecodablePicture, bounded

MAX_SIDE = 16384
MAX_PIXELS = 64 * 1024 * 1024
_DEFLATE_BEST_RATIO = 1032  # RFC 1951 cannot expand further: a header that promises more pixels lies
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a length


def inspect(data: bytes | memoryview) -> Picture:
    """Check the bytes of one PNG, JPEG or WebP file. Raises UndecodablePicture saying what is wrong."""
    view = memoryview(data)
    head = bytes(view[:16])
    try:
        if head.startswith(b"\x89PNG\r\n\x1a\n"):
            picture = _png(view)
        elif head.startswith(b"\xff\xd8"):
            picture = _jpeg(view)
        elif head.startswith(b"RIFF") and head[8:12] == b"WEBP":
            picture = _webp(view)
        else:
            raise UndecodablePicture(f"neither PNG, JPEG nor WebP: it starts with {bounded(repr(head), 60)}")
    except (struct.error, IndexError) as error:
        raise UndecodablePicture("it ends in the middle of a header") from error
    _require_sane(picture)
    return picture


def _require_sane(picture: Picture) -> None:
    sides = (picture.width, picture.height)
    if not all(1 <= side <= MAX_SIDE for side in sides) or picture.width * picture.height > MAX_PIXELS:
        raise UndecodablePicture(f"its header claims {picture.width}×{picture.height} pixels")


def _png(view: memoryview) -> Picture:
    picture, needed, compressed, last = None, 0, 0, b""
    for kind, body in _png_chunks(view):
        if picture is None:
            picture, needed = _png_header(kind, body)
        compressed += len(body) if kind == b"IDAT" else 0
        last = kind
    if picture is None or last != b"IEND":
        raise UndecodablePicture("a PNG without its end: it is cut off")
    if compressed * _DEFLATE_BEST_RATIO < needed:
        raise UndecodablePicture(
            f"a PNG whose header claims {picture.width}×{picture.height} pixels but whose data cannot hold them"
        )
    return picture


def _png_chunks(view: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    position = 8
    while position < len(view):
        (length,) = struct.unpack_from(">I", view, position)
        end = position + 12 + length
        if end > len(view):
            raise UndecodablePicture("a PNG with a chunk longer than the file: it is cut off")
        kind = bytes(view[position + 4 : position + 8])
        (checksum,) = struct.unpack_from(">I", view, end - 4)
        if zlib.crc32(view[position + 4 : end - 4]) != checksum:
            raise UndecodablePicture("a PNG with a wrong checksum: it was damaged on the way")
        yield kind, view[position + 8 : end - 4]
        if kind == b"IEND":
            return
        position = end


def _png_header(kind: bytes, body: memoryview) -> tuple[Picture, int]:
    """The picture and the number of bytes its rows take before compression."""
    if kind != b"IHDR" or len(body) != 13:
        raise UndecodablePicture("a PNG that does not start with its header")
    width, height, depth, color = struct.unpack_from(">IIBB", body)
    bits = _PNG_CHANNELS.get(color, 1) * depth
    return Picture(media_type="image/png", width=width, height=height), height * (1 + (width * bits + 7) // 8)


def _jpeg(view: memoryview) -> Picture:
    if bytes(view[-2:]) != b"\xff\xd9":
        raise UndecodablePicture("a JPEG without its end: it is cut off")
    position = 2
    while view[position] == 0xFF:
        marker = view[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker in _JPEG_BARE:
            position += 2
            continue
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", view, position + 5)
            return Picture(media_type="image/jpeg", width=width, height=height)
        (length,) = struct.unpack_from(">H", view, position + 2)
        if marker in {0xD9, 0xDA} or length < 2:
            break
        position += 2 + length
    raise UndecodablePicture("a JPEG without a frame header")


def _webp(view: memoryview) -> Picture:
    (length,) = struct.unpack_from("<I", view, 4)
    if len(view) < length + 8:
        raise UndecodablePicture("a WebP shorter than it says: it is cut off")
    kind = bytes(view[12:16])
    if kind == b"VP8X":
        width = int.from_bytes(view[24:27], "little") + 1
        height = int.from_bytes(view[27:30], "little") + 1
    elif kind == b"VP8L" and view[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", view, 21)
        width, height = (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
    elif kind == b"VP8 " and bytes(view[23:26]) == b"\x9d\x01\x2a":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", view, 26))
    else:
        raise UndecodablePicture("a WebP without an image")
    return Picture(media_type="image/webp", width=width, height=height)
