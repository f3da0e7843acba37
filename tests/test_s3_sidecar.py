"""Whole sidecars on a bucket: one alone, and two that share it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from sidecar.config import read_settings
from sidecar.edge.mcp_app.app import APP_URI
from sidecar.ports import SystemClock
from sidecar.storages.opening import migrated
from sidecar.storages.s3 import opened_s3
from tests.conftest import Sidecar, StartSidecar
from tests.fake_kserve import FakeKServe, succeed, succeed_when
from tests.job_store_contract import job
from tests.odd_store import Odd, at, odd
from tests.pictures import picture
from tests.test_jobs import BRIEF, call, ended, start

__all__ = ["odd"]

pytestmark = pytest.mark.real


@pytest.fixture
async def sidecar(start_sidecar: StartSidecar, s3: dict[str, str]) -> Sidecar:
    return await start_sidecar(**s3)


async def test_an_image_goes_its_whole_way_through_the_bucket(sidecar: Sidecar, kserve: FakeKServe) -> None:
    data = picture(256, 256, noise=True)
    kserve.script.append(succeed(data))
    image = await sidecar.made()
    response, body = await sidecar.get(image["url"])
    assert (response.status, body, [step.status for step in response.history]) == (200, data, [302])
    response, small = await sidecar.get(image["thumbnail_url"])
    assert (response.status, response.headers["Content-Type"], small[8:12]) == (200, "image/webp", b"WEBP")
    full = await sidecar.generate(result="full", width=64, height=64)
    assert [block.type for block in full.content] == ["text", "image"]
    assert not [name for name in sidecar.stored() if "/staging/" not in name]


# --- what it costs ----------------------------------------------------------------------------------------------------


@dataclass
class Toll:
    """A way to the store that notes who passes, and can be told to answer something itself."""

    store: str
    passed: list[tuple[str, str]] = field(default_factory=list)
    instead: list[web.Response] = field(default_factory=list)

    def counts(self, *methods: str) -> list[int]:
        return [sum(method == one for one, _ in self.passed) for method in methods]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if "list-type" in request.query:
            self.passed.append(("LIST", request.query["prefix"]))
        else:
            self.passed.append((request.method, request.path))
        if self.instead and "probe/" not in request.path:
            return self.instead.pop(0)
        url = URL(self.store + request.raw_path, encoded=True)
        headers = {name: value for name, value in request.headers.items() if name != "Transfer-Encoding"}
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(request.method, url, headers=headers, data=await request.read()) as answer,
        ):
            body = await answer.read()
            kept = {name: value for name, value in answer.headers.items() if name not in ("Transfer-Encoding", "Date")}
            return web.Response(status=answer.status, headers=kept, body=None if request.method == "HEAD" else body)


@asynccontextmanager
async def toll(aiohttp_server: Any, s3: dict[str, str]) -> AsyncIterator[tuple[Toll, dict[str, str]]]:
    on_the_way = Toll(s3["S3_ENDPOINT_URL"])
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", on_the_way.handle)
    server = await aiohttp_server(app)
    yield on_the_way, {**s3, "S3_ENDPOINT_URL": f"http://127.0.0.1:{server.port}"}


async def settled(on_the_way: Toll) -> None:
    """Wait until what a sidecar does on starting is over: the probe and the first pass delete a batch each."""

    def over() -> bool:
        looks = [path for kind, path in on_the_way.passed if kind == "LIST" and path.endswith("jobs/open/")]
        return len(looks) == 2 and on_the_way.counts("POST") == [2]

    async with asyncio.timeout(20):
        while not over():
            await asyncio.sleep(0.02)
    on_the_way.passed.clear()


@pytest.mark.parametrize(("result", "puts"), [("link", 3), ("thumbnail", 4), ("full", 3)])
async def test_a_generation_that_is_answered_at_once_costs_three_puts_a_preview_one_more_and_nothing_is_read(
    result: str, puts: int, start_sidecar: StartSidecar, s3: dict[str, str], aiohttp_server: Any
) -> None:
    async with toll(aiohttp_server, s3) as (on_the_way, settings):
        sidecar = await start_sidecar(**settings)
        await settled(on_the_way)
        made = await sidecar.generate(result=result, width=64, height=64)
        await sidecar.service.drained()
        assert [block.type for block in made.content][1:] == ([] if result == "link" else ["image"])
        on_the_way.passed = [(kind, path) for kind, path in on_the_way.passed if "probe/" not in path]
        assert on_the_way.counts("PUT", "LIST", "GET", "HEAD") == [puts, 0, 0, 0]


async def test_a_key_costs_four_puts_and_a_handle_two_or_three_where_it_waited(
    odd: Odd, start_sidecar: StartSidecar, kserve: FakeKServe, tmp_path: Path
) -> None:
    settings = {"RESPONSE_BUDGET": "2s", "JOB_LEASE_INTERVAL": "1h", "SPOOL_PATH": str(tmp_path / "spool")}
    sidecar = await start_sidecar(**at(odd), **settings)
    await start(sidecar, "at once", idempotency_key="k", result="link")
    assert await jobs_puts(sidecar, odd) == {"keys": 1, "begun": 1, "json": 2}
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    begun = await start(sidecar, "begun", result="link")
    waiting = await start(sidecar, "waiting", result="link")
    release.set()
    for handle in (begun, waiting):
        await ended(sidecar, handle["job_id"])
    assert await jobs_puts(sidecar, odd) == {"begun": 1, "json": 4}


async def jobs_puts(sidecar: Sidecar, odd: Odd) -> dict[str, int]:
    """How many objects of jobs were written since the last look, by their kinds."""
    await sidecar.service.drained()
    written = [key for key in odd.puts if key.startswith("jobs/")]
    odd.puts.clear()
    return Counter("keys" if key.startswith("jobs/keys/") else key.rsplit(".", 1)[1] for key in written)


async def test_the_newest_fifty_cost_one_listing_however_many_there_are(
    start_sidecar: StartSidecar, s3: dict[str, str], aiohttp_server: Any
) -> None:
    async with toll(aiohttp_server, s3) as (on_the_way, settings):
        writer = await start_sidecar(**s3)
        for _ in range(6):
            await writer.made(width=64, height=64)
        reader = await start_sidecar(**settings)  # the day's inventory is the writer's
        for listings in (1, 2):
            await reader.service.list_images(limit=3)
            records = [(kind, path) for kind, path in on_the_way.passed if "records/" in path]
            assert [sum(kind == one for kind, _ in records) for one in ("LIST", "GET")] == [listings, 4]


def trouble(status: int, code: str) -> web.Response:
    return web.Response(status=status, text=f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>")


@pytest.mark.parametrize(
    ("status", "code"), [(503, "SlowDown"), (500, "InternalError"), (409, "ConditionalRequestConflict")]
)
async def test_a_passing_trouble_of_the_store_is_waited_out(
    status: int, code: str, s3: dict[str, str], aiohttp_server: Any, tmp_path: Path
) -> None:
    async with toll(aiohttp_server, s3) as (on_the_way, settings):
        given = read_settings({**settings, "STORAGE_PATH": str(tmp_path)}).storage
        async with opened_s3(given, clock=SystemClock(), observer=lambda event: None) as store:
            on_the_way.instead += [trouble(status, code), trouble(status, code)]
            record = job(key="a" * 64)
            assert await store.jobs.win_key(record) == record.job_id  # a conditional PUT
            assert await store.jobs.key_holder("a" * 64) == record.job_id
            assert not on_the_way.instead


# --- delivery ---------------------------------------------------------------------------------------------------------


def age_of(response: aiohttp.ClientResponse) -> int:
    return int(response.headers["Cache-Control"].removeprefix("private, max-age="))


async def test_a_get_is_led_on_to_one_url_that_browsers_can_keep(sidecar: Sidecar, s3: dict[str, str]) -> None:
    image = await sidecar.made()
    answers = [(await sidecar.get(image["url"], allow_redirects=False))[0] for _ in range(3)]
    places = {answer.headers["Location"] for answer in answers}
    assert ({answer.status for answer in answers}, len(places)) == ({302}, 1)
    (place,) = places
    assert place.startswith(f"{s3['S3_ENDPOINT_URL']}/{s3['S3_BUCKET']}/{s3['S3_PREFIX']}/images/")
    assert 0 < age_of(answers[0]) <= 300
    response, body = await sidecar.get(place)
    assert (response.status, len(body)) == (200, image["size_bytes"])
    assert response.headers["Content-Type"] == "image/png"
    assert response.headers["Cache-Control"] == "private, max-age=300"
    assert response.headers["x-amz-meta-sha256"] == image["sha256"]


async def test_replicas_lead_on_to_the_same_url(start_sidecar: StartSidecar, s3: dict[str, str]) -> None:
    one, other = await start_sidecar(**s3), await start_sidecar(**s3)
    path = f"/images/{(await one.made())['image_id']}"
    places = [(await each.get(path, allow_redirects=False))[0].headers["Location"] for each in (one, other)]
    assert places[0] == places[1]


async def test_a_range_is_led_on_and_given_by_the_store(sidecar: Sidecar) -> None:
    image = await sidecar.made()
    _, whole = await sidecar.get(image["url"])
    response, part = await sidecar.get(image["url"], headers={"Range": "bytes=10-29"})
    assert (response.status, part, response.history[0].status) == (206, whole[10:30], 302)
    assert response.headers["Content-Range"] == f"bytes 10-29/{len(whole)}"


@pytest.mark.parametrize("odd_range", ["bytes=5-1", "bytes=0-1,4-5", "pixels=0-1"])
async def test_a_range_that_a_store_may_read_in_its_own_way_is_answered_here(odd_range: str, sidecar: Sidecar) -> None:
    image = await sidecar.made()
    response, body = await sidecar.get(image["url"], headers={"range": odd_range})
    assert (response.status, len(body), response.history) == (200, image["size_bytes"], ())


async def test_head_and_conditions_are_answered_here(sidecar: Sidecar) -> None:
    image = await sidecar.made()
    asked: list[tuple[dict[str, Any], int]] = [
        ({"method": "HEAD"}, 200),
        ({"headers": {"If-None-Match": f'"{image["sha256"]}"'}}, 304),
        ({"headers": {"Range": "bytes=99999999-"}}, 416),
        ({"headers": {"Range": "bytes=0-9", "If-Range": '"another"'}}, 200),
    ]
    for how, status in asked:
        response, _ = await sidecar.get(image["url"], allow_redirects=False, **how)
        assert (response.status, response.headers["ETag"]) == (status, f'"{image["sha256"]}"')
    head, _ = await sidecar.get(image["url"], method="HEAD")
    assert (head.headers["Content-Length"], head.headers["Content-Type"]) == (str(image["size_bytes"]), "image/png")


async def test_a_proxied_image_comes_as_from_a_directory(
    start_sidecar: StartSidecar, s3: dict[str, str], kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(**s3, IMAGE_DELIVERY="proxy")
    data = picture(1024, 1024, noise=True)
    kserve.script.append(succeed(data))
    image = await sidecar.made()
    response, body = await sidecar.get(image["url"], allow_redirects=False)
    assert (response.status, body == data) == (200, True)
    assert response.headers["ETag"] == f'"{image["sha256"]}"'
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Content-Disposition"].startswith("inline; filename=")
    response, part = await sidecar.get(image["url"], headers={"Range": "bytes=-1000"}, allow_redirects=False)
    assert (response.status, part) == (206, data[-1000:])
    head, nothing = await sidecar.get(image["url"], method="HEAD")
    assert (head.headers["Content-Length"], nothing) == (str(len(data)), b"")


async def test_a_url_dies_with_its_time_and_opens_nothing_else(start_sidecar: StartSidecar, s3: dict[str, str]) -> None:
    sidecar = await start_sidecar(**s3, S3_URL_TTL="2s")
    image, other = await sidecar.made(), await sidecar.made()
    response, _ = await sidecar.get(image["url"], allow_redirects=False)
    place = response.headers["Location"]
    assert age_of(response) == 0
    assert (await sidecar.get(place.replace(image["image_id"], other["image_id"])))[0].status == 403
    async with asyncio.timeout(30):
        while (status := (await sidecar.get(place))[0].status) == 200:
            await asyncio.sleep(0.1)
    assert status == 403
    assert (await sidecar.get(image["url"]))[0].status == 200


async def test_a_url_does_not_outlive_its_image(start_sidecar: StartSidecar, s3: dict[str, str]) -> None:
    sidecar = await start_sidecar(**s3, IMAGE_TTL="90s")
    response, _ = await sidecar.get((await sidecar.made())["url"], allow_redirects=False)
    assert 70 <= age_of(response) <= 90
    signed = dict(URL(response.headers["Location"]).query)
    begun = datetime.strptime(signed["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    assert (begun + timedelta(seconds=int(signed["X-Amz-Expires"])) - datetime.now(UTC)).total_seconds() <= 90


async def test_clients_are_led_to_the_name_that_they_know_and_pages_allow_it(
    start_sidecar: StartSidecar, s3: dict[str, str]
) -> None:
    public = s3["S3_ENDPOINT_URL"].replace("127.0.0.1", "localhost")
    sidecar = await start_sidecar(**s3, S3_PUBLIC_ENDPOINT_URL=public)
    image = await sidecar.made()
    response, body = await sidecar.get(image["url"])
    assert (str(response.url).startswith(f"{public}/"), len(body)) == (True, image["size_bytes"])
    page, _ = await sidecar.get("/")
    assert f"img-src 'self' {public};" in page.headers["Content-Security-Policy"]
    async with sidecar.client() as client:
        (app,) = (await client.read_resource(APP_URI)).contents
    assert (app.meta or {})["ui"]["csp"]["resourceDomains"] == [sidecar.url, public]


# --- two on one bucket ------------------------------------------------------------------------------------------------


async def test_two_sidecars_share_jobs_and_images(
    start_sidecar: StartSidecar, kserve: FakeKServe, s3: dict[str, str], tmp_path: Path
) -> None:
    one = await start_sidecar(**BRIEF, **s3, SPOOL_PATH=str(tmp_path / "one"))
    other = await start_sidecar(**BRIEF, **s3, SPOOL_PATH=str(tmp_path / "other"))
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    handle = await start(one)
    assert (await call(other, "get_generation", job_id=handle["job_id"], wait_seconds=0))["status"] == "working"
    release.set()
    done = await ended(other, handle["job_id"])
    (image,) = done["images"]
    assert (await other.get(image["url"]))[0].status == 200
    listed = await call(other, "list_generated_images")
    assert [entry["image_id"] for entry in listed["images"]] == [image["image_id"]]
    metadata = await call(other, "get_image_metadata", image_id=image["image_id"])
    assert metadata["prompt"] == "a cat"
    assert (await call(other, "delete_image", image_id=image["image_id"]))["deleted"] is True
    async with asyncio.timeout(30):
        while (await one.get(f"/images/{image['image_id']}", allow_redirects=False))[0].status != 404:
            await asyncio.sleep(0.05)


async def test_twenty_racing_calls_with_one_key_on_two_sidecars_paint_once(
    start_sidecar: StartSidecar, kserve: FakeKServe, s3: dict[str, str], tmp_path: Path
) -> None:
    replicas = [await start_sidecar(**s3, SPOOL_PATH=str(tmp_path / str(number))) for number in range(2)]
    calls = [start(replicas[number % 2], idempotency_key="race", result="link") for number in range(20)]
    results = await asyncio.gather(*calls)
    assert {result["status"] for result in results} == {"completed"}
    assert len({result["job_id"] for result in results}) == 1
    assert len(kserve.instances) == 1


async def test_after_the_move_from_a_directory_a_repeated_call_and_an_old_job_id_bring_the_same_image(
    start_sidecar: StartSidecar, kserve: FakeKServe, s3: dict[str, str], tmp_path: Path
) -> None:
    files = await start_sidecar()
    before = await start(files, idempotency_key="kitten", result="link")
    await files.service.drained()
    given = read_settings({**s3, "STORAGE_PATH": str(files.store)}).storage
    report, notes = await migrated(given, clock=SystemClock(), observer=lambda event: None)
    assert (report.copied, report.generations.copied, report.failed, notes) == (1, 1, False, [])
    bucket = await start_sidecar(**s3, STORAGE_PATH=str(tmp_path / "local"))
    again = await start(bucket, idempotency_key="kitten", result="link")
    asked = await call(bucket, "get_generation", job_id=before["job_id"])
    for found in (again, asked):
        assert (found["job_id"], found["status"]) == (before["job_id"], "completed")
        assert [image["sha256"] for image in found["images"]] == [image["sha256"] for image in before["images"]]
    assert (await bucket.get(asked["images"][0]["url"]))[0].status == 200
    assert len(kserve.instances) == 1
