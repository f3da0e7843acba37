"""A stored image over HTTP: conditions, ranges, headers, and one kind of 404."""

from __future__ import annotations

import asyncio
import io
import json
import os
from collections.abc import Callable
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from PIL import Image

from sidecar.config import read_settings
from sidecar.core.service import ImageService
from sidecar.domain import StoredImage
from sidecar.edge import images_http, keys
from sidecar.errors import ImageNotFound
from sidecar.imaging.thumbnails import PillowThumbnailer
from sidecar.ports import OpenFile, SystemClock
from sidecar.storages.directory import Directory
from sidecar.storages.file import FileStorage
from sidecar.storages.open_files import LONGEST_HEAD, OpenFiles
from tests.conftest import Sidecar, StartSidecar
from tests.fake_kserve import FakeKServe, succeed, succeed_when
from tests.pictures import picture, png_claiming
from tests.storage_contract import PNG, put


async def stored(sidecar: Sidecar, kserve: FakeKServe, data: bytes) -> dict[str, Any]:
    kserve.script.append(succeed(data))
    return await sidecar.made()


async def test_an_image_comes_with_everything_a_browser_and_a_cache_need(sidecar: Sidecar, kserve: FakeKServe) -> None:
    data = picture(128, 128, noise=True)
    image = await stored(sidecar, kserve, data)
    response, body = await sidecar.get(image["url"])
    headers = response.headers
    assert (response.status, body) == (200, data)
    assert headers["Content-Type"] == "image/png"
    assert headers["Content-Length"] == str(len(data))
    assert headers["ETag"] == f'"{image["sha256"]}"'
    assert headers["Accept-Ranges"] == "bytes"
    assert headers["Cache-Control"] == "private, max-age=300"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"] == "default-src 'none'; style-src 'unsafe-inline'"
    assert headers["Content-Disposition"].startswith('inline; filename="image-20')
    assert headers["Content-Disposition"].endswith('.png"')
    assert parsedate_to_datetime(headers["Last-Modified"]).isoformat()[:19] == image["created_at"][:19]


@pytest.mark.parametrize("path", ["", ".png", "/thumbnail", "/thumbnail.webp"])
async def test_head_answers_as_get_does_without_the_body(path: str, sidecar: Sidecar) -> None:
    url = f"/images/{(await sidecar.made())['image_id']}{path}"
    got, body = await sidecar.get(url)
    head, nothing = await sidecar.get(url, method="HEAD")
    changing = {"Date", "X-Request-ID", "Cache-Control"}
    assert (head.status, nothing) == (200, b"")
    assert {k: v for k, v in head.headers.items() if k not in changing} == {
        k: v for k, v in got.headers.items() if k not in changing
    }
    assert head.headers["Content-Length"] == str(len(body))


@pytest.mark.parametrize("extension", ["", ".png", ".PNG", ".jpg", ".webp"])
async def test_a_file_extension_after_the_id_is_accepted(extension: str, sidecar: Sidecar) -> None:
    image = await sidecar.made()
    assert (await sidecar.get(f"/images/{image['image_id']}{extension}"))[0].status == 200


@pytest.mark.parametrize("path", ["", "/thumbnail"])
@pytest.mark.parametrize(
    ("form", "status"), [("{etag}", 304), ("W/{etag}", 304), ('"x", {etag}', 304), ("*", 304), ('"x"', 200), ("x", 200)]
)
async def test_if_none_match(form: str, status: int, path: str, sidecar: Sidecar) -> None:
    url = f"/images/{(await sidecar.made())['image_id']}{path}"
    etag = (await sidecar.get(url))[0].headers["ETag"]
    response, body = await sidecar.get(url, headers={"If-None-Match": form.format(etag=etag)})
    assert (response.status, response.headers["ETag"], bool(body)) == (status, etag, status == 200)
    assert "Cache-Control" in response.headers


@pytest.mark.parametrize(("seconds", "status"), [(0, 304), (60, 304), (-1, 200)])
async def test_if_modified_since(seconds: int, status: int, sidecar: Sidecar) -> None:
    url = (await sidecar.made())["url"]
    modified = parsedate_to_datetime((await sidecar.get(url))[0].headers["Last-Modified"])
    since = format_datetime(modified + timedelta(seconds=seconds), usegmt=True)
    assert (await sidecar.get(url, headers={"If-Modified-Since": since}))[0].status == status
    # RFC 9110 section 13.1.3: the entity tag has the last word
    both = {"If-Modified-Since": since, "If-None-Match": '"x"'}
    assert (await sidecar.get(url, headers=both))[0].status == 200


@pytest.mark.parametrize("since", ["yesterday", "", "Mon, 99 Foo 2020 99:99:99 GMT", "9" * 500])
async def test_a_date_that_is_none_is_ignored(since: str, sidecar: Sidecar) -> None:
    url = (await sidecar.made())["url"]
    assert (await sidecar.get(url, headers={"If-Modified-Since": since}))[0].status == 200


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-99", 0, 100),
        ("bytes=100-", 100, None),
        ("bytes=-7", -7, None),
        ("bytes=0-0", 0, 1),
        ("bytes=0-999999999", 0, None),
        ("bytes=-999999999", 0, None),
    ],
)
@pytest.mark.parametrize("path", ["", "/thumbnail"])
async def test_a_range_gives_that_part(
    asked: str, start: int, end: int | None, path: str, sidecar: Sidecar, kserve: FakeKServe
) -> None:
    image = await stored(sidecar, kserve, picture(64, 64, noise=True))
    url = f"/images/{image['image_id']}{path}"
    _, whole = await sidecar.get(url)
    response, body = await sidecar.get(url, headers={"Range": asked})
    first = start if start >= 0 else len(whole) + start
    assert (response.status, body) == (206, whole[start:end])
    assert response.headers["Content-Range"] == f"bytes {first}-{first + len(body) - 1}/{len(whole)}"


@pytest.mark.parametrize("asked", ["bytes=99999999-", "bytes=-0", "bytes=99999999999999999999999-"])
async def test_a_range_beyond_the_end_is_416(asked: str, sidecar: Sidecar) -> None:
    image = await sidecar.made()
    response, body = await sidecar.get(image["url"], headers={"Range": asked})
    assert (response.status, body) == (416, b"")
    assert response.headers["Content-Range"] == f"bytes */{image['size_bytes']}"


@pytest.mark.parametrize("asked", ["bytes=5-2", "bytes=a-b", "items=0-5", "bytes=0-1,5-6", "bytes=-", "bytes", "٣"])
async def test_a_range_that_makes_no_sense_is_ignored(asked: str, sidecar: Sidecar) -> None:
    image = await sidecar.made()
    response, body = await sidecar.get(image["url"], headers={"Range": asked})
    assert (response.status, len(body)) == (200, image["size_bytes"])


@pytest.mark.parametrize(
    ("form", "status"), [("{etag}", 206), ("{date}", 206), ('"x"', 200), ("W/{etag}", 200), ("nonsense", 200)]
)
async def test_if_range_gives_the_part_only_of_the_same_image(form: str, status: int, sidecar: Sidecar) -> None:
    url = (await sidecar.made())["url"]
    headers = (await sidecar.get(url))[0].headers
    condition = form.format(etag=headers["ETag"], date=headers["Last-Modified"])
    response, _ = await sidecar.get(url, headers={"Range": "bytes=0-9", "If-Range": condition})
    assert response.status == status


async def test_nobody_keeps_the_answer_to_a_range_beyond_the_end(start_sidecar: StartSidecar) -> None:
    sidecar = await start_sidecar(PUBLIC_BASE_URL="https://images.example")
    image = await sidecar.made()
    for path in (f"/images/{image['image_id']}", f"/images/{image['image_id']}/thumbnail"):
        response, _ = await sidecar.get(path, headers={"Range": "bytes=99999999-"})
        assert (response.status, response.headers["Cache-Control"]) == (416, "no-store")


async def test_nobody_may_keep_an_image_longer_than_it_lives(start_sidecar: StartSidecar) -> None:
    sidecar = await start_sidecar(IMAGE_TTL="90s", IMAGE_CACHE_MAX_AGE="1h")
    response, _ = await sidecar.get((await sidecar.made())["url"])
    assert 80 <= int(response.headers["Cache-Control"].removeprefix("private, max-age=")) <= 90


UNKNOWN = "0" * 43


@pytest.mark.parametrize(
    "image_id",
    [
        UNKNOWN,
        "x",
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e%2fsecret",
        "%00",
        f"{UNKNOWN}%00",
        f"{UNKNOWN}%0a",
        "%C3%A9" * 20,
        "%F0%9F%90%88",
        "%ff%fe",
        "a" * 8_000,
        UNKNOWN.replace("0", "I"),
        f"{UNKNOWN}.png.png",
    ],
)
@pytest.mark.parametrize("suffix", ["", "/thumbnail"])
async def test_unknown_and_malformed_ids_are_one_404(image_id: str, suffix: str, sidecar: Sidecar) -> None:
    response, body = await sidecar.get(f"/images/{image_id}{suffix}")
    expected, text = await sidecar.get(f"/images/{UNKNOWN}")
    assert (response.status, body) == (404, text)
    changing = {"Date", "X-Request-ID"}
    assert {k: v for k, v in response.headers.items() if k not in changing} == {
        k: v for k, v in expected.headers.items() if k not in changing
    }
    assert b"Traceback" not in body


async def test_an_id_longer_than_a_request_line_may_be_is_refused_and_the_server_lives(sidecar: Sidecar) -> None:
    response, body = await sidecar.get(f"/images/{'a' * 10_240}")
    assert response.status in (400, 404, 414)
    assert b"Traceback" not in body
    assert (await sidecar.get("/livez"))[0].status == 200


async def test_an_expired_image_is_gone_at_its_time_though_nobody_has_swept(start_sidecar: StartSidecar) -> None:
    sidecar = await start_sidecar(IMAGE_TTL="400ms", CLEANUP_INTERVAL="1h")
    image = await sidecar.made()
    async with asyncio.timeout(30):
        while (response := (await sidecar.get(image["url"]))[0]).status == 200:
            await asyncio.sleep(0.05)
    assert response.status == 404
    assert (await sidecar.get(image["thumbnail_url"]))[0].status == 404
    assert any(name.endswith(".png") for name in sidecar.stored())


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_images_are_only_read(method: str, start_sidecar: StartSidecar) -> None:
    sidecar = await start_sidecar(GALLERY="off")  # whose pages may delete
    image = await sidecar.made()
    assert (await sidecar.get(image["url"], method=method))[0].status == 405


async def test_a_thumbnail_is_made_once_however_many_ask_at_once(sidecar: Sidecar, kserve: FakeKServe) -> None:
    image = await stored(sidecar, kserve, picture(1024, 768, noise=True))
    answers = await asyncio.gather(*(sidecar.get(image["thumbnail_url"]) for _ in range(20)))
    bodies = {body for _, body in answers}
    assert [len(bodies), Image.open(io.BytesIO(bodies.pop())).size] == [1, (512, 384)]
    commits = 'imagegen_storage_operation_duration_seconds_count{backend="file",operation="commit",outcome="ok"}'
    assert await sidecar.metric(commits) == 2


async def test_a_picture_that_does_not_decode_is_told_where_its_thumbnail_is_wanted(
    sidecar: Sidecar, kserve: FakeKServe
) -> None:
    kserve.script.append(succeed(png_claiming(64, 64, rows=b"\7" * 100)))
    result = await sidecar.generate()
    image = result.structured_content["images"][0]
    response, body = await sidecar.get(image["thumbnail_url"])
    assert (response.status, b"Traceback" in body) == (422, False)
    assert "cannot be decoded" in result.structured_content["message"]
    assert (await sidecar.get(image["url"]))[0].status == 200


async def test_a_large_image_arrives_whole(sidecar: Sidecar, kserve: FakeKServe) -> None:
    data = picture(1700, 1700, noise=True)
    assert len(data) > 4_000_000
    image = await stored(sidecar, kserve, data)
    assert (await sidecar.get(image["url"]))[1] == data


async def test_of_a_file_cut_short_nothing_is_passed_off_as_whole(sidecar: Sidecar, kserve: FakeKServe) -> None:
    image = await stored(sidecar, kserve, picture(300, 300, noise=True))
    file = the_file_of(image, sidecar)
    os.truncate(file, 1000)
    with pytest.raises(aiohttp.ClientError):  # it was looked at a moment ago
        await sidecar.get(image["url"])
    await until_closed(sidecar)
    os.truncate(file, 0)
    await is_told_as_damaged(sidecar, image)
    assert (await sidecar.get("/livez"))[0].status == 200


async def is_told_as_damaged(sidecar: Sidecar, image: dict[str, Any]) -> None:
    response, body = await sidecar.get(image["url"])
    assert (response.status, json.loads(body)["reason"]) == (404, "image_damaged")


def a_directory(place: Path, _secret: Path) -> None:
    place.mkdir()


def a_fifo(place: Path, _secret: Path) -> None:
    os.mkfifo(place)


def a_symlink(place: Path, secret: Path) -> None:
    place.symlink_to(secret)


def a_device(place: Path, _secret: Path) -> None:
    place.symlink_to("/dev/zero")


@pytest.mark.parametrize("planted", [a_directory, a_fifo, a_symlink, a_device])
async def test_what_is_planted_in_the_place_of_an_image_is_neither_followed_nor_waited_for(
    planted: Callable[[Path, Path], None], sidecar: Sidecar, tmp_path: Path
) -> None:
    image, other = await sidecar.made(), await sidecar.made()
    file = the_file_of(image, sidecar)
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(file.stat().st_size))
    file.unlink()
    planted(file, secret)
    await asyncio.gather(*(is_told_as_damaged(sidecar, image) for _ in range(20)))
    await sidecar.made()
    assert (await sidecar.get(other["url"]))[0].status == 200
    assert (await sidecar.get(image["thumbnail_url"]))[0].status == 404


async def test_an_image_that_many_ask_for_is_opened_once_and_closed_a_moment_later(
    sidecar: Sidecar, kserve: FakeKServe
) -> None:
    image = await stored(sidecar, kserve, picture(1700, 1700, noise=True))
    _, body = await sidecar.get(image["url"])

    async def part(start: int) -> bool:
        response, data = await sidecar.get(image["url"], headers={"Range": f"bytes={start}-{start + 9999}"})
        return (response.status, data) == (206, body[start : start + 10_000])

    assert all(await asyncio.gather(*(part(start) for start in range(0, 1_000_000, 50_000))))
    assert sum(str(sidecar.store) in target for target in open_files()) <= 1
    await until_closed(sidecar)


async def test_of_many_who_ask_at_once_the_first_opens_it_for_all(sidecar: Sidecar, kserve: FakeKServe) -> None:
    image = await stored(sidecar, kserve, picture(1700, 1700, noise=True))
    operations = 'imagegen_storage_operation_duration_seconds_count{backend="file",operation="get",outcome="ok"}'
    before = await sidecar.metric(operations) if operations in (await sidecar.get("/metrics"))[1].decode() else 0.0
    bodies = await asyncio.gather(*(sidecar.get(image["url"]) for _ in range(60)))
    assert {len(body) for _, body in bodies} == {image["size_bytes"]}
    assert await sidecar.metric(operations) - before < 10


async def test_many_images_at_once_are_held_in_no_more_memory_than_there_is(tmp_path: Path) -> None:
    keys = [str(number) for number in range(200)]
    for key in keys:
        (tmp_path / key).write_bytes(bytes(LONGEST_HEAD))
    directory = Directory(tmp_path, lambda event: None)
    files = await asyncio.gather(*map(partial(OpenFiles(directory).open, head=LONGEST_HEAD), keys))
    assert sum(len(file.head) for file in files) == 16 * 2**20
    assert all(os.pread(file.fileno(), 1, LONGEST_HEAD - 1) == b"\0" for file in files)
    directory.close()


async def test_readers_who_leave_in_the_middle_leave_no_file_open(sidecar: Sidecar, kserve: FakeKServe) -> None:
    image = await stored(sidecar, kserve, picture(1700, 1700, noise=True))
    host, port = sidecar.url.removeprefix("http://").split(":")
    path = image["url"].removeprefix(sidecar.url)
    for _ in range(5):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        await reader.readexactly(1000)
        writer.transport.abort()
    await until_closed(sidecar)
    assert (await sidecar.get(image["url"]))[0].status == 200


def the_file_of(image: dict[str, Any], sidecar: Sidecar) -> Path:
    (file,) = sidecar.store.rglob(f"{image['image_id']}.png")
    return file


async def until_closed(sidecar: Sidecar) -> None:
    async with asyncio.timeout(30):
        while any(str(sidecar.store) in target for target in open_files()):
            await asyncio.sleep(0.02)


def open_files() -> list[str]:
    targets = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            targets.append(str(descriptor.readlink()))
        except OSError:
            continue
    return targets


async def test_links_start_with_the_public_address_or_the_callers_own(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    public = await start_sidecar(PUBLIC_BASE_URL="https://img.example.org/pictures")
    assert (await public.made())["url"].startswith("https://img.example.org/pictures/images/")
    plain = await start_sidecar()
    kserve.script.append(succeed_when(ready := asyncio.Event()))
    ready.set()
    assert (await plain.made())["thumbnail_url"].startswith(f"{plain.url}/images/")


class Leaving(FileStorage):
    """At first the image has just gone, as from a spool whose image has been sent."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, max_bytes=None, clock=SystemClock(), observer=lambda event: None)
        self.asked = 0

    async def open(self, stored: StoredImage, head: int) -> OpenFile:
        self.asked += 1
        if self.asked == 1:
            raise ImageNotFound
        return await super().open(stored, head)


async def test_an_image_that_moves_while_it_is_asked_for_is_found(tmp_path: Path, aiohttp_client: Any) -> None:
    settings = read_settings({"KSERVE_ENDPOINT": "http://localhost/v1/models/painter", "STORAGE_PATH": str(tmp_path)})
    async with Leaving(tmp_path).opened() as store:
        image_id = (await put(store, SystemClock().now())).record.image_id
        app = web.Application()
        app[keys.SETTINGS], app[keys.CLOCK] = settings, SystemClock()
        app[keys.SERVICE] = ImageService(
            lanes={},
            storage=store,
            thumbnailer=PillowThumbnailer(),
            settings=settings.storage,
            clock=SystemClock(),
            observer=lambda event: None,
        )
        app.router.add_routes(images_http.routes())
        response = await (await aiohttp_client(app)).get(f"/images/{image_id}")
        assert (response.status, await response.read()) == (200, PNG)
