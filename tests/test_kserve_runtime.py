"""The KServe v1 runtime: what is sent, what is sent again, and how each of its failures reaches the caller."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import unused_port

from sidecar.core.readiness import RuntimeWatch
from sidecar.errors import BadConfiguration
from sidecar.ports import SystemClock
from tests.conftest import ERAS, Sidecar, StartSidecar, metric_becomes, raw_tool_call
from tests.fake_kserve import Behaviour, FakeKServe, answer, cut_off, flood, say, succeed, succeed_when
from tests.pictures import picture, png_chunk, png_claiming

RETRY_REASONS = ("unreachable", "not_ready", "busy", "refused_parameters")
TOKEN = "s3cr3t-t0ken"
StartKServe = Callable[..., Awaitable[FakeKServe]]


@pytest.fixture
def start_kserve(aiohttp_server: Any) -> StartKServe:
    """Start further fakes, with what aiohttp's server takes: a port, TLS."""

    async def start(**how: Any) -> FakeKServe:
        fake = FakeKServe()
        fake.server = await aiohttp_server(fake.app, **how)
        return fake

    return start


RETRY, PROGRESS = "retry_after_seconds", ("ahead", "elapsed_seconds", "expected_seconds")
"""Fields of a result: when to try again, and how far a generation is, which is null once it has ended."""


async def failure(sidecar: Sidecar, **arguments: Any) -> str:
    """What the caller of a generation that must fail is told."""
    result = await sidecar.generate(**{"result": "link", **arguments})
    told: str = result.content[0].text
    fixed = {key: value for key, value in result.structured_content.items() if key not in ("job_id", RETRY)}
    expected: dict[str, Any] = {"status": "failed", "images": [], "message": told, **dict.fromkeys(PROGRESS)}
    assert (result.is_error, fixed) == (True, expected)
    return told


async def retries(sidecar: Sidecar, model: str = "painter") -> dict[str, float]:
    """How often predicts were sent again, by reason, without the reasons nobody had."""
    lines = {reason: f'imagegen_runtime_retries_total{{model="{model}",reason="{reason}"}}' for reason in RETRY_REASONS}
    counts = {reason: await sidecar.metric(line) for reason, line in lines.items()}
    return {reason: count for reason, count in counts.items() if count}


async def predicts(sidecar: Sidecar) -> dict[str, float]:
    """How predicts ended, by outcome."""
    _, body = await sidecar.get("/metrics")
    pattern = r'^imagegen_runtime_request_duration_seconds_count\{model="painter",outcome="(\w+)"\} (\S+)$'
    return {
        outcome: float(count) for outcome, count in re.findall(pattern, body.decode(), re.MULTILINE) if float(count)
    }


def records(sidecar: Sidecar) -> list[dict[str, Any]]:
    """The records on disk, oldest first."""
    found = [json.loads(path.read_bytes()) for path in sidecar.store.glob("records/**/*.json")]
    return sorted(found, key=lambda record: str(record["image_id"]))


def runtime_watch(sidecar: Sidecar) -> RuntimeWatch:
    """What looks at the runtime in the background every few seconds, to be moved by hand."""
    return RuntimeWatch(sidecar.service.lane(None), SystemClock(), lambda _event: None)


def unexpected(keyword: str) -> Behaviour:
    """A pipeline that does not take a keyword."""
    text = f"StableDiffusionXLPipeline.__call__() got an unexpected keyword argument '{keyword}'"
    return say(400, {"error": f"Prediction failed: {text}"})


def encoded(b64: object) -> dict[str, Any]:
    return {"predictions": [{"image": {"format": "PNG", "b64": b64}}]}


def damaged(data: bytes) -> bytes:
    """One bit in the middle is wrong."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


async def die_at_once(request: web.Request, _instance: dict[str, Any]) -> web.StreamResponse:
    """Close the connection instead of answering."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def die_in_a_chunk(request: web.Request, _instance: dict[str, Any]) -> web.StreamResponse:
    """Close the connection within an answer of unknown length."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(b'{"predictions": [')
    return await die_at_once(request, {})


def binary(status: int, body: bytes, **headers: str) -> Behaviour:
    async def behaviour(_request: web.Request, _instance: dict[str, Any]) -> web.StreamResponse:
        return web.Response(status=status, body=body, headers=headers)

    return behaviour


# --- failures, each told apart ----------------------------------------------------------------------------------------

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB."
TOO_SMALL_FOR_ITS_CLAIM = png_claiming(4096, 4096)
PNG, NOISE = picture(), picture(96, 96, noise=True)


@pytest.mark.parametrize(
    ("behaviour", "reason", "told"),
    [
        (say(400, {"error": f"Prediction failed: {OUT_OF_MEMORY}"}), "out_of_memory", "Ask for a smaller size"),
        (say(500, {"error": f"OutOfMemoryError : {OUT_OF_MEMORY}"}), "out_of_memory", OUT_OF_MEMORY),
        (say(503, {"error": "DefaultCPUAllocator: not enough memory"}), "out_of_memory", "ran out of memory"),
        (
            say(400, {"error": "Traceback: " + "in a pipeline, " * 60 + OUT_OF_MEMORY}),
            "out_of_memory",
            "Ask for a smaller size",
        ),
        (
            say(400, {"error": "Prediction failed: steps must be odd"}),
            "refused_parameters",
            "The model's runtime refused these parameters: Prediction failed: steps must be odd",
        ),
        (
            say(422, {"detail": [{"loc": ["body", "instances"], "msg": "Field required"}, {"msg": "Too long"}]}),
            "refused_parameters",
            "refused these parameters: Field required; Too long",
        ),
        (say(422, {"detail": "no"}), "refused_parameters", "refused these parameters: no"),
        (say(400, ""), "refused_parameters", "refused these parameters without saying why"),
        (say(500, {"error": "the painter fell asleep"}), "runtime_failed", "(HTTP 500): the painter fell asleep"),
        (say(500, {"error": {"message": "asleep"}}), "runtime_failed", "(HTTP 500): asleep"),
        (say(500, '{"error": "half \\ud800 a character"}'), "runtime_failed", "(HTTP 500): half"),
        (say(502, "<html><h1>Bad gateway</h1></html>"), "runtime_failed", "The model's runtime failed (HTTP 502)"),
        (say(418, "[" * 50_000), "runtime_failed", "(HTTP 418)"),
        (binary(500, b"\xff\xfe\x00"), "runtime_failed", "(HTTP 500)"),
        (say(401, {"error": "no token"}), "runtime_failed", "(HTTP 401): no token"),
        (die_at_once, "lost_answer", "broke while it was working"),
        (cut_off(0), "lost_answer", "broke while it was working"),
        (cut_off(5000), "lost_answer", "broke while it was working"),
        (die_in_a_chunk, "lost_answer", "broke while it was working"),
        (say(200, "<html>Sign in</html>"), "answered_nonsense", "not answer with JSON but with an HTML page"),
        (say(200, ""), "answered_nonsense", "not answer with JSON but with nothing"),
        (binary(200, b"\xff\xfe\x00"), "answered_nonsense", "not answer with JSON"),
        (say(200, '{"predictions": [{"image"'), "answered_nonsense", "not answer with JSON"),
        (say(200, "[" * 200_000), "answered_nonsense", "not answer with JSON"),
        (say(200, {"ok": True}), "answered_nonsense", "without an image at predictions[0].image.b64"),
        (say(200, []), "answered_nonsense", "without an image"),
        (say(200, "null"), "answered_nonsense", "without an image"),
        (say(200, {"predictions": []}), "answered_nonsense", "without an image"),
        (say(200, {"predictions": {"image": 1}}), "answered_nonsense", "without an image"),
        (say(200, {"predictions": ["a cat"]}), "answered_nonsense", "without an image"),
        (say(200, encoded(None)), "answered_nonsense", "not a base64 text"),
        (say(200, encoded([1, 2])), "answered_nonsense", "not a base64 text"),
        (say(200, encoded(answer(NOISE)["predictions"][0]["image"]["b64"][:-3])), "answered_nonsense", "base64"),
        (say(200, encoded("not base64 at all!")), "answered_nonsense", "damaged or truncated base64"),
        (say(200, encoded("Ünï")), "answered_nonsense", "damaged or truncated base64"),
        (say(200, encoded("")), "answered_nonsense", "no picture: neither PNG, JPEG nor WebP"),
        (succeed(b"a cat"), "answered_nonsense", "neither PNG, JPEG nor WebP: it starts with b'a cat'"),
        (succeed(picture(form="GIF")), "answered_nonsense", "neither PNG, JPEG nor WebP: it starts with b'GIF8"),
        (succeed(picture(form="BMP")), "answered_nonsense", "neither PNG, JPEG nor WebP"),
        (succeed(TOO_SMALL_FOR_ITS_CLAIM), "answered_nonsense", "claims 4096×4096 pixels but whose data cannot hold"),
        (succeed(png_claiming(20_000, 1, bytes(range(256)))), "answered_nonsense", "its header claims 20000×1 pixels"),
        (succeed(png_claiming(0, 64)), "answered_nonsense", "its header claims 0×64 pixels"),
        (succeed(damaged(NOISE)), "answered_nonsense", "wrong checksum: it was damaged on the way"),
        (succeed(PNG[:-20]), "answered_nonsense", "it is cut off"),
        (succeed(PNG[:8]), "answered_nonsense", "no picture"),
        (succeed(PNG[:8] + png_chunk(b"IEND", b"")), "answered_nonsense", "does not start with its header"),
        (succeed(picture(form="JPEG")[:-20]), "answered_nonsense", "a JPEG without its end"),
        (succeed(b"\xff\xd8\xff\xd9"), "answered_nonsense", "no picture"),
        (succeed(b"\xff\xd8\xff\xda\x00\x04\x00\x00\xff\xd9"), "answered_nonsense", "a JPEG without a frame header"),
        (succeed(picture(form="WEBP")[:-20]), "answered_nonsense", "it is cut off"),
        (succeed(b"RIFF\x04\0\0\0WEBP"), "answered_nonsense", "no picture"),
    ],
)
async def test_each_failure_is_told_in_its_own_words_and_leaves_nothing(
    behaviour: Behaviour, reason: str, told: str, sidecar: Sidecar, kserve: FakeKServe
) -> None:
    kserve.script.append(behaviour)

    text = await failure(sidecar, width=512)

    assert told in text
    assert len(text) < 600
    assert not re.search(r"Traceback \(most|File \"|<html><h1>", text)
    assert (len(kserve.instances), sidecar.stored()) == (1, [])
    assert (await predicts(sidecar), await retries(sidecar)) == ({reason: 1}, {})
    assert await sidecar.metric('imagegen_generations_total{model="painter",outcome="failed"}') == 1
    await sidecar.made()
    assert await predicts(sidecar) == {reason: 1, "completed": 1}


async def test_a_server_that_does_not_speak_http_is_told_and_asked_once(start_sidecar: StartSidecar) -> None:
    asked = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n"))
        writer.write(b"220 mail.example.org ESMTP\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        sidecar = await start_sidecar(KSERVE_ENDPOINT=f"http://127.0.0.1:{port}/v1/models/painter")
        assert "the model's runtime" in await failure(sidecar)
    assert [line for line in asked if line.startswith(b"POST")] == [b"POST /v1/models/painter:predict HTTP/1.1\r\n"]
    assert sidecar.stored() == []


async def test_a_long_error_text_is_bounded(sidecar: Sidecar, kserve: FakeKServe) -> None:
    kserve.script.extend([say(500, {"error": "z" * 2**20}), say(500, "z" * 2**20)])
    for _ in range(2):
        told = await failure(sidecar)
        assert "zzz" in told
        assert len(told) < 400


@pytest.mark.parametrize(
    ("status", "location", "told"),
    [
        (302, "https://login.example.org/auth?client=hush-hush", "the host login.example.org (HTTP 302)"),
        (301, "http://images.example.org:8080/x", "the host images.example.org:8080 (HTTP 301)"),
        (308, "https://user:hush-hush@example.org/", "the host example.org (HTTP 308)"),
        (303, "/sign-in?state=hush-hush", "another path of the same host (HTTP 303)"),
        (307, "http://[::1", "another path of the same host (HTTP 307)"),
        (307, "http://" + "x" * 5000 + "/", "the host xxxxx"),
        (300, "", "another path of the same host (HTTP 300)"),
    ],
)
async def test_a_redirect_is_told_with_its_host_and_nothing_else_of_it(
    status: int, location: str, told: str, sidecar: Sidecar, kserve: FakeKServe
) -> None:
    kserve.script.append(say(status, "<html>Found</html>", {"Location": location}))
    text = await failure(sidecar)
    assert f"redirects to {told}" in text
    assert ("redirects are not followed" in text, "hush-hush" in text, len(text) < 500) == (True, False, True)
    assert (len(kserve.instances), await predicts(sidecar)) == (1, {"runtime_failed": 1})


async def test_a_redirect_is_not_followed(
    start_sidecar: StartSidecar, kserve: FakeKServe, start_kserve: StartKServe
) -> None:
    elsewhere = await start_kserve()
    location = {"Location": f"http://127.0.0.1:{elsewhere.server.port}/v1/models/painter:predict"}
    kserve.script.extend([say(307, "", location), say(302, "", location)])
    sidecar = await start_sidecar(KSERVE_TOKEN=TOKEN)
    assert f"the host 127.0.0.1:{elsewhere.server.port} (HTTP 307)" in await failure(sidecar)
    assert "(HTTP 302)" in await failure(sidecar)
    assert (elsewhere.instances, len(kserve.instances)) == ([], 2)


# --- a success that says why it has no image --------------------------------------------------------------------------

FILTERED = "NSFW content detected"


@pytest.mark.parametrize(
    ("body", "reason", "told"),
    [
        ({"predictions": [{"image": None, "error": FILTERED}]}, "refused_parameters", FILTERED),
        ({"predictions": [{"image": None, "reason": "safety checker"}]}, "refused_parameters", "safety checker"),
        ({"predictions": [{"image": {"b64": None, "error": FILTERED}}]}, "refused_parameters", FILTERED),
        ({"predictions": [{"error": "the painter fell asleep"}]}, "runtime_failed", "image: the painter fell asleep"),
        ({"predictions": [{"error": {"message": "asleep", "code": 7}}]}, "runtime_failed", "image: asleep"),
        ({"predictions": [None], "error": "asleep"}, "runtime_failed", "image: asleep"),
        ({"predictions": [], "message": "asleep"}, "runtime_failed", "image: asleep"),
        ({"error": "CUDA error: device-side assert triggered"}, "runtime_failed", "device-side assert triggered"),
        ({"error": f"OutOfMemoryError: {OUT_OF_MEMORY}"}, "out_of_memory", "Ask for a smaller size"),
        ({"detail": [{"msg": "Too long"}]}, "runtime_failed", "image: Too long"),
        ({"error": "a\u202eb\x1b[31m\0c" + "z" * 60_000}, "runtime_failed", "ab [31m c"),
        ({"error": ["NSFW"] * 50_000}, "refused_parameters", "NSFW; NSFW"),
    ],
)
async def test_the_reason_in_a_success_without_an_image_reaches_the_caller(
    body: Any, reason: str, told: str, sidecar: Sidecar, kserve: FakeKServe
) -> None:
    kserve.script.append(say(200, body))
    text = await failure(sidecar)
    assert told in text
    assert (len(text) < 500, text.isprintable()) == (True, True)
    assert (len(kserve.instances), await predicts(sidecar), sidecar.stored()) == (1, {reason: 1}, [])


async def test_an_error_beside_an_image_is_no_reason_to_lose_it(sidecar: Sidecar, kserve: FakeKServe) -> None:
    for error in (None, "", "a warning"):
        body = answer(NOISE)
        body["predictions"][0]["error"] = body["error"] = error
        kserve.script.append(say(200, body))
        await sidecar.made()


async def test_a_reason_in_a_success_never_holds_the_token(start_sidecar: StartSidecar, kserve: FakeKServe) -> None:
    sidecar = await start_sidecar(KSERVE_TOKEN=TOKEN)
    kserve.script.append(say(200, {"error": f"cannot pass on Bearer {TOKEN}"}))
    assert "Bearer ***" in await failure(sidecar)


async def test_a_keyword_that_a_success_says_is_unexpected_is_left_out(sidecar: Sidecar, kserve: FakeKServe) -> None:
    kserve.script.append(say(200, {"error": "got an unexpected keyword argument 'negative_prompt'"}))
    result = await sidecar.generate(negative_prompt="fog", result="link")
    assert (result.is_error, result.structured_content["message"]) == (False, LEFT_OUT)


async def test_any_success_may_carry_an_image(sidecar: Sidecar, kserve: FakeKServe) -> None:
    kserve.script.extend([say(201, answer(PNG)), say(202, {"id": "a", "status": "queued"}), say(204, "")])
    await sidecar.made()
    assert "JSON without an image" in await failure(sidecar)
    assert "not answer with JSON but with nothing" in await failure(sidecar)


async def test_a_picture_that_only_its_pixels_give_away_is_reported_when_it_is_shown(
    sidecar: Sidecar, kserve: FakeKServe
) -> None:
    rows = bytes(os.urandom(4000))  # enough compressed bytes for the claim, but not its rows
    kserve.script.append(succeed(png_claiming(256, 256, rows)))
    result = await sidecar.generate(result="thumbnail")
    assert (result.is_error, result.structured_content["status"]) == (False, "completed")
    assert "cannot be decoded" in result.structured_content["message"]
    assert [block.type for block in result.content] == ["text"]


@pytest.mark.parametrize(
    ("form", "media_type", "extension"),
    [("PNG", "image/png", "png"), ("JPEG", "image/jpeg", "jpg"), ("WEBP", "image/webp", "webp")],
)
async def test_the_bytes_say_what_a_picture_is_not_the_runtime(
    form: str, media_type: str, extension: str, sidecar: Sidecar, kserve: FakeKServe
) -> None:
    data = picture(72, 40, form)
    kserve.script.append(say(200, answer(data, form="BMP")))
    image = await sidecar.made()
    assert (image["media_type"], image["width"], image["height"]) == (media_type, 72, 40)
    assert image["url"].endswith(f"{image['image_id']}.{extension}")
    response, body = await sidecar.get(image["url"])
    assert (response.headers["Content-Type"], body) == (media_type, data)


# --- answers that are too large ---------------------------------------------------------------------------------------


async def test_a_picture_larger_than_allowed_is_refused(start_sidecar: StartSidecar, kserve: FakeKServe) -> None:
    data = picture(256, 256, noise=True)
    fits = await start_sidecar(MAX_IMAGE_BYTES=str(len(data)))
    kserve.script.extend([succeed(data), succeed(data)])
    assert (await fits.made())["size_bytes"] == len(data)

    refuses = await start_sidecar(MAX_IMAGE_BYTES=str(len(data) - 1), STORAGE_PATH=str(fits.store.parent / "other"))

    assert f"an image of {len(data):,} bytes; allowed: {len(data) - 1:,}" in await failure(refuses)
    assert refuses.stored() == []


async def test_an_endless_answer_is_cut_and_memory_stays_flat(start_sidecar: StartSidecar, kserve: FakeKServe) -> None:
    sidecar = await start_sidecar(MAX_IMAGE_BYTES="8MiB")
    await sidecar.made()  # so that what is loaded once is not counted
    kserve.script.append(flood(300 * 2**20))
    tracemalloc.start()
    try:
        told = await failure(sidecar)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "answered more than the 8,388,608 bytes that an image may have (MAX_IMAGE_BYTES)" in told
    assert peak < 40 * 2**20
    await asyncio.wait_for(kserve.idle(), 5)  # the connection is closed: the rest is not even sent
    assert await predicts(sidecar) == {"completed": 1, "answered_nonsense": 1}
    await sidecar.made()


async def test_an_answer_that_announces_its_size_is_refused_before_it_is_read(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(MAX_IMAGE_BYTES="1MiB")

    async def announce(request: web.Request, _instance: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(2**40)})
        await response.prepare(request)
        await response.write(b"{")
        await asyncio.Event().wait()
        return response

    kserve.script.append(announce)
    assert "answered more than the 1,048,576 bytes" in await failure(sidecar)


# --- sent again only where the work cannot have begun -----------------------------------------------------------------

NOT_READY = (200, {"name": "painter", "ready": False})
LOADING = {"error": "Model with name painter is not ready."}


@pytest.mark.parametrize(
    ("behaviour", "readiness", "reason"),
    [
        (say(429, {"error": "slow down"}), None, "busy"),
        (say(429, "", {"Retry-After": "0"}), None, "busy"),
        (say(429, "", {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}), None, "busy"),
        (say(429, "", {"Retry-After": "nan"}), None, "busy"),
        (say(429, "", {"Retry-After": "86400"}), None, "busy"),
        (say(503, LOADING), NOT_READY, "not_ready"),
        (say(503, LOADING), (503, LOADING), "not_ready"),
        (say(404, LOADING), NOT_READY, "not_ready"),
        (say(503, "<html>Service Unavailable</html>"), NOT_READY, "not_ready"),
    ],
)
async def test_a_runtime_that_cannot_take_the_work_yet_is_asked_again(
    behaviour: Behaviour, readiness: tuple[int, Any] | None, reason: str, sidecar: Sidecar, kserve: FakeKServe
) -> None:
    kserve.script.append(behaviour)
    kserve.readiness = readiness or kserve.readiness
    await sidecar.made(prompt="a dog")
    assert kserve.instances == [{"prompt": "a dog"}] * 2
    assert (await retries(sidecar), await predicts(sidecar)) == ({reason: 1}, {"completed": 1})


async def test_a_runtime_that_is_not_there_yet_is_waited_for(
    start_sidecar: StartSidecar, start_kserve: StartKServe
) -> None:
    port = unused_port()
    sidecar = await start_sidecar(KSERVE_ENDPOINT=f"http://127.0.0.1:{port}/v1/models/painter")
    call = asyncio.create_task(sidecar.made())
    await metric_becomes(sidecar, 'imagegen_runtime_retries_total{model="painter",reason="unreachable"}', 1)
    late = await start_kserve(port=port)
    await call
    assert late.instances == [{"prompt": "a cat"}]


async def test_a_runtime_that_stays_away_is_given_up_with_the_reason(
    start_sidecar: StartSidecar, start_kserve: StartKServe, tmp_path: Path
) -> None:
    full, loading = await start_kserve(), await start_kserve()
    full.script.extend(say(429, {"error": "16 waiting"}) for _ in range(9))
    loading.script.extend(say(503, LOADING) for _ in range(9))
    loading.readiness = NOT_READY
    ports = {"absent": unused_port(), "full": full.server.port, "loading": loading.server.port}
    models = tmp_path / "models.yaml"
    models.write_text(
        "models:\n"
        + "".join(
            f"- {{name: {name}, endpoint: 'http://127.0.0.1:{port}/v1/models/painter'}}\n"
            for name, port in ports.items()
        )
    )
    sidecar = await start_sidecar(MODELS_FILE=str(models))

    told = dict(zip(ports, await asyncio.gather(*(failure(sidecar, model=name) for name in ports)), strict=True))

    assert told == {
        "absent": "The model's runtime cannot be reached; it may be starting.",
        "full": "The model's runtime is busy; try again shortly: 16 waiting",
        "loading": "The model is not ready yet; it may still be loading. Try again in a minute: " + LOADING["error"],
    }
    assert (len(full.instances), len(loading.instances)) == (5, 5)
    assert [await retries(sidecar, name) for name in ports] == [{"unreachable": 4}, {"busy": 4}, {"not_ready": 4}]
    assert sidecar.stored() == []


async def test_a_503_of_a_ready_model_is_busy_and_not_sent_again(sidecar: Sidecar, kserve: FakeKServe) -> None:
    """The runtime may have begun the work: a gateway answers 503 also where it lost an upstream that was working."""
    kserve.script.append(say(503, {"error": "upstream reset"}))
    assert await failure(sidecar) == "The model's runtime is busy; try again shortly: upstream reset"
    assert (len(kserve.instances), await retries(sidecar), await predicts(sidecar)) == (1, {}, {"busy": 1})


@pytest.mark.parametrize("status", [503, 404])
async def test_a_refusal_by_a_gateway_whose_runtime_is_silent_is_not_sent_again(
    status: int, sidecar: Sidecar, kserve: FakeKServe
) -> None:
    """A runtime that paints answers no probe: the silence may well be this very image."""
    painted = asyncio.Event()

    async def give_up_on_the_painter(request: web.Request, instance: dict[str, Any]) -> web.StreamResponse:
        kserve.silent_until = painted
        return await say(status, {"error": "upstream timeout"})(request, instance)

    kserve.script.append(give_up_on_the_painter)
    assert "upstream timeout" in await failure(sidecar)
    painted.set()
    assert (len(kserve.instances), await retries(sidecar)) == (1, {})


@pytest.mark.parametrize("status", [502, 504])
async def test_a_gateway_that_answers_the_probe_itself_says_nothing_of_the_model(
    status: int, sidecar: Sidecar, kserve: FakeKServe
) -> None:
    async def lose_the_painter(request: web.Request, instance: dict[str, Any]) -> web.StreamResponse:
        kserve.readiness = (status, "upstream request timeout")
        return await say(503, {"error": "upstream reset"})(request, instance)

    kserve.script.append(lose_the_painter)
    assert "upstream reset" in await failure(sidecar)
    assert (len(kserve.instances), await retries(sidecar)) == (1, {})


def listing(kserve: FakeKServe, status: int, body: Any) -> None:
    """Let the runtime answer `/v1/models`."""

    async def models(request: web.Request) -> web.StreamResponse:
        return await say(status, body)(request, {})

    kserve.app.router.add_get("/v1/models", models)


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (
            200,
            {"models": ["stable-diffusion", "model"]},
            "it lists stable-diffusion, model; the configured name is painter.",
        ),
        (200, {"models": [{"name": "a\u202eb"}, {"id": 7}]}, "At /v1/models it lists ab;"),
        (200, {"models": [f"m{n}" for n in range(5000)]}, "lists m0, m1, m2, m3, m4, m5, m6, m7 and 4992 more;"),
        (200, {"models": ["x" * 5000]}, "it lists xxxxx"),
        (200, {"models": []}, "At /v1/models it lists none; the configured name is painter."),
        (200, {"models": "all"}, "no route"),
        (200, "<html>", "no route"),
        (404, {"error": "no route"}, "no route"),
        (302, "", "no route"),
    ],
)
async def test_a_404_of_a_ready_model_names_the_models_there_are_and_is_not_sent_again(
    status: int, body: Any, told: str, start_sidecar: StartSidecar, aiohttp_server: Any
) -> None:
    kserve = FakeKServe()
    listing(kserve, status, body)
    server = await aiohttp_server(kserve.app)
    sidecar = await start_sidecar(KSERVE_ENDPOINT=f"http://127.0.0.1:{server.port}/v1/models/painter")
    kserve.script.append(say(404, {"error": "no route"}))
    text = await failure(sidecar)
    assert "says that the model is ready, but answers 404 to a prediction (…:predict): no route" in text
    assert (told in text, len(text) < 700) == (True, True)
    assert (len(kserve.instances), await retries(sidecar), await predicts(sidecar)) == (1, {}, {"unknown_model": 1})


async def test_a_503_of_a_runtime_that_cannot_be_asked_is_not_sent_again(sidecar: Sidecar, kserve: FakeKServe) -> None:
    """It may have begun the work, and there is no GET to tell."""
    kserve.readiness = (405, "")
    kserve.script.append(say(503, {"error": "upstream reset"}))
    assert await failure(sidecar) == "The model's runtime is busy; try again shortly: upstream reset"
    assert (len(kserve.instances), await retries(sidecar)) == (1, {})


@pytest.mark.parametrize("body", [{"error": "Model with name sculptor does not exist."}, "404: Not Found"])
async def test_a_model_that_the_runtime_does_not_know_fails_at_once(
    body: Any, start_sidecar: StartSidecar, aiohttp_server: Any
) -> None:
    asked = []

    async def unknown(request: web.Request) -> web.StreamResponse:
        asked.append(request.method)
        return await say(404, body)(request, {})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", unknown)
    server = await aiohttp_server(app)
    sidecar = await start_sidecar(KSERVE_ENDPOINT=f"http://127.0.0.1:{server.port}/v1/models/painter")
    assert "The runtime does not know the configured model (404)" in await failure(sidecar)
    assert (asked.count("POST"), await retries(sidecar), await predicts(sidecar)) == (1, {}, {"unknown_model": 1})


async def test_of_a_model_that_the_runtime_does_not_know_the_others_are_named(
    start_sidecar: StartSidecar, aiohttp_server: Any
) -> None:
    """KServe's own servers call their model `model` unless told otherwise."""
    kserve = FakeKServe()
    listing(kserve, 200, {"models": ["model"]})
    server = await aiohttp_server(kserve.app)
    sidecar = await start_sidecar(KSERVE_ENDPOINT=f"http://127.0.0.1:{server.port}/v1/models/sculptor")
    text = await failure(sidecar)
    assert text.startswith("The runtime does not know the configured model (404)")
    assert text.endswith("At /v1/models it lists model; the configured name is sculptor.")


# --- keywords that a pipeline does not take ---------------------------------------------------------------------------

LEFT_OUT = "The runtime does not take negative_prompt; the image was made without."


async def test_an_unexpected_keyword_is_left_out_told_recorded_and_remembered(
    sidecar: Sidecar, kserve: FakeKServe
) -> None:
    kserve.script.append(unexpected("negative_prompt"))
    for count in (1, 2):
        result = await sidecar.generate(negative_prompt="fog", num_inference_steps=4, result="link")
        assert result.structured_content["message"] == LEFT_OUT
        assert LEFT_OUT in result.content[0].text
        assert records(sidecar)[count - 1]["dropped_parameters"] == ["negative_prompt"]
    without = await sidecar.generate(result="link")

    bare = {"prompt": "a cat", "num_inference_steps": 4}
    assert kserve.instances == [{**bare, "negative_prompt": "fog"}, bare, bare, {"prompt": "a cat"}]
    assert without.structured_content["message"] is None
    assert records(sidecar)[0]["request"]["negative_prompt"] == "fog"
    assert records(sidecar)[2]["dropped_parameters"] == []
    assert await retries(sidecar) == {"refused_parameters": 1}


async def test_a_pipeline_that_takes_two_keywords_less_is_asked_without_both(
    sidecar: Sidecar, kserve: FakeKServe
) -> None:
    kserve.script.extend([unexpected("guidance_scale"), unexpected("negative_prompt")])
    result = await sidecar.generate(negative_prompt="fog", guidance_scale=3, result="link")
    assert "does not take negative_prompt, guidance_scale; the image" in result.structured_content["message"]
    assert [sorted(instance) for instance in kserve.instances] == [
        ["guidance_scale", "negative_prompt", "prompt"],
        ["negative_prompt", "prompt"],
        ["prompt"],
    ]


async def test_a_keyword_is_found_behind_a_long_introduction(sidecar: Sidecar, kserve: FakeKServe) -> None:
    text = "in a pipeline, " * 60 + "got an unexpected keyword argument 'negative_prompt'"
    kserve.script.append(say(400, {"error": f"Prediction failed: {text}"}))
    result = await sidecar.generate(negative_prompt="fog", result="link")
    assert (result.is_error, result.structured_content["message"]) == (False, LEFT_OUT)


async def test_a_seed_that_is_refused_counts_as_not_applied(start_sidecar: StartSidecar, kserve: FakeKServe) -> None:
    sidecar = await start_sidecar(RUNTIME_PROFILE="diffusers-seed")
    kserve.script.append(unexpected("seed"))
    result = await sidecar.generate(seed=7, result="link")
    image = result.structured_content["images"][0]
    assert (image["seed"], image["seed_applied"]) == (7, False)
    assert "The runtime does not take seed" in result.structured_content["message"]
    assert kserve.instances == [{"prompt": "a cat", "seed": 7}, {"prompt": "a cat"}]
    (record,) = records(sidecar)
    assert (record["seed_applied"], record["dropped_parameters"]) == (False, ["seed"])


async def test_a_parameter_of_the_models_file_that_is_left_out_is_told_and_recorded(
    start_sidecar: StartSidecar, kserve: FakeKServe, tmp_path: Path
) -> None:
    endpoint = f"http://127.0.0.1:{kserve.server.port}/v1/models/painter"
    models = tmp_path / "models.yaml"
    models.write_text(f"models: [{{endpoint: '{endpoint}', extra_parameters: {{scheduler: ddim}}}}]")
    sidecar = await start_sidecar(MODELS_FILE=str(models))
    kserve.script.append(unexpected("scheduler"))
    result = await sidecar.generate(result="link")
    assert kserve.instances == [{"prompt": "a cat", "scheduler": "ddim"}, {"prompt": "a cat"}]
    assert "The runtime does not take scheduler" in (result.structured_content["message"] or "")
    assert records(sidecar)[0]["dropped_parameters"] == ["scheduler"]


@pytest.mark.parametrize("keyword", ["prompt", "width", "never_sent"])
async def test_a_keyword_that_cannot_be_left_out_is_a_refusal(
    keyword: str, sidecar: Sidecar, kserve: FakeKServe
) -> None:
    kserve.script.append(unexpected(keyword))
    assert f"unexpected keyword argument '{keyword}'" in await failure(sidecar)
    assert (len(kserve.instances), await retries(sidecar)) == (1, {})
    assert await predicts(sidecar) == {"refused_parameters": 1}


async def test_a_pipeline_that_refuses_the_same_keyword_for_ever_is_not_asked_for_ever(
    sidecar: Sidecar, kserve: FakeKServe
) -> None:
    kserve.script.extend(unexpected("negative_prompt") for _ in range(9))
    assert "unexpected keyword argument 'negative_prompt'" in await failure(sidecar, negative_prompt="fog")
    assert len(kserve.instances) == 2


async def test_what_was_left_out_is_tried_again_once_readiness_went_and_came_back(
    sidecar: Sidecar, kserve: FakeKServe
) -> None:
    kserve.script.append(unexpected("negative_prompt"))
    await sidecar.made(negative_prompt="fog")
    watch = runtime_watch(sidecar)
    for kserve.readiness in ((200, {"ready": True}), NOT_READY, (200, {"ready": True})):
        await watch.look()
    result = await sidecar.generate(negative_prompt="fog", result="link")
    assert kserve.instances[-1] == {"prompt": "a cat", "negative_prompt": "fog"}
    assert result.structured_content["message"] is None


async def test_what_was_left_out_is_tried_again_at_a_runtime_that_was_away(
    start_sidecar: StartSidecar, start_kserve: StartKServe
) -> None:
    before = await start_kserve()
    port = before.server.port
    sidecar = await start_sidecar(KSERVE_ENDPOINT=f"http://127.0.0.1:{port}/v1/models/painter")
    before.script.append(unexpected("negative_prompt"))
    await sidecar.made(negative_prompt="fog")
    await before.server.close()
    call = asyncio.create_task(sidecar.made(negative_prompt="fog"))
    await metric_becomes(sidecar, 'imagegen_runtime_retries_total{model="painter",reason="unreachable"}', 1)
    after = await start_kserve(port=port)
    await call
    assert after.instances == [{"prompt": "a cat", "negative_prompt": "fog"}]


async def test_what_was_left_out_is_tried_again_at_a_runtime_that_says_it_was_not_ready(
    sidecar: Sidecar, kserve: FakeKServe
) -> None:
    kserve.script.extend([unexpected("negative_prompt"), succeed(), say(503, LOADING)])
    await sidecar.made(negative_prompt="fog")
    kserve.readiness = NOT_READY
    await sidecar.made(negative_prompt="fog")
    assert kserve.instances[-1] == {"prompt": "a cat", "negative_prompt": "fog"}


@pytest.mark.parametrize("seen_while", ["sent without", "sent with"])
async def test_a_record_tells_what_this_image_was_made_with(
    seen_while: str, start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    """What is learned or forgotten about the runtime while it works does not change what it was sent."""
    sidecar = await start_sidecar(RUNTIME_PROFILE="diffusers-seed", RUNTIME_CONCURRENCY="2")
    release = asyncio.Event()
    if seen_while == "sent without":
        kserve.script.extend([unexpected("seed"), succeed(), succeed_when(release)])
        await sidecar.made(seed=1)
    else:
        kserve.script.extend([succeed_when(release), unexpected("seed")])
    before = len(kserve.instances)
    call = asyncio.create_task(sidecar.made(seed=2))
    await kserve.seen(before + 1)
    if seen_while == "sent without":
        sidecar.service.lane(None).runtime.forget()
    else:
        await sidecar.made(seed=3)
    release.set()
    image = await call
    assert image["seed_applied"] is ("seed" in kserve.instances[before])
    (record,) = [record for record in records(sidecar) if record["request"]["seed"] == 2]
    assert record["dropped_parameters"] == ([] if image["seed_applied"] else ["seed"])


async def test_nulls_are_never_sent(sidecar: Sidecar, kserve: FakeKServe) -> None:
    names = ("negative_prompt", "width", "height", "num_inference_steps", "guidance_scale", "seed")
    await sidecar.made(**dict.fromkeys(names))
    await sidecar.made(negative_prompt="  ")
    assert kserve.instances == [{"prompt": "a cat"}] * 2


# --- a runtime that answers late, or never ----------------------------------------------------------------------------


async def test_a_late_image_is_stored_as_the_caller_was_told(start_sidecar: StartSidecar, kserve: FakeKServe) -> None:
    sidecar = await start_sidecar(RUNTIME_TIMEOUT="300ms")
    data, release = picture(88, 40), asyncio.Event()
    kserve.script.append(succeed_when(release, data))

    told = await failure(sidecar)

    named = re.search(r"has not answered within .+ if the image comes, it is stored as (\w+)\.", told)
    assert named
    in_flight = 'imagegen_in_flight{model="painter"}'
    assert (await sidecar.metric(in_flight), sidecar.service.lane(None).queue.full) == (1, True)
    assert (await sidecar.get(f"/images/{named[1]}"))[0].status == 404
    assert "was not begun" in await failure(sidecar, prompt="behind the ghost")
    release.set()
    await metric_becomes(sidecar, 'imagegen_stored_images_total{backend="file"}', 1)
    response, body = await sidecar.get(f"/images/{named[1]}")
    assert (response.status, body) == (200, data)
    assert kserve.instances == [{"prompt": "a cat"}]  # neither again, nor what waited behind it
    await metric_becomes(sidecar, in_flight, 0)
    await sidecar.made()
    assert kserve.most_in_flight == 1
    assert (await retries(sidecar), await predicts(sidecar)) == ({}, {"completed": 2})


@pytest.mark.parametrize("era", ERAS)
async def test_the_next_call_waits_for_the_ghost_and_is_then_sent(
    era: str, start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(RUNTIME_TIMEOUT="1s")
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    assert "It may still be working" in await failure(sidecar, era=era, prompt="first")
    call = asyncio.create_task(sidecar.generate(era, prompt="second", result="link"))
    await metric_becomes(sidecar, 'imagegen_queue_depth{model="painter"}', 1)
    assert len(kserve.instances) == 1
    release.set()
    assert not (await call).is_error
    assert ([instance["prompt"] for instance in kserve.instances], kserve.most_in_flight) == (["first", "second"], 1)


@pytest.mark.parametrize(
    "ending", [say(500, {"error": "too late"}), die_at_once, succeed(b"no picture")], ids=["error", "death", "nonsense"]
)
async def test_a_ghost_that_fails_frees_its_slot_and_leaves_nothing(
    ending: Behaviour, start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(RUNTIME_TIMEOUT="300ms")
    release = asyncio.Event()

    async def fail_late(request: web.Request, instance: dict[str, Any]) -> web.StreamResponse:
        await release.wait()
        return await ending(request, instance)

    kserve.script.append(fail_late)
    assert "It may still be working" in await failure(sidecar)
    release.set()
    await metric_becomes(sidecar, 'imagegen_in_flight{model="painter"}', 0)
    assert (len(kserve.instances), sidecar.stored()) == (1, [])
    await sidecar.made()


async def test_an_answer_that_stops_in_the_middle_is_a_ghost_too(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(RUNTIME_TIMEOUT="300ms")
    body, release = json.dumps(answer(picture())).encode(), asyncio.Event()

    async def stall(request: web.Request, _instance: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(body[:50])
        await release.wait()
        await response.write(body[50:])
        return response

    kserve.script.append(stall)
    assert "It may still be working" in await failure(sidecar)
    release.set()
    await metric_becomes(sidecar, 'imagegen_stored_images_total{backend="file"}', 1)
    assert len(records(sidecar)) == 1


# --- connections, tokens, certificates --------------------------------------------------------------------------------


async def test_a_predict_has_a_connection_of_its_own(sidecar: Sidecar, kserve: FakeKServe) -> None:
    kserve.script.append(say(500, {"error": "unhandled"}))
    await failure(sidecar)
    await sidecar.made()
    assert [headers["Connection"] for headers in kserve.headers] == ["close", "close"]
    assert {headers["Content-Type"] for headers in kserve.headers} == {"application/json"}


async def test_a_token_is_sent_and_none_without_one(
    sidecar: Sidecar, start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    await sidecar.made()
    await (await start_sidecar(KSERVE_TOKEN=TOKEN)).made()
    assert [headers.get("Authorization") for headers in kserve.headers] == [None, f"Bearer {TOKEN}"]


async def test_the_line_end_of_a_token_is_not_part_of_it(start_sidecar: StartSidecar, kserve: FakeKServe) -> None:
    """A Kubernetes secret made from a file often ends in one."""
    await (await start_sidecar(KSERVE_TOKEN=f"{TOKEN}\n")).made()
    assert kserve.headers[0]["Authorization"] == f"Bearer {TOKEN}"


async def test_a_token_file_is_read_at_each_call(
    start_sidecar: StartSidecar, kserve: FakeKServe, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("one\n")
    sidecar = await start_sidecar(KSERVE_TOKEN_FILE=str(file))
    await sidecar.made()
    file.write_text("two\n")
    await sidecar.made()
    assert [headers["Authorization"] for headers in kserve.headers] == ["Bearer one", "Bearer two"]


@pytest.mark.parametrize("content", [b"\xff\xfe", b"two\nlines"])
async def test_a_token_file_with_rubbish_is_told_and_recovers(
    content: bytes, start_sidecar: StartSidecar, kserve: FakeKServe, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    sidecar = await start_sidecar(KSERVE_TOKEN_FILE=str(file))

    assert not (await sidecar.service.lane(None).runtime.readiness()).ready
    assert "token" in await failure(sidecar)
    assert kserve.instances == []

    file.write_text("two")
    await sidecar.made()
    assert kserve.headers[0]["Authorization"] == "Bearer two"


async def test_a_token_file_that_is_away_for_a_moment_is_waited_for(
    start_sidecar: StartSidecar, kserve: FakeKServe, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("one")
    sidecar = await start_sidecar(KSERVE_TOKEN_FILE=str(file))
    file.unlink()
    call = asyncio.create_task(sidecar.made())
    await metric_becomes(sidecar, 'imagegen_runtime_retries_total{model="painter",reason="unreachable"}', 1)
    assert not (await sidecar.service.lane(None).runtime.readiness()).ready
    file.write_text("two")
    await call
    assert [headers["Authorization"] for headers in kserve.headers] == ["Bearer two"]


async def test_a_token_is_never_told_to_a_caller(start_sidecar: StartSidecar, kserve: FakeKServe) -> None:
    sidecar = await start_sidecar(KSERVE_TOKEN=TOKEN)
    echo = f"no access with Authorization: Bearer {TOKEN}"
    kserve.script.extend([say(401, {"error": echo}), say(200, echo), say(400, {"error": echo}), die_at_once])
    for _ in range(4):
        assert TOKEN not in await failure(sidecar)


@pytest.mark.parametrize("form", ["table", "json"])
def test_config_masks_the_token(form: str) -> None:
    command = [sys.executable, "-m", "sidecar", "config", "--format", form]
    done = subprocess.run(
        command, env={**os.environ, "KSERVE_TOKEN": TOKEN}, capture_output=True, text=True, timeout=30, check=True
    )
    assert "KSERVE_TOKEN" in done.stdout
    assert "***" in done.stdout
    assert TOKEN not in done.stdout + done.stderr


async def test_a_token_is_never_logged(kserve: FakeKServe, tmp_path: Path) -> None:
    kserve.script.extend([succeed(), say(401, {"error": f"bad token {TOKEN}"}), die_at_once, say(200, TOKEN)])
    environment = {
        **os.environ,
        "LISTEN_PORT": "0",
        "KSERVE_ENDPOINT": f"http://127.0.0.1:{kserve.server.port}/v1/models/painter",
        "KSERVE_TOKEN": TOKEN,
        "STORAGE_PATH": str(tmp_path / "images"),
        "LOG_LEVEL": "debug",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sidecar", "serve", env=environment, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    log = b""
    try:
        while b'"listening"' not in log.rsplit(b"\n", 2)[-2 if log.endswith(b"\n") else -1]:
            line = await asyncio.wait_for(process.stderr.readline(), 20)
            assert line, log.decode()
            log += line
        url = json.loads(log.splitlines()[-1])["url"]
        async with aiohttp.ClientSession() as session:
            for _ in range(4):
                async with session.post(f"{url}/mcp", **raw_tool_call("auto", {"prompt": "a cat"})) as response:
                    assert "status" in await response.text()
    finally:
        process.terminate()
        rest = await process.stderr.read()
        await process.wait()
    assert len(kserve.instances) == 4
    assert {headers["Authorization"] for headers in kserve.headers} == {f"Bearer {TOKEN}"}
    assert b"generation failed" in log + rest
    assert TOKEN.encode() not in log + rest


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that is its own authority, its key in the same file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl command to make a certificate with")
    file, key = tmp_path / "tls.pem", tmp_path / "tls.key"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=painter", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", str(key), "-out", str(file)],
        check=True, capture_output=True,
    )  # fmt: skip
    return file


async def tls_kserve(start_kserve: StartKServe, certificate: Path) -> FakeKServe:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    return await start_kserve(ssl=context)


async def test_a_runtime_elsewhere_is_reached_by_its_own_authority(
    start_sidecar: StartSidecar, start_kserve: StartKServe, certificate: Path
) -> None:
    remote = await tls_kserve(start_kserve, certificate)
    endpoint = f"https://127.0.0.1:{remote.server.port}/v1/models/painter"
    sidecar = await start_sidecar(KSERVE_ENDPOINT=endpoint, KSERVE_CA_FILE=str(certificate), KSERVE_TOKEN=TOKEN)
    await sidecar.until_ready()
    await sidecar.made()
    assert remote.headers[0]["Authorization"] == f"Bearer {TOKEN}"


async def test_a_runtime_that_nobody_vouches_for_gets_neither_prompt_nor_token(
    start_sidecar: StartSidecar, start_kserve: StartKServe, certificate: Path
) -> None:
    remote = await tls_kserve(start_kserve, certificate)
    endpoint = f"https://127.0.0.1:{remote.server.port}/v1/models/painter"
    sidecar = await start_sidecar(KSERVE_ENDPOINT=endpoint, KSERVE_TOKEN=TOKEN)
    told = await failure(sidecar)
    assert "certificate" in told
    assert TOKEN not in told
    assert (remote.instances, sidecar.stored()) == ([], [])


async def test_a_ca_file_that_is_none_stops_the_start(start_sidecar: StartSidecar, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("no certificate")
    with pytest.raises(BadConfiguration, match="KSERVE_CA_FILE"):
        await start_sidecar(KSERVE_CA_FILE=str(file))


# --- traces -----------------------------------------------------------------------------------------------------------

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize("era", ERAS)
async def test_trace_and_request_id_of_the_call_are_passed_on(era: str, sidecar: Sidecar, kserve: FakeKServe) -> None:
    headers = {"traceparent": TRACEPARENT, "X-Request-ID": "call-17"}
    call = raw_tool_call(era, {"prompt": "a cat", "num_images": 2}, headers)
    async with sidecar.session.post(f"{sidecar.url}/mcp", **call) as response:
        assert (response.status, "completed" in await response.text()) == (200, True)
    assert [(sent["traceparent"], sent["X-Request-ID"]) for sent in kserve.headers] == [(TRACEPARENT, "call-17")] * 2


@pytest.mark.parametrize("era", ERAS)
async def test_a_request_id_is_made_where_none_is_fit_to_be_passed_on(
    era: str, sidecar: Sidecar, kserve: FakeKServe
) -> None:
    for given in ({}, {"traceparent": "00-zz-zz-01", "X-Request-ID": "a b"}, {"X-Request-ID": "x" * 2000}):
        async with sidecar.session.post(
            f"{sidecar.url}/mcp", **raw_tool_call(era, {"prompt": "a cat"}, given)
        ) as response:
            assert response.status == 200
            await response.read()
    ids = [headers["X-Request-ID"] for headers in kserve.headers]
    assert all(re.fullmatch(r"[0-9a-f]{16}", made) for made in ids)
    assert len(set(ids)) == 3
    assert not any("traceparent" in headers for headers in kserve.headers)
