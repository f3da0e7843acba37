"""What kubelets and a runtime's preStop ask."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

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
    await slow
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
    await becomes(
        sidecar, "/readyz", (200, "degraded", {"storage": "ok", "runtime/one": "ok", "runtime/two": "not ready"})
    )


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
