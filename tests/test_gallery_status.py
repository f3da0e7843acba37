"""The gallery tells how the server is: readiness, queue, new images, failures (issue 14)."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from sidecar.config import read_settings
from sidecar.core.generation import Lane
from sidecar.core.generation_queue import ModelQueue
from sidecar.core.readiness import Check, CleanupWatch, Health, RuntimeWatch, StorageWatch
from sidecar.domain import GenerationRequest, JobId, JobRecord, JobResult, MissingImage
from sidecar.edge.gallery import wording
from sidecar.events import JobEnded
from sidecar.observe.activity import MAX_FAILURES, Activity
from sidecar.ports import SystemClock
from tests.browsing import look
from tests.conftest import Sidecar, StartSidecar, metric_becomes
from tests.fake_kserve import FakeKServe, say, succeed, succeed_when

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


async def status_of(sidecar: Sidecar) -> Any:
    async with sidecar.session.get(f"{sidecar.url}/gallery/status") as response:
        return await response.json()


async def test_the_status_tells_each_models_queue(sidecar: Sidecar, kserve: FakeKServe) -> None:
    await sidecar.until_ready()
    idle = {"model": "painter", "ready": True, "detail": "", "waiting": 0, "in_flight": 0, "oldest_wait": 0.0}
    told = await status_of(sidecar)
    assert (told["summary"], told["state"], told["troubles"]) == ("Idle", "idle", [])
    assert told["storage"]["status"] == "ok"
    assert without_times(told["models"]) == [idle]
    kserve.script.append(succeed_when(release := asyncio.Event()))
    calls = [asyncio.create_task(sidecar.made()) for _ in range(2)]
    await metric_becomes(sidecar, 'imagegen_queue_depth{model="painter"}', 1)
    busy = await status_of(sidecar)
    assert (busy["summary"], busy["state"]) == ("1 painting, 1 waiting", "busy")
    assert 0 <= busy["models"][0].pop("oldest_wait") < 60
    assert without_times(busy["models"]) == [
        {"model": "painter", "ready": True, "detail": "", "waiting": 1, "in_flight": 1}
    ]
    assert "1 painting, 1 waiting" in (await look(sidecar))[1].text
    release.set()
    await asyncio.gather(*calls)
    assert without_times((await status_of(sidecar))["models"]) == [idle]


def without_times(models: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in model.items() if name != "since"} for model in models]


async def status_becomes(sidecar: Sidecar, wanted: Callable[[Any], bool]) -> Any:
    """The status as soon as it is as wanted; the store is asked for its newest image every five seconds."""
    async with asyncio.timeout(30):
        while not wanted(told := await status_of(sidecar)):
            await asyncio.sleep(0.05)
    return told


async def status_in_trouble(sidecar: Sidecar) -> Any:
    await sidecar.look_around()
    told = await status_of(sidecar)
    assert told["state"] == "trouble"
    return told


async def test_a_runtime_that_cannot_be_reached_is_told_with_the_reason_and_since_when(
    sidecar: Sidecar, kserve: FakeKServe
) -> None:
    await sidecar.until_ready()
    before = datetime.now(UTC)
    await kserve.server.close()
    told = await status_in_trouble(sidecar)
    (model,) = told["models"]
    assert (told["summary"], model["ready"]) == ("Not ready", False)
    assert before < datetime.fromisoformat(model["since"]) < datetime.now(UTC)
    (trouble,) = told["troubles"]
    assert trouble["since"] == model["since"]
    assert trouble["text"].startswith("The model painter is not ready: the runtime cannot be reached (")
    _, page, text = await look(sidecar)
    assert page.all("p", **{"class": "status"})[0]["data-state"] == "trouble"
    assert trouble["text"] in page.text
    assert f'datetime="{model["since"]}"' in text
    again = await status_of(sidecar)
    assert again["models"][0]["since"] == model["since"]


async def test_a_store_in_trouble_is_told_though_the_runtime_is_ready(sidecar: Sidecar) -> None:
    await sidecar.until_ready()
    shutil.rmtree(sidecar.store)
    told = await status_in_trouble(sidecar)
    assert (told["summary"], told["storage"]["status"]) == ("Image store in trouble", "degraded")
    assert told["troubles"][0]["text"] == told["storage"]["detail"]
    assert told["newest"] is None


def standing_of(**models: tuple[str, int, int]) -> str:
    """The summary for models with a readiness, images in flight and generations waiting."""
    clock = SystemClock()
    lanes, watches = {}, {}
    for name, (readiness, in_flight, waiting) in models.items():
        queue = ModelQueue(concurrency=max(1, in_flight), limit=10, clock=clock)
        lanes[name] = Lane(read_settings({}).models[0], NO_RUNTIME, queue)
        watches[name] = RuntimeWatch(lanes[name], clock, lambda _event: None)
        watches[name].check = Check(readiness)
        for _ in range(in_flight + waiting):
            queue.join(1, retry_after=1)
    health = Health(StorageWatch(NO_STORE, clock, lambda _event: None), CleanupWatch(clock), watches)
    return wording.summary(lanes, health)


NO_RUNTIME: Any = None
NO_STORE: Any = None


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ({"a": ("ok", 0, 0)}, "Idle"),
        ({"a": ("busy", 1, 0)}, "1 painting"),
        ({"a": ("unknown", 0, 0)}, "Starting"),
        ({"a": ("not ready", 0, 0)}, "Not ready"),
        ({"a": ("not ready", 1, 2)}, "Not ready, 3 held up"),
        ({"a": ("ok", 0, 0), "b": ("ok", 0, 0)}, "Idle"),
        ({"a": ("not ready", 0, 0), "b": ("ok", 1, 1), "c": ("ok", 0, 0)}, "a: not ready; b: 1 painting, 1 waiting"),
    ],
)
async def test_one_line_says_how_every_model_is(models: dict[str, tuple[str, int, int]], said: str) -> None:
    assert standing_of(**models) == said


async def test_a_new_image_is_noticed_by_its_id_and_a_deleted_one_is_not(
    start_sidecar: StartSidecar,
) -> None:
    sidecar = await start_sidecar()
    empty = await status_of(sidecar)
    assert (empty["newest"], empty["last_stored"], empty["failures"]) == (None, None, [])
    _, page, _ = await look(sidecar)
    assert page.all("body")[0]["data-newest"] == ""
    image = await sidecar.made()
    stored = (await status_of(sidecar))["last_stored"]
    assert stored["image_id"] == image["image_id"]
    _, page, _ = await look(sidecar)
    assert page.all("body")[0]["data-newest"] == image["image_id"]
    assert datetime.fromisoformat(page.all("body")[0]["data-rendered"]) > datetime.fromisoformat(stored["at"])


async def test_another_pods_new_image_is_noticed_in_the_store(start_sidecar: StartSidecar) -> None:
    sidecar, other = await start_sidecar(), await start_sidecar()
    image = await other.made()
    told = await status_becomes(sidecar, lambda told: told["newest"] is not None)
    assert (told["newest"], told["last_stored"]) == (image["image_id"], None)


async def test_what_failed_is_shown_with_its_reason(sidecar: Sidecar, kserve: FakeKServe) -> None:
    kserve.script.append(say(500, {"error": "CUDA out of memory"}))
    await sidecar.generate(prompt="<b>a dragon</b>")
    kserve.script.extend([succeed(), say(400, {"error": "the painter fell asleep"})])
    await sidecar.generate(prompt="two foxes", num_images=2)
    newest, older = (await status_of(sidecar))["failures"]
    assert (newest["prompt"], newest["missing"], newest["total"]) == ("two foxes", 1, 2)
    assert (older["reason"], older["model"]) == ("out_of_memory", "painter")
    _, page, _ = await look(sidecar)
    assert page.all("body")[0]["data-failure"] == newest["failure_id"]
    assert "1 of 2 images: The model's runtime refused these parameters: the painter fell asleep" in page.text
    assert "CUDA out of memory" in page.text
    assert "<b>a dragon</b>" in page.text
    for path in ("/?prompt=fox", "/?model=painter"):
        assert "CUDA" not in (await look(sidecar, path))[1].text


async def test_what_was_cancelled_has_not_failed(sidecar: Sidecar, kserve: FakeKServe, never: None) -> None:
    first = asyncio.create_task(sidecar.generate())
    await kserve.seen(1)
    async with sidecar.client() as client:
        call = asyncio.create_task(client.call_tool("generate_image", {"prompt": "a fox"}))
        await metric_becomes(sidecar, 'imagegen_queue_depth{model="painter"}', 1)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await metric_becomes(sidecar, 'imagegen_queue_depth{model="painter"}', 0)
    assert (await status_of(sidecar))["failures"] == []
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)


async def test_only_so_many_failures_are_kept() -> None:
    activity = Activity(SystemClock())
    for number in range(MAX_FAILURES + 5):
        activity(failed_job(f"prompt {number}"))
    assert len(activity.failures) == MAX_FAILURES
    assert activity.failures[0].prompt == f"prompt {MAX_FAILURES + 4}"


def failed_job(prompt: str) -> JobEnded:
    job_id = JobId.new(NOW)
    request = GenerationRequest(model="painter", prompt=prompt, seed=1)
    missing = (MissingImage(number=1, seed=1, reason="lost_answer", message="It was lost."),)
    record = JobRecord(
        job_id=job_id,
        owner="anonymous",
        requests=(request,),
        image_ids=job_id.images(1),
        created=NOW,
        expires=NOW,
        holder="pod",
    )
    result = JobResult(job_id=job_id, attempt=1, status="failed", finished=NOW, missing=missing)
    return JobEnded(record=record, result=result)
