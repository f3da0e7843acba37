"""What a look at an image's bytes says."""

from __future__ import annotations

import io
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sidecar.domain import Picture
from sidecar.errors import UndecodablePicture
from sidecar.imaging.inspect import MAX_SCANS, MOST_PARTS, PictureInspector, inspect
from tests.pictures import picture, png_chunk, png_claiming


def encoded(mode: str, form: str, size: tuple[int, int] = (48, 32), **options: Any) -> bytes:
    buffer = io.BytesIO()
    gradient = Image.linear_gradient("L").resize(size)
    gradient.convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


PICTURES = {
    "png rgb": (encoded("RGB", "PNG"), "image/png"),
    "png rgba": (encoded("RGBA", "PNG"), "image/png"),
    "png grey": (encoded("L", "PNG"), "image/png"),
    "png palette": (encoded("P", "PNG"), "image/png"),
    "png one bit": (encoded("1", "PNG"), "image/png"),
    "png 16 bit": (encoded("I;16", "PNG"), "image/png"),
    "jpeg": (encoded("RGB", "JPEG"), "image/jpeg"),
    "jpeg progressive": (encoded("RGB", "JPEG", progressive=True), "image/jpeg"),
    "jpeg grey": (encoded("L", "JPEG"), "image/jpeg"),
    "jpeg cmyk": (encoded("CMYK", "JPEG"), "image/jpeg"),
    "jpeg with a comment": (encoded("RGB", "JPEG", comment=b"\xff\xd9" * 2000), "image/jpeg"),
    "webp lossy": (encoded("RGB", "WEBP"), "image/webp"),
    "webp lossless": (encoded("RGB", "WEBP", lossless=True), "image/webp"),
    "webp alpha": (encoded("RGBA", "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"), "image/webp"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_real_pictures_are_told_apart_and_measured(name: str) -> None:
    data, media_type = PICTURES[name]
    assert inspect(data) == Picture(media_type=media_type, width=48, height=32)


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_cut_off_anywhere_is_no_picture(name: str) -> None:
    data, media_type = PICTURES[name]
    for length in range(len(data) - 1 if media_type != "image/webp" else len(data) // 2 * 2 - 1):
        with pytest.raises(UndecodablePicture):
            inspect(data[:length])


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x40\0\0\0WEBPVP8 "])
)
def test_no_bytes_crash_the_look(rest: bytes, head: bytes) -> None:
    try:
        assert inspect(head + rest).width > 0
    except UndecodablePicture as error:
        assert error.message


@settings(max_examples=300)
@given(st.sampled_from(sorted(PICTURES)), st.randoms())
def test_a_damaged_picture_never_crashes_the_look(name: str, chance: random.Random) -> None:
    data = bytearray(PICTURES[name][0])
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    try:
        assert inspect(bytes(data)).height > 0
    except UndecodablePicture as error:
        assert error.message


@given(st.sampled_from(sorted(PICTURES)), st.lists(st.integers(1, 200), min_size=1))
def test_a_picture_may_arrive_in_any_pieces(name: str, lengths: list[int]) -> None:
    data, media_type = PICTURES[name]
    inspector = PictureInspector()
    position = 0
    while position < len(data):
        for length in lengths:
            inspector.feed(data[position : position + length])
            position += length
    assert inspector.finish() == Picture(media_type=media_type, width=48, height=32)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "neither PNG, JPEG nor WebP"),
        (b"GIF89a" + bytes(50), "neither PNG, JPEG nor WebP: it starts with b'GIF89a"),
        (png_claiming(20_000, 20), "claims 20000×20 pixels"),
        (png_claiming(0, 20), "claims 0×20 pixels"),
        (png_claiming(8_000, 8_000), "cannot hold them"),
        (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IEND", b""), "does not start with its header"),
        (picture()[:-6] + b"\0\0\0\0\0\0", "wrong checksum"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, told: str) -> None:
    with pytest.raises(UndecodablePicture, match=told):
        inspect(data)


def with_chunks(count: int, body: bytes) -> bytes:
    """A PNG with so many further chunks behind its header."""
    head = len(png_chunk(b"IHDR", bytes(13))) + 8
    return picture()[:head] + png_chunk(b"teSt", body) * count + picture()[head:]


def behind_the_start(jpeg: bytes) -> bytes:
    """A JPEG with something behind its first marker."""
    start, rest = PICTURES["jpeg"][0][:2], PICTURES["jpeg"][0][2:]
    return start + jpeg + rest


ENDLESS = {
    "png of empty chunks": (
        with_chunks(MOST_PARTS + 1, b""),
        "a PNG of more than 4,096 chunks that hold next to nothing",
    ),
    "png of tiny chunks": (with_chunks(MOST_PARTS * 2, b"x" * 64), "a PNG of more than 4,096 chunks"),
    "png of small chunks": (with_chunks(MOST_PARTS * 2, b"x" * 400), "a PNG of more than 4,096 chunks"),
    "jpeg of empty segments": (
        behind_the_start(b"\xff\xe0\0\x02" * MOST_PARTS),
        "a JPEG with more than 4,096 markers",
    ),
    "jpeg of bare markers": (behind_the_start(b"\xff\x01" * MOST_PARTS), "a JPEG with more than 4,096 markers"),
    "jpeg of filled markers": (
        behind_the_start(b"\xff\xff\xff\x01" * MOST_PARTS),
        "a JPEG with more than 4,096 markers",
    ),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_picture_of_countless_parts_is_refused_long_before_its_end(name: str) -> None:
    """Each costs a step of its own, and nobody else is served meanwhile."""
    data, told = ENDLESS[name]
    with pytest.raises(UndecodablePicture, match=told):
        inspect(data)


@pytest.mark.parametrize(
    "data",
    [
        with_chunks(4_000, b""),
        with_chunks(6_000, b"x" * 1024),
        behind_the_start(b"\xff\xe0\0\x02" * 4_000),
        behind_the_start(b"\xff\xfe\xff\xff" + bytes(65_533)),
        behind_the_start(b"\xff" * 1_000_000),
    ],
)
def test_a_picture_of_many_parts_is_one(data: bytes) -> None:
    assert (inspect(data).height, pieces(data, 1000).height) in [(64, 64), (32, 32)]


def pieces(data: bytes, length: int) -> Picture:
    """What is said of a picture that comes in pieces."""
    inspector = PictureInspector()
    for start in range(0, len(data), length):
        inspector.feed(data[start : start + length])
    return inspector.finish()


@given(st.lists(st.integers(1, 5), min_size=1, max_size=9), st.integers(1, 7))
def test_markers_may_have_any_number_of_fill_bytes_wherever_they_are_cut(fills: list[int], length: int) -> None:
    segments = b"".join(b"\xff" * fill + b"\xe0\0\x03x" for fill in fills)
    assert pieces(behind_the_start(segments), length) == Picture(media_type="image/jpeg", width=48, height=32)


PROGRESSIVE = encoded("RGB", "JPEG", size=(640, 480), progressive=True)
LAST_SCAN = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]


def with_scans(count: int) -> bytes:
    """A JPEG whose last scan comes `count` times more."""
    return PROGRESSIVE[:-2] + LAST_SCAN * count + PROGRESSIVE[-2:]


RESTARTING = encoded("RGB", "JPEG", size=(640, 480), restart_marker_rows=1)


@pytest.mark.parametrize("jpeg", [PROGRESSIVE, RESTARTING], ids=["progressive", "with restart markers"])
@pytest.mark.parametrize("length", [*range(1, 9), 999])
def test_a_jpeg_is_read_to_its_end_however_it_is_cut(jpeg: bytes, length: int) -> None:
    assert pieces(jpeg, length) == Picture(media_type="image/jpeg", width=640, height=480)
    with pytest.raises(UndecodablePicture, match="without its end"):
        pieces(jpeg[:-2], length)


@pytest.mark.parametrize("length", [1, 1000, 10_000_000])
def test_a_jpeg_of_countless_scans_is_refused_as_it_comes(length: int) -> None:
    """Each takes a decoder another pass over all pixels: 9,000 of them take a minute (issue 13)."""
    scans = PROGRESSIVE.count(b"\xff\xda")
    assert pieces(with_scans(MAX_SCANS - scans), length).width == 640
    with pytest.raises(UndecodablePicture, match="more than 100 scans"):
        pieces(with_scans(MAX_SCANS - scans + 1)[:-2], length)
