"""What a look at an image's bytes says."""

from __future__ import annotations

import io
import random
import struct
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


# --- what is behind a picture, and which way up it is shown -----------------------------------------------------------


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("rest", [b"\0", b"\n", b"\xff", b"\xff\xd8", bytes(3000)])
@pytest.mark.parametrize("length", [1, 7, 100_000])
def test_bytes_behind_the_end_of_a_picture_are_no_reason_to_lose_it(name: str, rest: bytes, length: int) -> None:
    data, media_type = PICTURES[name]
    assert pieces(data + rest, length) == Picture(media_type=media_type, width=48, height=32)


def test_a_phones_jpeg_with_a_second_picture_behind_the_first_is_one() -> None:
    buffer = io.BytesIO()
    first, second = (Image.linear_gradient("L").resize((48, 32)) for _ in range(2))
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    assert pieces(buffer.getvalue(), 50) == Picture(media_type="image/jpeg", width=48, height=32)


def test_a_jpeg_that_ends_without_a_scan_is_none() -> None:
    jpeg = PICTURES["jpeg"][0]
    with pytest.raises(UndecodablePicture, match="a JPEG without a scan"):
        inspect(jpeg[: jpeg.index(b"\xff\xda")] + b"\xff\xd9" + bytes(100))


def turned(form: str, orientation: int, order: str = ">", kind: int = 3) -> bytes:
    """A picture of 48×32 pixels whose Exif data says how it is shown; `order` and `kind` as TIFF has them."""
    mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
    other = struct.pack(f"{order}HHII", 0x010F, 2, 1, 0)
    entry = struct.pack(f"{order}HHIHxx", 0x0112, kind, 1, orientation)
    tiff = mark + struct.pack(f"{order}IH", 8, 2) + other + entry + bytes(4)
    return encoded("RGB", form, exif=b"Exif\0\0" + tiff)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_width_and_height_are_those_of_the_picture_as_it_is_shown(form: str, order: str, orientation: int) -> None:
    data = turned(form, orientation, order)
    shown = (32, 48) if orientation >= 5 else (48, 32)
    for length in (1, 5, 100_000):
        picture_seen = pieces(data, length)
        assert (picture_seen.width, picture_seen.height) == shown


@pytest.mark.parametrize("data", [turned(form, 9) for form in ("PNG", "JPEG", "WEBP")] + [turned("JPEG", 6, kind=4)])
def test_an_orientation_that_makes_no_sense_is_none(data: bytes) -> None:
    assert (inspect(data).width, inspect(data).height) == (48, 32)


def test_a_png_may_tell_its_orientation_behind_its_pixels() -> None:
    exif = b"MM\0*" + struct.pack(">IHHHIHxx", 8, 1, 0x0112, 3, 1, 6)
    data = encoded("RGB", "PNG")
    assert inspect(data[:-12] + png_chunk(b"eXIf", exif) + data[-12:]).width == 32


@given(st.binary(max_size=60), st.sampled_from([b"", b"II*\0", b"MM\0*", b"MM\0*\0\0\0\x08\xff\xff"]))
def test_no_exif_data_crash_the_look(rest: bytes, head: bytes) -> None:
    for form in ("PNG", "JPEG", "WEBP"):
        data = encoded("RGB", form, exif=b"Exif\0\0" + head + rest)
        assert sorted((inspect(data).width, inspect(data).height)) == [32, 48]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_exif_data_of_any_length_are_looked_at_in_bounded_memory(form: str) -> None:
    data = encoded("RGB", form, exif=b"Exif\0\0MM\0*" + struct.pack(">IHHHIHxx", 8, 1, 0x0112, 3, 1, 6) + bytes(60_000))
    assert pieces(data, 777).width == 32


def test_a_webp_that_promises_exif_data_and_has_none_is_shown_as_it_is() -> None:
    data = turned("WEBP", 6)
    for length in (len(data) - 26, data.index(b"EXIF") + 8):
        cut_off = data[:4] + (length - 8).to_bytes(4, "little") + data[8:length]
        assert inspect(cut_off).width == 48
    with pytest.raises(UndecodablePicture, match="cut off"):
        inspect(data[:-1])
