"""What kubelets and a runtime's preStop ask."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from sidecar.core.readiness import Check, RuntimeWatch
from sidecar.domain import GeneratedImage, GenerationRequest
from sidecar.errors import INTERNAL
from sidecar.events import Crashed, Event
from sidecar.ports import Readiness, RuntimeMetrics, StagedFile, SystemClock
from sidecar.runtimes.kserve_v1 import KServeV1Runtime
from tests.conftest import Sidecar, StartSidecar
from tests.fake_kserve import FakeKServe, succeed, succeed_when


async def verdict(sidecar: Sidecar, path: str) -> tuple[int, str, dict[str, Any]]:
    response, _ = await sidecar.get(path)
    body = await response.json()
    return response.status, body["status"], {name: check["status"] for name, check in body.get("checks", {}).items()}


async def becomes(sidecar: Sidecar, path: str, expected: tuple[int, str, dict[str, Any]]) -> None:
    async with asyncio.timeout(20):
        while await verdict(sidecar, path) != expected:
            await asyncio.sleep(0.05)


async def test_a_sidecar_with_a_ready_runtime_is_started_and_ready(sidecar: Sidecar) -> None:
    fine = (200, "ok", {"storage": "ok", "runtime/painter": "ok"})
    await becomes(sidecar, "/readyz", fine)
    assert await verdict(sidecar, "/startupz") == fine


async def test_until_the_runtime_was_ready_once_it_is_alive_but_not_started(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    kserve.readiness = (200, {"name": "painter", "ready": False})
    sidecar = await start_sidecar()
    checks = {"storage": "ok", "runtime/painter": "not ready"}
    await becomes(sidecar, "/startupz", (503, "starting", checks))
    assert await verdict(sidecar, "/readyz") == (503, "not ready", checks)
    assert (await sidecar.get("/livez"))[0].status == 200
    kserve.readiness = (200, {"name": "painter", "ready": True})
    await becomes(sidecar, "/startupz", (200, "ok", {"storage": "ok", "runtime/painter": "ok"}))


async def test_a_runtime_that_dies_makes_it_unready_but_not_unstarted(sidecar: Sidecar, kserve: FakeKServe) -> None:
    await sidecar.until_ready()
    await kserve.server.close()
    checks = {"storage": "ok", "runtime/painter": "not ready"}
    await becomes(sidecar, "/readyz", (503, "not ready", checks))
    assert await verdict(sidecar, "/startupz") == (200, "ok", checks)


async def test_a_runtime_that_is_merely_busy_is_ready(start_sidecar: StartSidecar, kserve: FakeKServe) -> None:
    """A synchronous predict blocks the runtime's whole event loop, its probes too."""
    sidecar = await start_sidecar()
    await sidecar.until_ready()
    done = asyncio.Event()

    async def block(request: web.Request, instance: dict[str, Any]) -> web.StreamResponse:
        kserve.silent_until = done
        await done.wait()
        return await succeed()(request, instance)

    kserve.script.append(block)
    slow = asyncio.create_task(sidecar.made())
    await becomes(sidecar, "/readyz", (200, "ok", {"storage": "ok", "runtime/painter": "busy"}))
    done.set()
    assert (await sidecar.get((await slow)["url"]))[0].status == 200
    await sidecar.look_around()
    await becomes(sidecar, "/readyz", (200, "ok", {"storage": "ok", "runtime/painter": "ok"}))


async def test_one_ready_model_of_two_suffices_once_both_have_been(
    start_sidecar: StartSidecar, kserve: FakeKServe, aiohttp_server: Any, tmp_path: Path
) -> None:
    other = FakeKServe()
    other.server = await aiohttp_server(other.app)
    models = tmp_path / "models.yaml"
    models.write_text(
        f"models:\n- {{name: one, endpoint: 'http://127.0.0.1:{kserve.server.port}/v1/models/painter'}}\n"
        f"- {{name: two, endpoint: 'http://127.0.0.1:{other.server.port}/v1/models/painter'}}\n"
    )
    sidecar = await start_sidecar(MODELS_FILE=str(models))
    await sidecar.until_ready()
    await other.server.close()
    await sidecar.look_around()
    one = (200, "degraded", {"storage": "ok", "runtime/one": "ok", "runtime/two": "not ready"})
    await becomes(sidecar, "/readyz", one)
    assert not (await sidecar.generate(model="one", result="link")).is_error


async def test_drained_answers_once_nothing_is_in_flight(sidecar: Sidecar, kserve: FakeKServe) -> None:
    assert (await sidecar.get("/drained"))[0].status == 200
    kserve.script.append(succeed_when(release := asyncio.Event()))
    slow = asyncio.create_task(sidecar.made())
    await kserve.seen(1)
    asked = asyncio.create_task(sidecar.get("/drained"))
    assert (await sidecar.get("/livez"))[0].status == 200
    assert not asked.done()
    release.set()
    await slow
    assert (await asked)[0].status == 200


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz"])
async def test_probes_may_use_head(path: str, sidecar: Sidecar) -> None:
    await sidecar.until_ready()
    response, body = await sidecar.get(path, method="HEAD")
    assert (response.status, body) == (200, b"")


async def test_a_runtime_that_refuses_connections_is_not_busy_however_many_predicts_wait_for_it(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    """While a predict is sent again and again to a dead runtime, the slot is taken, but nobody works."""
    sidecar = await start_sidecar()
    await sidecar.until_ready()
    lane = sidecar.service.lane(None)
    watch = RuntimeWatch(lane, SystemClock(), lambda _event: None)
    await watch.look()
    assert watch.check == Check("ok")
    await kserve.server.close()
    call = asyncio.create_task(sidecar.generate())
    async with asyncio.timeout(30):
        while not lane.queue.in_flight:
            await asyncio.sleep(0.01)
    await watch.look()
    assert (lane.queue.in_flight, watch.check.status) == (1, "not ready")
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)


class Surprising:
    """A runtime whose readiness is looked at only, and comes as given."""

    def __init__(self, *looks: Exception | Readiness) -> None:
        self._looks = list(looks)

    async def readiness(self) -> Readiness:
        if isinstance(look := self._looks.pop(0), Exception):
            raise look
        return look

    async def generate(self, request: GenerationRequest, staged: StagedFile) -> GeneratedImage:
        raise NotImplementedError

    def metrics(self) -> AbstractAsyncContextManager[RuntimeMetrics]:
        raise NotImplementedError

    def forget(self) -> None:
        raise NotImplementedError


async def test_a_look_at_a_runtime_that_fails_unforeseen_is_told_and_the_next_one_comes_all_the_same(
    sidecar: Sidecar,
) -> None:
    runtime = Surprising(RuntimeError("nobody foresaw this"), Readiness(ready=True, reached=True, detail=""))
    facts: list[Event] = []
    watch = RuntimeWatch(replace(sidecar.service.lane(None), runtime=runtime), SystemClock(), facts.append)
    await watch.look()
    assert watch.check == Check("not ready", INTERNAL)
    assert [fact.what for fact in facts if isinstance(fact, Crashed)] == ["the look at the runtime of painter"]
    await watch.look()
    assert watch.check == Check("ok")


async def test_a_host_that_no_name_server_can_be_asked_for_is_told(sidecar: Sidecar) -> None:
    settings = replace(sidecar.service.lane(None).settings, endpoint=f"http://{'a' * 64}/v1/models/painter")
    runtime = KServeV1Runtime(settings, sidecar.session, max_image_bytes=1, observer=lambda _event: None)
    detail = "cannot be reached (no such host can be asked for)"
    assert await runtime.readiness() == Readiness(ready=False, reached=True, detail=detail)


@pytest.mark.parametrize(
    "answer",
    [
        (200, {"ready": "False"}),
        (200, {"ready": None}),
        (200, []),
        (200, "yes"),
        (404, {"error": "Model with name painter does not exist."}),
        (302, {}),
        (500, {}),
        (503, {}),
    ],
)
async def test_what_is_no_clear_yes_of_the_runtime_is_a_no(
    answer: tuple[int, Any], start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    kserve.readiness = answer
    sidecar = await start_sidecar()
    checks = {"storage": "ok", "runtime/painter": "not ready"}
    await becomes(sidecar, "/readyz", (503, "not ready", checks))


@pytest.mark.parametrize("answer", [(404, {"detail": "Not Found"}), (404, "404: Not Found"), (405, "")])
async def test_a_runtime_without_a_get_for_its_model_is_ready_but_degraded_with_the_reason(
    answer: tuple[int, Any], start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    kserve.readiness = answer
    sidecar = await start_sidecar()
    checks = {"storage": "ok", "runtime/painter": "degraded"}
    await becomes(sidecar, "/readyz", (200, "degraded", checks))
    assert await verdict(sidecar, "/startupz") == (200, "ok", checks)
    response, _ = await sidecar.get("/readyz")
    detail = (await response.json())["checks"]["runtime/painter"]["detail"]
    assert detail == f"whether the model is ready is not known: the runtime has no GET for it (HTTP {answer[0]})"
    await sidecar.made()


async def test_a_model_that_answers_that_it_is_not_ready_makes_it_unready_again(
    sidecar: Sidecar, kserve: FakeKServe
) -> None:
    await sidecar.until_ready()
    for kserve.readiness in ((200, {"name": "painter", "ready": False}), (503, {"error": "is not ready."})):
        await becomes(sidecar, "/readyz", (503, "not ready", {"storage": "ok", "runtime/painter": "not ready"}))


async def test_a_store_that_cannot_be_written_at_the_start_is_alive_but_not_started(
    start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    sidecar = await start_sidecar(STORAGE_PATH=str(tmp_path / "file" / "images"))
    checks = {"storage": "degraded", "cleanup": "degraded", "runtime/painter": "ok"}
    await becomes(sidecar, "/startupz", (503, "starting", checks))
    assert await verdict(sidecar, "/readyz") == (503, "not ready", checks)
    assert (await sidecar.get("/livez"))[0].status == 200
    assert (await sidecar.generate()).is_error


async def test_health_answers_tell_no_secret_whatever_is_wrong(
    start_sidecar: StartSidecar, kserve: FakeKServe, tmp_path: Path
) -> None:
    kserve.readiness = (401, {"error": "not with the token hush-hush"})
    file = tmp_path / "token-file"
    file.write_text("hush-hush")
    for secret in ({"KSERVE_TOKEN": "hush-hush"}, {"KSERVE_TOKEN_FILE": str(file)}):
        sidecar = await start_sidecar(**secret)
        await becomes(sidecar, "/readyz", (503, "not ready", {"storage": "ok", "runtime/painter": "not ready"}))
        for path in ("/livez", "/readyz", "/startupz", "/drained"):
            _, body = await sidecar.get(path)
            assert b"hush" not in body
            assert b"token-file" not in body


async def test_probes_answer_to_any_host(sidecar: Sidecar) -> None:
    """A kubelet asks by the pod's address."""
    await sidecar.until_ready()
    for path in ("/livez", "/readyz", "/startupz", "/drained"):
        response, _ = await sidecar.get(path, headers={"Host": "10.1.2.3:8000"})
        assert (response.status, response.content_type) == (200, "application/json")
