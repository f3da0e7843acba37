"""Thumbnails by Pillow, within a memory budget. Runs in the worker process and imports only Pillow.

What a decoder allocates is computed from the header, before it is allocated. Pillow holds a pixel in one, two or four
bytes; a JPEG is decoded at a fraction of its size, but where it has several scans libjpeg holds all its coefficients;
libwebp and Pillow together hold four copies of a WebP. After that the picture is made small in bands, never copied.
"""

from __future__ import annotations

import io
from importlib import import_module
from typing import IO, cast

from PIL import Image, JpegImagePlugin, PngImagePlugin

from sidecar.imaging.exif import orientation
from sidecar.imaging.webp import HEAD_BYTES, webp_size

_FORMATS = ("PNG", "JPEG", "WEBP")
_QUALITIES = (82, 55, 25)  # from the best to the worst a picture halves
_METHOD = 1  # for noise smaller and faster than 2, for soft pictures a sixth larger
_REDUCING_GAP = 2  # averaging, before the fine resampling, leaves at least twice the pixels wanted
_BYTES_PER_PIXEL = {"1": 1, "L": 1, "P": 1, "I;16": 2}  # all other modes take four
_WEBP_BYTES_PER_PIXEL = 16
_COEFFICIENT_BYTES = 2
_BAND_PIXELS = 256 * 1024
_SIXTEEN_TO_EIGHT = 1 / 257
_LOOK_PIXELS = 512
_BLACK = 3  # of 255: what a lossy encoder makes of black
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What sets a picture of this Exif orientation upright."""


class OverBudget(Exception):
    """The picture may be sound, but decoding it takes more memory than is allowed."""


def prepare() -> None:
    """Set Pillow up for this process."""
    Image.preinit()
    import_module("PIL.WebPImagePlugin")
    Image.MAX_IMAGE_PIXELS = None  # the budget decides
    # Pillow would unpack up to 64 MiB of these, and take the picture for damaged where one has more than 1 MiB.
    for kind in ("tEXt", "zTXt", "iTXt", "iCCP"):
        setattr(PngImagePlugin.PngStream, f"chunk_{kind}", _unread_chunk)


def _unread_chunk(stream: PngImagePlugin.PngStream, _position: int, length: int) -> bytes:
    """Texts and colour profiles are checked for damage only: a thumbnail carries none."""
    return stream.fp.read(length) if stream.fp is not None else b""


def thumbnail(file: IO[bytes], *, pixels: int, max_bytes: int, budget: int) -> bytes:
    """A WebP of at most `pixels` on its longer side and `max_bytes`, from a decode of at most `budget` bytes.

    The whole picture is decoded: this is the proof that it can be. Raises OverBudget, MemoryError, and for a damaged
    picture whatever a decoder raises.
    """
    return _fit(_small(file, pixels, budget), pixels, max_bytes)


def is_black(file: IO[bytes], *, budget: int) -> bool:
    """Whether the whole picture is black, as a safety checker's replacement is. Raises as `thumbnail` does."""
    *colors, alpha = _small(file, _LOOK_PIXELS, budget).convert("RGBA").split()
    return all(_lightest(color) <= _BLACK for color in colors) and _lightest(alpha) > 0


def _lightest(band: Image.Image) -> int:
    _, lightest = cast("tuple[int, int]", band.getextrema())
    return lightest


def _small(file: IO[bytes], pixels: int, budget: int) -> Image.Image:
    """The picture, decoded whole and averaged to a little more than `pixels`, the right way up."""
    _check_webp(file, budget)
    with Image.open(file, formats=_FORMATS) as image:
        needed = _coefficient_bytes(image, file)
        size = image.size
        image.draft(None, (pixels * _REDUCING_GAP, pixels * _REDUCING_GAP))
        needed += image.width * image.height * _BYTES_PER_PIXEL.get(image.mode, 4)
        _check(needed, size, budget)
        image.load()
        small = _reduced(image, pixels)
        turn = _TURNS.get(orientation(image.info.get("exif", b"")))
    return small if turn is None else small.transpose(turn)


def _check(needed: int, size: tuple[int, int], budget: int) -> None:
    if needed > budget:
        raise OverBudget(
            f"its {size[0]}×{size[1]} pixels need {_mebibytes(needed)} of memory to decode; "
            f"allowed: {_mebibytes(budget)}"
        )


def _mebibytes(size: int) -> str:
    return f"{-(-size // 2**20):,} MiB"


def _check_webp(file: IO[bytes], budget: int) -> None:
    """Its decoder allocates as soon as the file is opened."""
    size = webp_size(file.read(HEAD_BYTES))
    file.seek(0)
    if size is not None:
        _check(size[0] * size[1] * _WEBP_BYTES_PER_PIXEL, size, budget)


def _coefficient_bytes(image: Image.Image, file: IO[bytes]) -> int:
    """What libjpeg holds until the last of several scans (ITU-T T.81, A.1.1 and A.2)."""
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return 0
    factors = [(layer[1], layer[2]) for layer in image.layer]
    if "progressive" not in image.info and _components_of_first_scan(file) == len(factors):
        return 0
    across, down = max(factor[0] for factor in factors), max(factor[1] for factor in factors)
    units = -(-image.width // (8 * across)) * -(-image.height // (8 * down))
    return units * sum(horizontal * vertical for horizontal, vertical in factors) * 64 * _COEFFICIENT_BYTES


def _components_of_first_scan(file: IO[bytes]) -> int:
    """Pillow has read the file up to this scan, so its markers are sound. Puts the file back where it was."""
    position = file.tell()
    file.seek(2)
    try:
        while lead := file.read(1):
            marker = file.read(1)
            while marker == lead == b"\xff":
                marker = file.read(1)
            if lead != b"\xff" or marker <= b"\x01" or b"\xd0" <= marker <= b"\xd7":
                continue
            length = int.from_bytes(file.read(2))
            if marker == b"\xda":
                return file.read(1)[0]
            file.seek(length - 2, 1)
        return 0
    finally:
        file.seek(position)


def _reduced(image: Image.Image, pixels: int) -> Image.Image:
    """The picture in RGB or RGBA, averaged to a little more than `pixels`; in bands, to copy little at a time."""
    mode = "RGBA" if "A" in image.getbands() or "transparency" in image.info else "RGB"
    factor = max(1, max(image.size) // (pixels * _REDUCING_GAP))
    across, down = min(factor, image.width), min(factor, image.height)
    small = Image.new(mode, (-(-image.width // across), -(-image.height // down)))
    rows = down * max(1, _BAND_PIXELS // (image.width * down))
    for top in range(0, image.height, rows):
        band = _eight_bits(image.crop((0, top, image.width, min(top + rows, image.height))))
        small.paste(band.convert(mode).reduce((across, down)), (0, top // down))
    return small


def _eight_bits(band: Image.Image) -> Image.Image:
    """Pillow scales 16-bit colours as it decodes, but would cut off 16-bit grey at 255."""
    return band.point(lambda value: value * _SIXTEEN_TO_EIGHT + 0.5).convert("L") if band.mode == "I;16" else band


def _fit(image: Image.Image, pixels: int, max_bytes: int) -> bytes:
    """Shrink to `pixels`, then lower the quality, then the size, until it takes at most `max_bytes`."""
    side = min(pixels, max(image.size))
    while True:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        for quality in _QUALITIES:
            buffer = io.BytesIO()
            image.save(buffer, "WEBP", quality=quality, method=_METHOD)
            if buffer.tell() <= max_bytes:
                return buffer.getvalue()
            if buffer.tell() > 2 * max_bytes:
                break  # no quality would do
        side = side * 2 // 3
