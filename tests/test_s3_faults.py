"""A bucket in trouble: each kind is named, nothing that was made is lost, and the sidecar lives."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import web
from mcp.shared.exceptions import MCPError

from sidecar.config import read_settings
from sidecar.core.readiness import StorageWatch
from sidecar.domain import ImageId
from sidecar.errors import ImageNotFound
from sidecar.ports import SystemClock
from sidecar.storages import keys
from sidecar.storages.opening import opened_store
from sidecar.storages.s3 import S3Storage
from tests import ceph
from tests.conftest import Sidecar, StartSidecar, metric_becomes
from tests.storage_contract import PNG, HeldClock, put

pytestmark = pytest.mark.real

SPOOLED = "imagegen_spool_images"


@asynccontextmanager
async def store_of(settings: dict[str, str], tmp_path: Path) -> AsyncIterator[S3Storage]:
    given = read_settings({"STORAGE_PATH": str(tmp_path / "local"), **settings}).storage
    async with opened_store(given, clock=SystemClock(), observer=lambda event: None) as store:
        assert isinstance(store, S3Storage)
        yield store


async def told(settings: dict[str, str], tmp_path: Path) -> str:
    """What readiness says of a store."""
    async with store_of(settings, tmp_path) as store:
        watch = StorageWatch(store, SystemClock(), lambda event: None)
        await watch.look()
        assert watch.check.status == "degraded"
        return watch.check.detail


async def serving(aiohttp_server: Any, answer: Callable[[web.Request], Awaitable[web.Response]]) -> str:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    server = await aiohttp_server(app)
    return f"http://127.0.0.1:{server.port}"


async def test_a_missing_bucket_is_named(s3: dict[str, str], tmp_path: Path) -> None:
    detail = await told({**s3, "S3_BUCKET": "no-such-bucket"}, tmp_path)
    assert detail.startswith("There is no bucket 'no-such-bucket' at http://127.0.0.1:")


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("AWS_ACCESS_KEY_ID", "stranger", "InvalidAccessKeyId"),
        ("AWS_SECRET_ACCESS_KEY", "wrong", "SignatureDoesNotMatch"),
    ],
)
async def test_wrong_credentials_are_told_from_a_missing_right(
    name: str, value: str, code: str, s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    detail = await told(s3, tmp_path)
    assert f"403 {code}" in detail
    assert name in detail


async def test_no_credentials_at_all_are_told(
    s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    assert (await told(s3, tmp_path)).startswith("There are no credentials for the image store")


@pytest.mark.parametrize("status", [200, 404, 403])
async def test_a_web_page_in_place_of_the_store_is_told(
    status: int, s3: dict[str, str], tmp_path: Path, aiohttp_server: Any
) -> None:
    async def page(_request: web.Request) -> web.Response:
        return web.Response(status=status, text="<!doctype html><p>Welcome<br>", content_type="text/html")

    url = await serving(aiohttp_server, page)
    detail = await told({**s3, "S3_ENDPOINT_URL": url}, tmp_path)
    assert detail.startswith(f"What answers at {url} is not an S3 store") or (status, "403" in detail) == (403, True)


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_gateway_without_a_store_behind_it_is_told_from_a_wrong_address(
    status: int, s3: dict[str, str], tmp_path: Path, aiohttp_server: Any
) -> None:
    async def out_of_order(_request: web.Request) -> web.Response:
        return web.Response(status=status, text="<!doctype html><p>Come back later<br>", content_type="text/html")

    url = await serving(aiohttp_server, out_of_order)
    detail = await told({**s3, "S3_ENDPOINT_URL": url}, tmp_path)
    assert detail.startswith(
        (f"The image store at {url} is out of order ({status}", "The image store asks for patience")
    )
    assert detail.endswith("Finished images are held on this pod until it is back.")


async def test_nobody_at_the_address_is_told(s3: dict[str, str], tmp_path: Path, unused_tcp_port: int) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    assert await told({**s3, "S3_ENDPOINT_URL": url}, tmp_path) == (
        f"The image store cannot be reached at {url}. Finished images are held on this pod until it is back."
    )


# --- what strangers are told ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["S3_BUCKET", "S3_ENDPOINT_URL"])
async def test_callers_are_told_neither_the_endpoint_nor_the_bucket_and_operators_are(
    trouble: str, start_sidecar: StartSidecar, s3: dict[str, str], tmp_path: Path, unused_tcp_port: int
) -> None:
    wrong = {"S3_BUCKET": "no-such-bucket", "S3_ENDPOINT_URL": f"http://127.0.0.1:{unused_tcp_port}"}[trouble]
    settings = {**s3, trouble: wrong}
    with structlog.testing.capture_logs() as logs:
        sidecar = await start_sidecar(**settings, SPOOL_PATH=str(tmp_path / "spool"))
        image_id = str(ImageId.new(SystemClock().now()))
        response, body = await sidecar.get(f"/images/{image_id}")
        assert response.status == 503
        answers = [body.decode(), str(await sidecar.generate())]
        async with sidecar.client() as client:
            answers.append(str(await client.call_tool("get_image_metadata", {"image_id": image_id})))
            answers.append(str(await client.call_tool("delete_image", {"image_id": image_id})))
            with pytest.raises(MCPError) as refused:
                await client.read_resource(f"image://{image_id}")
            answers.append(str(refused.value.error))
        for told in answers:
            assert settings["S3_BUCKET"] not in told
            assert settings["S3_ENDPOINT_URL"].removeprefix("http://") not in told
        async with asyncio.timeout(20):
            while wrong not in (await sidecar.get("/readyz"))[1].decode():
                await asyncio.sleep(0.02)
    assert any(wrong in str(entry.get("detail")) for entry in logs if entry["event"] == "storage operation failed")


# --- halves -----------------------------------------------------------------------------------------------------------


async def test_a_record_without_its_image_and_an_image_without_its_record_are_not_found(
    s3: dict[str, str], tmp_path: Path
) -> None:
    clock = HeldClock()
    async with store_of(s3, tmp_path) as writer:
        ids = [(await put(writer, clock.now())).record.image_id for _ in range(2)]
        await writer._bucket.delete("delete", [keys.image_key(ids[0], "image/png")])
        await writer._bucket.delete("delete", [keys.record_key(ids[1])])
    async with store_of(s3, tmp_path) as reader:
        for image_id in ids:
            with pytest.raises(ImageNotFound):
                await reader.get(image_id)
        assert (await put(reader, clock.now())).record.size_bytes == len(PNG)


# --- the store goes away and comes back -------------------------------------------------------------------------------


class Gate:
    """A way to the store for bytes, that can be shut, or held open without passing anything on."""

    def __init__(self, store: str) -> None:
        self._host, port = store.removeprefix("http://").split(":")
        self._port = int(port)
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._passing = asyncio.Event()
        self._passing.set()
        self.port = 0

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def shut(self) -> None:
        """Nobody is at the address any more."""
        assert self._server is not None
        self._server.close()
        for writer in self._open:
            writer.transport.abort()

    def stall(self) -> None:
        """It takes everything and answers nothing."""
        self._passing.clear()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.close()
            return
        self._open |= {writer, far_writer}
        await asyncio.gather(self._copy(reader, far_writer), self._copy(far_reader, writer), return_exceptions=True)
        self._open -= {writer, far_writer}
        for one in (writer, far_writer):
            one.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._passing.wait()
            writer.write(data)
            await writer.drain()
        writer.close()


@pytest.fixture
async def gate(s3: dict[str, str]) -> AsyncIterator[Gate]:
    opened = Gate(s3["S3_ENDPOINT_URL"])
    await opened.open()
    yield opened
    await opened.shut()


def through(gate: Gate, s3: dict[str, str], spool: Path) -> dict[str, str]:
    return {**s3, "S3_ENDPOINT_URL": f"http://127.0.0.1:{gate.port}", "SPOOL_PATH": str(spool)}


async def degraded(sidecar: Sidecar, words: str) -> None:
    """Wait until readiness says so; it must stay ready, for what is there can still be served."""
    async with asyncio.timeout(30):
        while True:
            response, body = await sidecar.get("/readyz")
            if words in json.loads(body)["checks"]["storage"]["detail"]:
                assert response.status == 200
                return
            await asyncio.sleep(0.05)


async def test_an_image_made_while_the_store_is_away_is_held_and_sent_when_it_is_back(
    start_sidecar: StartSidecar, s3: dict[str, str], gate: Gate, tmp_path: Path
) -> None:
    settings = through(gate, s3, tmp_path / "one")
    sidecar = await start_sidecar(**settings)
    other = await start_sidecar(**through(gate, s3, tmp_path / "other"))
    await sidecar.until_ready()
    await gate.shut()
    result = await sidecar.generate(result="link")
    (image,) = result.structured_content["images"]
    assert "held on one pod" in result.structured_content["message"]
    response, body = await sidecar.get(image["url"], allow_redirects=False)
    assert (response.status, len(body)) == (200, image["size_bytes"])
    assert (await sidecar.get(image["thumbnail_url"]))[0].status == 200
    response, _ = await other.get(f"/images/{image['image_id']}")
    assert (response.status, "Retry-After" in response.headers) == (503, True)
    await degraded(sidecar, "Finished images waiting on this pod for the store: 1.")
    assert await sidecar.metric(SPOOLED) == 1
    await gate.open()
    await metric_becomes(sidecar, SPOOLED, 0)
    for each in (sidecar, other):
        async with asyncio.timeout(20):
            while (await each.get(f"/images/{image['image_id']}", allow_redirects=False))[0].status != 302:
                await asyncio.sleep(0.05)


async def test_what_was_held_is_sent_after_a_restart(s3: dict[str, str], gate: Gate, tmp_path: Path) -> None:
    clock = HeldClock()
    settings = through(gate, s3, tmp_path / "spool")
    await gate.shut()
    async with store_of(settings, tmp_path) as before:
        stored = await put(before, clock.now())
        assert (stored.held, before.held) == (True, 1)
    await gate.open()
    async with store_of(settings, tmp_path) as after:
        async with asyncio.timeout(20):
            while after.held:
                await asyncio.sleep(0.02)
    async with store_of(s3, tmp_path / "elsewhere") as elsewhere:
        assert (await elsewhere.get(stored.record.image_id)).record == stored.record


async def test_a_container_that_starts_while_the_store_is_away_is_ready_and_generates(
    start_sidecar: StartSidecar, s3: dict[str, str], gate: Gate, tmp_path: Path
) -> None:
    settings = through(gate, s3, tmp_path / "spool")
    await gate.shut()
    async with store_of(settings, tmp_path) as before:
        left = (await put(before, SystemClock().now())).record
    sidecar = await start_sidecar(**settings)
    await sidecar.until_ready()
    _, body = await sidecar.get("/readyz")
    check = json.loads(body)["checks"]["storage"]
    assert (json.loads(body)["status"], check["status"]) == ("degraded", "degraded")
    assert check["detail"] == (
        f"The image store cannot be reached at {settings['S3_ENDPOINT_URL']}. Finished images are held on this pod "
        "until it is back. Finished images waiting on this pod for the store: 1."
    )
    assert (await sidecar.get("/startupz"))[0].status == 200
    assert await sidecar.metric('imagegen_storage_writable{backend="s3"}') == 0
    image = await sidecar.made()
    assert await sidecar.metric(SPOOLED) == 2
    await gate.open()
    await metric_becomes(sidecar, SPOOLED, 0)
    await metric_becomes(sidecar, 'imagegen_storage_writable{backend="s3"}', 1)
    async with store_of(s3, tmp_path / "elsewhere") as elsewhere:
        for image_id in (left.image_id, ImageId(image["image_id"])):
            assert (await elsewhere.get(image_id)).record.image_id == image_id


async def test_a_container_that_starts_with_a_wrong_configuration_is_not_ready(
    start_sidecar: StartSidecar, s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    sidecar = await start_sidecar(**s3, SPOOL_PATH=str(tmp_path / "spool"))
    async with asyncio.timeout(20):
        while "SignatureDoesNotMatch" not in (answer := await sidecar.get("/readyz"))[1].decode():
            await asyncio.sleep(0.02)
    assert answer[0].status == 503
    assert (await sidecar.get("/startupz"))[0].status == 503


async def test_a_container_whose_spool_cannot_be_read_is_not_ready_while_the_store_is_away(
    start_sidecar: StartSidecar, s3: dict[str, str], gate: Gate, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    spool.write_text("in the way")
    await gate.shut()
    sidecar = await start_sidecar(**through(gate, s3, spool))
    async with asyncio.timeout(20):
        while "The spool (SPOOL_PATH)" not in (answer := await sidecar.get("/readyz"))[1].decode():
            await asyncio.sleep(0.02)
    assert answer[0].status == 503
    spool.unlink()
    await sidecar.until_ready()


async def test_a_right_to_write_that_is_lost_is_told_while_images_wait_for_it(
    start_sidecar: StartSidecar, s3: dict[str, str], tmp_path: Path
) -> None:
    admin, bucket = ceph.client(s3["S3_ENDPOINT_URL"]), s3["S3_PREFIX"]
    admin.create_bucket(Bucket=bucket)
    sidecar = await start_sidecar(**{**s3, "S3_BUCKET": bucket}, SPOOL_PATH=str(tmp_path / "spool"))
    await sidecar.until_ready()
    about = {"Principal": "*", "Action": "s3:PutObject", "Resource": f"arn:aws:s3:::{bucket}/*"}
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Deny", **about}]}
    admin.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    image = await sidecar.made()
    await degraded(sidecar, "the credentials lack a right")
    await degraded(sidecar, "Finished images waiting on this pod for the store: 1.")
    assert await sidecar.metric('imagegen_storage_writable{backend="s3"}') == 0
    admin.delete_bucket_policy(Bucket=bucket)
    await metric_becomes(sidecar, SPOOLED, 0)
    await metric_becomes(sidecar, 'imagegen_storage_writable{backend="s3"}', 1)
    assert (await sidecar.get(image["url"]))[0].status == 200
    admin.close()


async def test_a_store_that_stalls_holds_nobody_for_longer_than_a_deadline(
    start_sidecar: StartSidecar, s3: dict[str, str], gate: Gate, tmp_path: Path
) -> None:
    sidecar = await start_sidecar(**through(gate, s3, tmp_path / "spool"))
    await sidecar.until_ready()
    gate.stall()
    result = await sidecar.generate(result="link")
    assert "held on one pod" in result.structured_content["message"]
    assert (await sidecar.get(result.structured_content["images"][0]["url"]))[0].status == 200
    await degraded(sidecar, "does not answer")


async def test_a_full_spool_refuses_before_the_runtime_is_asked(
    start_sidecar: StartSidecar, s3: dict[str, str], gate: Gate, tmp_path: Path, kserve: Any
) -> None:
    sidecar = await start_sidecar(**through(gate, s3, tmp_path / "spool"), STORAGE_MAX_BYTES="82000")
    await sidecar.until_ready()
    await gate.shut()
    assert not (await sidecar.generate(width=64, height=64)).is_error
    refused = await sidecar.generate(width=64, height=64)
    assert (refused.is_error, "1 finished images wait on it" in refused.content[0].text) == (True, True)
    assert len(kserve.instances) == 1
