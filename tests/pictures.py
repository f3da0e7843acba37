"""Small real pictures for tests."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image


def picture(width: int = 64, height: int = 64, form: str = "PNG", noise: bool = False) -> bytes:
    """The bytes of a real picture; `noise` makes it incompressible."""
    if noise:
        image = Image.effect_noise((width, height), 90).convert("RGB")
    else:
        image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_claiming(width: int, height: int, rows: bytes = b"\0" * 100) -> bytes:
    """A PNG with right checksums whose header claims any size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (png_chunk(b"IHDR", header), png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def jpeg_of_scans(side: int, count: int) -> bytes:
    """A flat progressive JPEG with `count` further scans of few bytes, each a pass over all pixels for a decoder."""
    buffer = io.BytesIO()
    Image.new("L", (side, side), 128).save(buffer, "JPEG", progressive=True)
    jpeg = buffer.getvalue()
    return jpeg[:-2] + jpeg[jpeg.rindex(b"\xff\xda") : -2] * count + jpeg[-2:]
