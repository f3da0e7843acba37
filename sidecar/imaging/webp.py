"""What a WebP's first chunk states (WebP container specification)."""

from __future__ import annotations

import struct

HEAD_BYTES = 30
"""From the start of the file: enough for `webp_size`."""


_EXIF_FLAG = 0x08


def webp_size(head: bytes) -> tuple[int, int] | None:
    """Width and height in pixels; None where the first chunk is no picture's."""
    kind, body = head[12:16], head[16:HEAD_BYTES]
    if len(head) < HEAD_BYTES or head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return None
    if kind == b"VP8X":
        return int.from_bytes(body[8:11], "little") + 1, int.from_bytes(body[11:14], "little") + 1
    if kind == b"VP8L" and body[4] == 0x2F:
        (bits,) = struct.unpack_from("<I", body, 5)
        return (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
    if kind == b"VP8 " and body[7:10] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", body, 10)
        return width & 0x3FFF, height & 0x3FFF
    return None


def webp_has_exif(head: bytes) -> bool:
    """Whether the file is said to have Exif data, which then comes behind the picture."""
    return head[12:16] == b"VP8X" and bool(head[20] & _EXIF_FLAG)
