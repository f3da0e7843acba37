"""Thumbnails are made by a process of their own, within a budget of memory and time."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import signal
import struct
import sys
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sidecar.errors import DecoderUnavailable, NoPreview, UndecodablePicture
from sidecar.imaging.inspect import inspect
from sidecar.imaging.thumbnails import DECODING_BYTES, PillowThumbnailer
from sidecar.runtimes.arriving_image import ArrivingImage
from tests.conftest import Sidecar
from tests.fake_kserve import FakeKServe, succeed
from tests.pictures import jpeg_of_scans, picture, png_chunk, png_claiming
from tests.test_pictures import PICTURES, encoded, turned

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MEBIBYTE = 2**20


@pytest.fixture
async def thumbnailer() -> AsyncIterator[PillowThumbnailer]:
    async with PillowThumbnailer().opened() as opened:
        yield opened


@pytest.mark.parametrize("name", PICTURES)
async def test_every_kind_of_picture_has_a_thumbnail(name: str, thumbnailer: PillowThumbnailer) -> None:
    small = await thumbnailer.thumbnail(PICTURES[name][0], pixels=24, max_bytes=75_000)
    with Image.open(io.BytesIO(small)) as image:
        assert (image.format, image.size) == ("WEBP", (24, 16))


async def test_a_thumbnail_fits_its_bytes_by_quality_then_by_size(thumbnailer: PillowThumbnailer) -> None:
    noise = picture(1024, 1024, noise=True)
    for limit in (75_000, 10_000, 600):
        assert len(await thumbnailer.thumbnail(noise, pixels=512, max_bytes=limit)) <= limit


@pytest.mark.parametrize("size", [(1, 2000), (2000, 1), (1, 1)])
async def test_strips_have_thumbnails_too(size: tuple[int, int], thumbnailer: PillowThumbnailer) -> None:
    small = await thumbnailer.thumbnail(picture(*size), pixels=512, max_bytes=75_000)
    with Image.open(io.BytesIO(small)) as image:
        assert max(image.size) <= 512


async def test_transparency_is_kept(thumbnailer: PillowThumbnailer) -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(buffer, "PNG")
    with Image.open(io.BytesIO(await thumbnailer.thumbnail(buffer.getvalue(), pixels=32, max_bytes=9999))) as image:
        assert image.getpixel((5, 5))[3] == 0  # type: ignore[index]


@pytest.mark.parametrize("data", [b"", b"text", png_claiming(64, 64), picture()[:-40], b"GIF89a" + bytes(99)])
async def test_what_does_not_decode_is_told(data: bytes, thumbnailer: PillowThumbnailer) -> None:
    with pytest.raises(UndecodablePicture):
        await thumbnailer.thumbnail(data, pixels=32, max_bytes=9999)


def png_of_16_bits(*chunks: bytes) -> bytes:
    """A ramp from black to white, 512×64, of 16-bit grey."""
    header = struct.pack(">IIBBBBB", 512, 64, 16, 0, 0, 0, 0)
    row = b"\0" + b"".join(struct.pack(">H", 65535 * column // 511) for column in range(512))
    parts = [png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", zlib.compress(row * 64)), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("data", [png_of_16_bits(), png_of_16_bits(png_chunk(b"tRNS", b"\x01\x2c"))])
async def test_grey_of_16_bits_is_scaled(data: bytes, thumbnailer: PillowThumbnailer) -> None:
    with Image.open(io.BytesIO(await thumbnailer.thumbnail(data, pixels=512, max_bytes=75_000))) as image:
        greys = image.convert("L")
    for column in (50, 128, 256, 384, 500):
        assert abs(greys.getpixel((column, 32)) - column // 2) < 8  # type: ignore[operator]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
async def test_a_thumbnail_is_the_right_way_up(form: str, orientation: int, thumbnailer: PillowThumbnailer) -> None:
    """Its source is light at the bottom."""
    data = turned(form, orientation)
    with Image.open(io.BytesIO(await thumbnailer.thumbnail(data, pixels=64, max_bytes=75_000))) as image:
        shown = inspect(data)
        assert image.size == (shown.width, shown.height)
        greys = image.convert("L")
    right, bottom = image.width - 1, image.height - 1
    edges = {
        "top": (right // 2, 0),
        "bottom": (right // 2, bottom),
        "left": (0, bottom // 2),
        "right": (right, bottom // 2),
    }
    lightest = max(edges, key=lambda edge: greys.getpixel(edges[edge]))  # type: ignore[arg-type,return-value]
    light = {1: "bottom", 2: "bottom", 3: "top", 4: "top", 5: "right", 6: "left", 7: "left", 8: "right"}
    assert lightest == light[orientation]


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "RGBA"])
async def test_an_all_black_picture_is_known(mode: str, thumbnailer: PillowThumbnailer) -> None:
    black = Image.new("RGB", (700, 300))
    with_a_star = black.copy()
    with_a_star.putpixel((350, 150), (255, 255, 255))
    for image, expected in ((black, True), (with_a_star, False)):
        buffer = io.BytesIO()
        image.convert(mode).save(buffer, "PNG")
        assert await thumbnailer.is_black(buffer.getvalue()) is expected


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
async def test_an_all_black_picture_is_known_from_lossy_encoders_too(form: str, thumbnailer: PillowThumbnailer) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (512, 512)).save(buffer, form)
    assert await thumbnailer.is_black(buffer.getvalue())
    assert not await thumbnailer.is_black(picture(512, 512, form))


async def test_a_picture_of_nothing_is_not_black(thumbnailer: PillowThumbnailer) -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(buffer, "PNG")
    assert not await thumbnailer.is_black(buffer.getvalue())
    with pytest.raises(UndecodablePicture):
        await thumbnailer.is_black(picture()[:-40])


async def test_a_picture_reaches_the_worker_without_a_second_copy_of_it(thumbnailer: PillowThumbnailer) -> None:
    picture_bytes = bytes(16 * MEBIBYTE)
    tracemalloc.start()
    try:
        with pytest.raises(UndecodablePicture):
            await thumbnailer.thumbnail(picture_bytes, pixels=32, max_bytes=9999)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6 * MEBIBYTE


# --- memory -----------------------------------------------------------------------------------------------------------

BIG = (1024, 1024)


async def small(thumbnailer: PillowThumbnailer, source: bytes) -> bytes:
    return await thumbnailer.thumbnail(source, pixels=64, max_bytes=75_000)


@pytest.mark.parametrize(
    ("data", "mebibytes"),
    [
        (encoded("RGB", "PNG", size=BIG), 4),
        (encoded("RGBA", "PNG", size=BIG), 4),
        (encoded("LA", "PNG", size=BIG), 4),
        (encoded("L", "PNG", size=BIG), 1),
        (encoded("P", "PNG", size=BIG), 1),
        (encoded("1", "PNG", size=BIG), 1),
        (encoded("I;16", "PNG", size=BIG), 2),
        (encoded("RGB", "JPEG", size=BIG), 1),
        (encoded("CMYK", "JPEG", size=BIG), 1),
        (encoded("RGB", "JPEG", size=BIG, progressive=True), 4),
        (encoded("RGB", "JPEG", size=BIG, progressive=True, subsampling=0), 7),
        (encoded("L", "JPEG", size=BIG, progressive=True), 3),
        (encoded("RGB", "WEBP", size=BIG), 16),
        (encoded("RGBA", "WEBP", size=BIG, lossless=True), 16),
    ],
)
async def test_what_a_decode_takes_is_known_before_it_begins(data: bytes, mebibytes: int) -> None:
    async with PillowThumbnailer(budget=mebibytes * MEBIBYTE).opened() as enough:
        assert await small(enough, data)
    async with PillowThumbnailer(budget=(mebibytes - 1) * MEBIBYTE).opened() as little:
        with pytest.raises(NoPreview, match=rf"1024×1024 pixels need {mebibytes} MiB .* allowed: {mebibytes - 1} MiB"):
            await small(little, data)


def in_three_scans(grey: bytes) -> bytes:
    """A JPEG of one component as a baseline one of three, each in a scan of its own (ITU-T T.81, figure A.3)."""
    frame, scan = grey.index(b"\xff\xc0"), grey.index(b"\xff\xda")
    components = b"".join(bytes([number, 0x11, 0]) for number in (1, 2, 3))
    header = b"\xff\xc0\0\x11" + grey[frame + 4 : frame + 9] + b"\3" + components
    scans = (b"\xff\xda\0\x08\1" + bytes([number]) + grey[scan + 6 : -2] for number in (1, 2, 3))
    return grey[:frame] + header + grey[frame + 13 : scan] + b"".join(scans) + b"\xff\xd9"


async def test_a_baseline_jpeg_in_several_scans_needs_its_coefficients_too() -> None:
    data = in_three_scans(encoded("L", "JPEG", size=BIG))
    async with PillowThumbnailer(budget=7 * MEBIBYTE).opened() as enough:
        assert await small(enough, data)
    async with PillowThumbnailer(budget=6 * MEBIBYTE).opened() as little:
        with pytest.raises(NoPreview, match="need 7 MiB"):
            await small(little, data)


def png_of_zeros(width: int, height: int, color: int, *chunks: bytes) -> bytes:
    """A real PNG of few bytes; `color` is that of its header, of eight bits a sample."""
    channels = {0: 1, 2: 3, 6: 4}[color]
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(1 + width * channels)) for _ in range(height)) + packer.flush()
    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, color, 0, 0, 0])
    parts = [png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", rows), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def most_memory(pid: int | None) -> int:
    """The most that a process ever had, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


@linux
async def test_the_largest_picture_within_the_budget_takes_no_more(
    thumbnailer: PillowThumbnailer,
) -> None:
    large = png_of_zeros(4096, 4096, 6)
    await small(thumbnailer, picture())
    before = most_memory(thumbnailer.worker_pid)
    assert await small(thumbnailer, large)
    assert most_memory(thumbnailer.worker_pid) - before < DECODING_BYTES + 12 * MEBIBYTE


@linux
async def test_the_kernel_holds_the_worker_to_its_budget(thumbnailer: PillowThumbnailer) -> None:
    await small(thumbnailer, picture())
    limits = Path(f"/proc/{thumbnailer.worker_pid}/limits").read_text().splitlines()
    (allowed,) = [line.split()[3] for line in limits if line.startswith("Max data size")]
    assert DECODING_BYTES < int(allowed) < 2 * DECODING_BYTES


@linux
async def test_texts_and_profiles_in_a_picture_are_not_unpacked(thumbnailer: PillowThumbnailer) -> None:
    """Workflows of several megabytes are common, and 60 MB of nothing pack into 60 kB."""
    packed = png_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(60_000_000), 9))
    international = png_chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(b"x" * 3_000_000))
    plain = png_chunk(b"tEXt", b"workflow\0" + b"x" * 3_000_000)
    profile = png_chunk(b"iCCP", b"huge\0\0" + zlib.compress(bytes(60_000_000), 9))
    await small(thumbnailer, picture())
    before = most_memory(thumbnailer.worker_pid)
    assert await small(thumbnailer, png_of_zeros(64, 64, 2, profile, packed, packed, international, plain))
    assert most_memory(thumbnailer.worker_pid) - before < 16 * MEBIBYTE


# --- time, and the process --------------------------------------------------------------------------------------------

ENDLESS = jpeg_of_scans(4096, 9_000)
"""A minute of decoding in 363 kB (issue 13). On arrival it is refused; a store may hold it from before."""


async def begun(thumbnailer: PillowThumbnailer, decode: asyncio.Task[bytes]) -> int:
    """The process that is decoding, once it is."""
    async with asyncio.timeout(30):
        while thumbnailer.worker_pid is None:
            await asyncio.sleep(0.01)
    assert not decode.done()
    return thumbnailer.worker_pid


async def gone(pid: int) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return
            await asyncio.sleep(0.01)


async def test_a_decode_that_takes_too_long_is_given_up() -> None:
    async with PillowThumbnailer(deadline=1).opened() as thumbnailer:
        decode = asyncio.create_task(small(thumbnailer, ENDLESS))
        pid = await begun(thumbnailer, decode)
        with pytest.raises(NoPreview, match="took longer than 1 s") as told:
            await decode
        assert told.value.retry_after is not None
        await gone(pid)
        assert await small(thumbnailer, picture())


async def test_a_caller_who_leaves_in_the_middle_spoils_no_other_picture(thumbnailer: PillowThumbnailer) -> None:
    decode = asyncio.create_task(small(thumbnailer, ENDLESS))
    pid = await begun(thumbnailer, decode)
    decode.cancel()
    assert Image.open(io.BytesIO(await small(thumbnailer, picture(30, 20)))).size == (30, 20)
    await gone(pid)


async def test_what_ends_the_worker_ends_nothing_else(thumbnailer: PillowThumbnailer) -> None:
    decode = asyncio.create_task(small(thumbnailer, ENDLESS))
    os.kill(await begun(thumbnailer, decode), signal.SIGKILL)
    with pytest.raises((NoPreview, DecoderUnavailable)):
        await decode
    assert await small(thumbnailer, picture())


async def test_one_picture_is_decoded_at_a_time_by_one_process(thumbnailer: PillowThumbnailer) -> None:
    await small(thumbnailer, picture())
    pid = thumbnailer.worker_pid
    sizes = [(random.Random(number).randint(8, 64), 8) for number in range(20)]
    made = await asyncio.gather(*(small(thumbnailer, picture(*size)) for size in sizes))
    assert [Image.open(io.BytesIO(data)).size for data in made] == sizes
    assert thumbnailer.worker_pid == pid


async def test_a_worker_without_work_ends() -> None:
    async with PillowThumbnailer(idle=0.05).opened() as thumbnailer:
        decode = asyncio.create_task(small(thumbnailer, picture()))
        pid = await begun(thumbnailer, decode)
        await decode
        await gone(pid)
        assert thumbnailer.worker_pid is None
        assert await small(thumbnailer, picture())


async def test_leaving_waits_for_no_decode() -> None:
    thumbnailer = PillowThumbnailer()
    async with thumbnailer.opened():
        decode = asyncio.create_task(small(thumbnailer, ENDLESS))
        waiting = asyncio.create_task(small(thumbnailer, picture()))
        pid = await begun(thumbnailer, decode)
    await asyncio.wait_for(gone(pid), 5)
    for task in (decode, waiting):
        with pytest.raises(DecoderUnavailable):
            await task


# --- what clients see -------------------------------------------------------------------------------------------------

HUGE = png_claiming(8192, 8192, random.Random(1).randbytes(200_000))
WHY = "its 8192×8192 pixels need 256 MiB of memory to decode; allowed: 64 MiB"


async def test_a_picture_over_the_budget_is_stored_and_has_no_preview(sidecar: Sidecar, kserve: FakeKServe) -> None:
    kserve.script.append(succeed(HUGE))
    result = await sidecar.generate(seed=7, result="thumbnail")
    told = f"The picture with seed 7 has no preview: {WHY}; the link has the image."
    assert (result.is_error, result.structured_content["message"], told in result.content[0].text) == (
        False,
        told,
        True,
    )
    assert [block.type for block in result.content if block.type == "image"] == []
    image = result.structured_content["images"][0]
    assert (await sidecar.get(image["url"]))[1] == HUGE
    response, body = await sidecar.get(image["thumbnail_url"])
    assert (response.status, response.headers["Cache-Control"]) == (422, "no-store")
    assert WHY in json.loads(body)["error"]


@pytest.mark.parametrize("data", [HUGE, png_claiming(64, 64)], ids=["over the budget", "damaged"])
async def test_that_there_is_no_preview_is_found_out_once(data: bytes, sidecar: Sidecar, kserve: FakeKServe) -> None:
    kserve.script.append(succeed(data))
    image: dict[str, Any] = await sidecar.made()
    first = await sidecar.get(image["thumbnail_url"])
    next(sidecar.store.glob(f"images/*/{image['image_id']}.png")).unlink()
    second = await sidecar.get(image["thumbnail_url"])
    assert (first[0].status, second[0].status, second[1]) == (422, 422, first[1])


BLACK = "The picture with seed 7 is all black: the model's safety checker may have replaced it."


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
async def test_an_all_black_picture_is_stored_and_told_also_to_those_who_ask_later(
    form: str, sidecar: Sidecar, kserve: FakeKServe
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (512, 512)).save(buffer, form)
    kserve.script.append(succeed(buffer.getvalue()))
    arguments: dict[str, Any] = {"seed": 7, "result": "link", "idempotency_key": "a"}
    for _ in range(2):
        result = await sidecar.generate(**arguments)
        assert (result.is_error, result.structured_content["status"]) == (False, "completed")
        assert result.structured_content["message"].startswith(BLACK)
        assert BLACK in result.content[0].text
        assert (await sidecar.get(result.structured_content["images"][0]["url"]))[1] == buffer.getvalue()
    assert len(kserve.instances) == 1


@pytest.mark.parametrize("data", [picture(512, 512), HUGE, png_of_zeros(64, 64, 6)])
async def test_of_other_pictures_nothing_is_said(data: bytes, sidecar: Sidecar, kserve: FakeKServe) -> None:
    """Also of those of few bytes that are not black, are damaged, or would take too much to look at."""
    kserve.script.append(succeed(data))
    result = await sidecar.generate(result="link")
    assert (result.is_error, result.structured_content["message"]) == (False, None)


async def test_only_files_of_few_bytes_for_their_pixels_are_looked_at() -> None:
    class Nowhere:
        path = Path("nowhere")

        async def write(self, data: bytes) -> None:
            """Written."""

        async def restart(self) -> None:
            """Forgotten."""

    for data, sparse in ((png_of_zeros(512, 512, 2), True), (picture(512, 512, noise=True), False), (picture(), False)):
        image = ArrivingImage(Nowhere())
        for start in range(0, len(data), 1000):
            image.write(data[start : start + 1000])
        assert image.sparse(image.picture(10_000_000)) == (data if sparse else None)
