"""The line before a runtime: bounded, first come first served, left by those who go away."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sidecar.core.generation import Generation, Lane, Predict
from sidecar.core.generation_queue import ModelQueue, Place
from sidecar.core.service import ImageService
from sidecar.domain import ANONYMOUS, GenerationRequest, ImageId, StoredImage
from sidecar.errors import QueueFull
from tests.conftest import ERAS, Sidecar, StartSidecar, metric_becomes, raw_tool_call
from tests.fake_kserve import FakeKServe, say, succeed, succeed_when
from tests.pictures import picture
from tests.test_keys_and_records import A_RECORD

DEPTH = 'imagegen_queue_depth{model="painter"}'
IN_FLIGHT = 'imagegen_in_flight{model="painter"}'
OLDEST = 'imagegen_oldest_wait_seconds{model="painter"}'


def ended(outcome: str, model: str = "painter") -> str:
    return f'imagegen_generations_total{{model="{model}",outcome="{outcome}"}}'


async def outcomes(sidecar: Sidecar) -> dict[str, float]:
    """How generations have ended so far, without the outcomes nobody had."""
    counts = {name: await sidecar.metric(ended(name)) for name in ("completed", "failed", "rejected", "cancelled")}
    return {name: count for name, count in counts.items() if count}


async def gauges(sidecar: Sidecar) -> tuple[float, float, float]:
    return await sidecar.metric(DEPTH), await sidecar.metric(IN_FLIGHT), await sidecar.metric(OLDEST)


def start(sidecar: Sidecar, prompt: str, era: str = "auto", **arguments: Any) -> asyncio.Task[Any]:
    """A caller with a client of its own, under way."""
    return asyncio.create_task(sidecar.generate(era, prompt=prompt, result="link", **arguments))


async def start_in_line(sidecar: Sidecar, *prompts: str) -> list[asyncio.Task[Any]]:
    """Callers who join the queue one after the other."""
    depth = await sidecar.metric(DEPTH)
    tasks = []
    for number, prompt in enumerate(prompts, start=1):
        tasks.append(start(sidecar, prompt))
        await metric_becomes(sidecar, DEPTH, depth + number)
    return tasks


def prompts(kserve: FakeKServe) -> list[str]:
    return [instance["prompt"] for instance in kserve.instances]


# --- slots and order --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_a_runtime_never_works_on_more_predicts_than_it_has_slots(
    concurrency: int, start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(RUNTIME_CONCURRENCY=str(concurrency))
    release = asyncio.Event()
    kserve.script.extend(succeed_when(release) for _ in range(8))
    async with sidecar.client() as client:
        calls = [
            asyncio.create_task(client.call_tool("generate_image", {"prompt": f"{number}", "result": "link"}))
            for number in range(8)
        ]
        await kserve.seen(concurrency)
        await metric_becomes(sidecar, DEPTH, 8 - concurrency)
        assert (len(kserve.instances), await sidecar.metric(IN_FLIGHT)) == (concurrency, concurrency)
        release.set()
        results = await asyncio.gather(*calls)
    assert not any(result.is_error for result in results)
    assert (len(kserve.instances), kserve.most_in_flight) == (8, concurrency)


async def test_who_comes_first_is_served_first(sidecar: Sidecar, kserve: FakeKServe) -> None:
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    first = start(sidecar, "first")
    await kserve.seen(1)
    others = await start_in_line(sidecar, "second", "third", "fourth")
    release.set()
    await asyncio.gather(first, *others)
    assert prompts(kserve) == ["first", "second", "third", "fourth"]


async def test_a_failed_predict_gives_its_slot_to_the_next(sidecar: Sidecar, kserve: FakeKServe) -> None:
    release = asyncio.Event()

    async def fail(request: Any, instance: dict[str, Any]) -> Any:
        await release.wait()
        return await say(500, {"error": "no paint"})(request, instance)

    kserve.script.append(fail)
    first = start(sidecar, "first")
    await kserve.seen(1)
    (second,) = await start_in_line(sidecar, "second")
    release.set()
    assert ((await first).is_error, (await second).is_error) == (True, False)
    assert await outcomes(sidecar) == {"failed": 1, "completed": 1}


async def test_the_images_of_one_call_share_the_slots_and_keep_their_order(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(RUNTIME_CONCURRENCY="2", RUNTIME_PROFILE="diffusers-seed")
    first, second, rest = asyncio.Event(), asyncio.Event(), asyncio.Event()
    kserve.script.extend(succeed_when(event) for event in (rest, first, second, rest))
    four = start(sidecar, "four", num_images=4, seed=1)
    await kserve.seen(2)
    (one,) = await start_in_line(sidecar, "one")
    first.set()  # a later image is done before an earlier one
    await kserve.seen(3)
    second.set()
    await kserve.seen(4)
    assert (prompts(kserve), await sidecar.metric(DEPTH)) == (["four"] * 4, 1)
    rest.set()
    assert [image["seed"] for image in (await four).structured_content["images"]] == [1, 2, 3, 4]
    assert not (await one).is_error
    assert (prompts(kserve)[4:], kserve.most_in_flight) == (["one"], 2)
    assert (await outcomes(sidecar), await gauges(sidecar)) == ({"completed": 2}, (0, 0, 0))


async def test_two_models_have_lines_of_their_own(
    start_sidecar: StartSidecar, kserve: FakeKServe, tmp_path: Path
) -> None:
    endpoint = f"http://127.0.0.1:{kserve.server.port}/v1/models/painter"
    models = tmp_path / "models.yaml"
    models.write_text(f"models:\n- {{name: slow, endpoint: '{endpoint}'}}\n- {{name: fast, endpoint: '{endpoint}'}}\n")
    sidecar = await start_sidecar(MODELS_FILE=str(models), QUEUE_LIMIT="0")
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    held = start(sidecar, "held", model="slow")
    await kserve.seen(1)

    assert (await sidecar.made(model="fast"))["model"] == "fast"
    refused = await sidecar.generate(model="slow")

    assert refused.is_error
    assert [await sidecar.metric(f'imagegen_in_flight{{model="{name}"}}') for name in ("slow", "fast")] == [1, 0]
    assert await sidecar.metric(ended("rejected", "slow")) == 1
    release.set()
    assert not (await held).is_error


# --- the bound --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("era", ERAS)
async def test_a_full_queue_refuses_with_a_time_to_come_back(
    era: str, start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(QUEUE_LIMIT="1")
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    first = start(sidecar, "first")
    await kserve.seen(1)
    (second,) = await start_in_line(sidecar, "second")

    refused = await sidecar.generate(era, prompt="third")

    told = "The queue is full (1 waiting). Try again in about 15 seconds."
    assert (refused.is_error, refused.content[0].text) == (True, told)
    expected: dict[str, Any] = {
        "status": "failed",
        "job_id": None,
        "images": [],
        "message": told,
        "retry_after_seconds": 15,
        "ahead": None,
        "elapsed_seconds": None,
        "expected_seconds": None,
    }
    assert refused.structured_content == expected
    assert (await outcomes(sidecar), await sidecar.metric(DEPTH)) == ({"rejected": 1}, 1)
    release.set()
    assert not (await first).is_error
    assert not (await second).is_error
    assert prompts(kserve) == ["first", "second"]
    assert not (await sidecar.generate(era, prompt="fourth")).is_error


async def test_without_a_queue_only_a_free_slot_is_taken(start_sidecar: StartSidecar, kserve: FakeKServe) -> None:
    sidecar = await start_sidecar(QUEUE_LIMIT="0")
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    first = start(sidecar, "first", num_images=2)
    await kserve.seen(1)
    refused = await sidecar.generate(prompt="second")
    assert (refused.is_error, "The queue is full (0 waiting)" in refused.content[0].text) == (True, True)
    release.set()
    assert len((await first).structured_content["images"]) == 2
    assert not (await sidecar.generate(prompt="third")).is_error
    assert prompts(kserve) == ["first", "first", "third"]


@pytest.mark.parametrize("era", ERAS)
async def test_a_rush_is_served_or_refused_and_leaves_nothing_behind(
    era: str, start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(RUNTIME_CONCURRENCY="2", QUEUE_LIMIT="10")
    release = asyncio.Event()
    kserve.script.extend([succeed_when(release), succeed_when(release)])
    async with sidecar.client(era) as client:
        calls = [
            asyncio.create_task(client.call_tool("generate_image", {"prompt": f"{number}", "result": "link"}))
            for number in range(50)
        ]
        await metric_becomes(sidecar, ended("rejected"), 38)
        release.set()
        results = await asyncio.gather(*calls)
    statuses = Counter((result.is_error, result.structured_content["status"]) for result in results)
    assert statuses == {(False, "completed"): 12, (True, "failed"): 38}
    made = [result.structured_content["images"][0]["image_id"] for result in results if not result.is_error]
    assert (len(set(made)), len(kserve.instances), kserve.most_in_flight) == (12, 12, 2)
    assert await outcomes(sidecar) == {"completed": 12, "rejected": 38}
    assert await gauges(sidecar) == (0, 0, 0)
    assert await sidecar.metric('imagegen_queue_wait_seconds_count{model="painter"}') == 12


# --- callers who go away ----------------------------------------------------------------------------------------------


class Caller:
    """Someone who calls and leaves: by cancelling the SDK's client, or by closing the connection of a raw POST."""

    def __init__(self, sidecar: Sidecar, era: str, way: str) -> None:
        self._sidecar, self._era, self._way = sidecar, era, way
        self._task: asyncio.Task[Any] | None = None

    def call(self, prompt: str, **arguments: Any) -> Caller:
        arguments = {"prompt": prompt, "result": "link", **arguments}
        work = self._sidecar.generate(self._era, **arguments) if self._way == "client" else self._post(arguments)
        self._task = asyncio.create_task(work)
        return self

    async def _post(self, arguments: dict[str, Any]) -> None:
        async with self._sidecar.session.post(
            f"{self._sidecar.url}/mcp", **raw_tool_call(self._era, arguments)
        ) as response:
            await response.read()

    async def leave(self) -> None:
        assert self._task is not None
        assert not self._task.done()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@pytest.mark.parametrize("way", ["client", "connection"])
@pytest.mark.parametrize("era", ERAS)
async def test_a_caller_who_leaves_the_queue_is_not_served(
    era: str, way: str, sidecar: Sidecar, kserve: FakeKServe
) -> None:
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    first = start(sidecar, "first")
    await kserve.seen(1)
    second = Caller(sidecar, era, way).call("second", num_images=2)
    await metric_becomes(sidecar, DEPTH, 1)
    third = start(sidecar, "third")
    await metric_becomes(sidecar, DEPTH, 2)

    await second.leave()

    await metric_becomes(sidecar, DEPTH, 1)
    await metric_becomes(sidecar, ended("cancelled"), 1)
    release.set()
    assert not (await first).is_error
    assert not (await third).is_error
    assert prompts(kserve) == ["first", "third"]
    assert (await outcomes(sidecar), await gauges(sidecar)) == ({"completed": 2, "cancelled": 1}, (0, 0, 0))


@pytest.mark.parametrize("way", ["client", "connection"])
@pytest.mark.parametrize("era", ERAS)
async def test_the_image_of_a_caller_who_left_while_the_runtime_worked_is_stored(
    era: str, way: str, sidecar: Sidecar, kserve: FakeKServe
) -> None:
    data, release = picture(80, 72), asyncio.Event()
    kserve.script.append(succeed_when(release, data))
    caller = Caller(sidecar, era, way).call("first")
    await kserve.seen(1)
    await caller.leave()
    (second,) = await start_in_line(sidecar, "second")  # the slot stays taken
    assert (len(kserve.instances), await sidecar.metric(IN_FLIGHT)) == (1, 1)

    release.set()

    await metric_becomes(sidecar, ended("completed"), 2)
    assert not (await second).is_error
    assert prompts(kserve) == ["first", "second"]
    assert kserve.most_in_flight == 1
    (path,) = [path for path in sidecar.store.glob("images/*/*.png") if path.read_bytes() == data]
    response, body = await sidecar.get(f"/images/{path.stem}")
    assert (response.status, body) == (200, data)
    assert await gauges(sidecar) == (0, 0, 0)


async def test_a_caller_who_leaves_between_two_images_gets_the_one_that_was_begun(
    sidecar: Sidecar, kserve: FakeKServe
) -> None:
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    caller = Caller(sidecar, "auto", "connection").call("two", num_images=3)
    await kserve.seen(1)
    next_one = start(sidecar, "next")
    await metric_becomes(sidecar, DEPTH, 1)
    await caller.leave()
    # the connection's end is noticed once it counts: the two images not begun are cancelled then
    await metric_becomes(sidecar, 'imagegen_http_requests_total{method="POST",route="/mcp",status="499"}', 1)
    release.set()
    assert not (await next_one).is_error
    await kserve.idle()
    assert prompts(kserve) == ["two", "next"]
    assert (await outcomes(sidecar), await gauges(sidecar)) == ({"completed": 2}, (0, 0, 0))


async def test_everyone_leaving_at_once_leaves_an_empty_queue(start_sidecar: StartSidecar, kserve: FakeKServe) -> None:
    sidecar = await start_sidecar(QUEUE_LIMIT="20")
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    callers = [Caller(sidecar, "auto", "connection").call(f"{number}") for number in range(12)]
    await kserve.seen(1)
    await metric_becomes(sidecar, DEPTH, 11)
    await asyncio.gather(*(caller.leave() for caller in callers))
    await metric_becomes(sidecar, ended("cancelled"), 11)
    assert await sidecar.metric(DEPTH) == 0
    release.set()
    await metric_becomes(sidecar, ended("completed"), 1)
    assert await gauges(sidecar) == (0, 0, 0)
    assert not (await sidecar.generate(prompt="after them")).is_error
    assert len(kserve.instances) == 2


# --- a runtime that has fallen silent ---------------------------------------------------------------------------------


async def test_who_waits_behind_a_silent_runtime_is_told_and_leaves_the_queue(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(RUNTIME_TIMEOUT="300ms")
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))

    first, second = await asyncio.gather(start(sidecar, "first"), start(sidecar, "second"))

    assert (first.is_error, second.is_error) == (True, True)
    told = sorted([first.content[0].text, second.content[0].text], key=lambda text: "was not begun" in text)
    assert "It may still be working" in told[0]
    assert "this image was not begun" in told[1]
    assert (await sidecar.metric(DEPTH), await sidecar.metric(IN_FLIGHT)) == (0, 1)
    release.set()
    await metric_becomes(sidecar, IN_FLIGHT, 0)
    assert not (await sidecar.generate(prompt="third")).is_error
    assert len(kserve.instances) == 2
    assert await outcomes(sidecar) == {"failed": 2, "completed": 1}


async def test_a_long_wait_in_a_queue_that_moves_is_no_time_out(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(RUNTIME_TIMEOUT="1s")

    async def take_a_while(request: Any, instance: dict[str, Any]) -> Any:
        await asyncio.sleep(0.25)  # the runtime's work, not a wait for the sidecar
        return await succeed()(request, instance)

    kserve.script.extend([take_a_while] * 5)
    results = await asyncio.gather(*(start(sidecar, f"{number}") for number in range(5)))
    assert not any(result.is_error for result in results)
    assert await outcomes(sidecar) == {"completed": 5}


async def test_a_call_that_gave_one_image_before_the_time_out_counts_as_its_caller_sees_it(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(RUNTIME_TIMEOUT="300ms")
    release = asyncio.Event()
    kserve.script.extend([succeed(), succeed_when(release)])
    result = await sidecar.generate(num_images=3, seed=5, result="link")
    structured = result.structured_content
    assert (structured["status"], [image["seed"] for image in structured["images"]]) == ("completed", [5])
    assert "Image 2 of 3 (seed 6) is missing: The model's runtime has not answered" in structured["message"]
    assert "Image 3 of 3 (seed 7) is missing" in structured["message"]
    release.set()
    await metric_becomes(sidecar, IN_FLIGHT, 0)
    assert len(kserve.instances) == 2
    assert await outcomes(sidecar) == {"completed": 1}


AN_IMAGE = StoredImage(record=A_RECORD)


class Begun:
    """Images that were given a slot each at its own time, waited for on a clock that is held; the time-out is 300 s."""

    def __init__(self, lane: Lane, *started: float) -> None:
        queue, self.clock = queue_of(concurrency=len(started), limit=0)
        place, turns = join(queue, len(started))
        self.images = [asyncio.get_running_loop().create_future() for _ in started]
        predicts = [Predict(ImageId.new(self.clock.now()), request(), turn, at_once) for turn in turns]
        for predict, moment, image in zip(predicts, started, self.images, strict=True):
            predict.started, predict.task = moment, asyncio.create_task(self._come(image))
        lane = replace(lane, settings=replace(lane.settings, timeout=300), queue=queue)
        self.generation = Generation(lane, place, predicts, self.clock, lambda event: None)

    async def _come(self, image: asyncio.Future[StoredImage]) -> StoredImage:
        return await image

    async def waited(self) -> bool:
        async with asyncio.timeout(30):
            return await self.generation.wait(1000)


async def test_an_image_that_is_overdue_does_not_end_the_wait_for_one_that_was_begun_later(sidecar: Sidecar) -> None:
    begun = Begun(sidecar.service.lane(None), 100, 389)
    begun.clock.seconds = 400
    assert await begun.generation.wait(0) is False
    begun.images[1].set_result(AN_IMAGE)
    assert await begun.waited()
    assert (begun.generation.images, [missing.number for missing in begun.generation.missing]) == ((AN_IMAGE,), [1])


async def test_the_wait_ends_with_the_last_image_when_the_others_are_overdue_by_then(sidecar: Sidecar) -> None:
    begun = Begun(sidecar.service.lane(None), 100, 389)
    begun.clock.seconds = 390
    waiting = asyncio.create_task(begun.waited())
    await asyncio.sleep(0)  # one turn of the loop: it waits
    begun.clock.seconds = 401
    begun.images[1].set_result(AN_IMAGE)
    assert await waiting
    (missing,) = begun.generation.missing
    assert (missing.number, missing.reason) == (1, "timed_out")


async def test_an_overdue_image_that_comes_while_others_are_waited_for_is_given_too(sidecar: Sidecar) -> None:
    begun = Begun(sidecar.service.lane(None), 100, 389)
    begun.clock.seconds = 410
    assert await begun.generation.wait(0) is False
    for image in begun.images:
        image.set_result(AN_IMAGE)
    assert await begun.waited()
    assert (len(begun.generation.images), begun.generation.missing) == (2, ())


async def test_the_wait_ends_when_every_image_is_overdue(sidecar: Sidecar) -> None:
    begun = Begun(sidecar.service.lane(None), 100, 389)
    begun.clock.seconds = 689
    assert await begun.waited()
    assert [missing.reason for missing in begun.generation.missing] == ["timed_out", "timed_out"]


# --- what is told of the queue ----------------------------------------------------------------------------------------


async def test_the_gauges_show_the_line_while_it_stands(sidecar: Sidecar, kserve: FakeKServe) -> None:
    assert await gauges(sidecar) == (0, 0, 0)
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    first = start(sidecar, "first")
    await kserve.seen(1)
    assert await gauges(sidecar) == (0, 1, 0)
    others = await start_in_line(sidecar, "second", "third")
    waited = await sidecar.metric(OLDEST)
    assert waited > 0
    assert await sidecar.metric(OLDEST) > waited
    assert await sidecar.metric(IN_FLIGHT) == 1
    release.set()
    await asyncio.gather(first, *others)
    assert await gauges(sidecar) == (0, 0, 0)
    assert await sidecar.metric('imagegen_queue_wait_seconds_count{model="painter"}') == 3


# --- cancelled in the moment a slot comes -----------------------------------------------------------------------------


def request(prompt: str = "a cat") -> GenerationRequest:
    return GenerationRequest(model="painter", prompt=prompt, seed=1)


async def at_once() -> None:
    """The admission of a generation that nobody else can have taken."""


def submit(service: ImageService, *requests: GenerationRequest) -> Generation:
    ids = [ImageId.new(datetime.now(UTC)) for _ in requests]
    return service.submit(requests, ANONYMOUS, ids, at_once)


async def works_again(service: ImageService, kserve: FakeKServe) -> None:
    """Every slot is free and the next image is made."""
    queue = service.lane(None).queue
    assert (queue.in_flight, queue.waiting) == (0, 0)
    generation = submit(service, request("afterwards"))
    async with asyncio.timeout(30):
        while not await generation.wait(1):
            pass
    assert len(generation.images) == 1
    assert prompts(kserve) == ["afterwards"]


async def test_a_slot_that_comes_in_the_moment_of_leaving_is_given_back(sidecar: Sidecar, kserve: FakeKServe) -> None:
    service = sidecar.service
    queue = service.lane(None).queue
    queue.join(1, retry_after=1)  # the only slot is ours
    generation = submit(service, request())
    await asyncio.sleep(0)  # one turn of the loop: its task now waits in line
    queue.release()
    generation.abandon()
    await service.drained()
    await works_again(service, kserve)
    assert await outcomes(sidecar) == {"cancelled": 1, "completed": 1}


async def test_a_call_abandoned_before_its_task_has_run_gives_its_slot_back(
    sidecar: Sidecar, kserve: FakeKServe
) -> None:
    service = sidecar.service
    submit(service, request()).abandon()
    await service.drained()
    await works_again(service, kserve)
    assert await outcomes(sidecar) == {"cancelled": 1, "completed": 1}


async def test_leaving_twice_is_leaving_once(sidecar: Sidecar, kserve: FakeKServe) -> None:
    service = sidecar.service
    queue = service.lane(None).queue
    queue.join(1, retry_after=1)
    generation = submit(service, request(), request())
    await asyncio.sleep(0)
    generation.abandon()
    generation.abandon()
    await service.drained()
    assert (queue.in_flight, queue.waiting) == (1, 0)
    queue.release()
    await works_again(service, kserve)
    assert await outcomes(sidecar) == {"cancelled": 1, "completed": 1}


# --- the queue alone, on a clock that is held -------------------------------------------------------------------------


class HeldClock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)

    def monotonic(self) -> float:
        return self.seconds

    def since_boot(self) -> float:
        return self.monotonic()

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds


def queue_of(concurrency: int, limit: int) -> tuple[ModelQueue, HeldClock]:
    clock = HeldClock()
    return ModelQueue(concurrency=concurrency, limit=limit, clock=clock), clock


def join(queue: ModelQueue, predicts: int = 1) -> tuple[Place, list[asyncio.Future[None]]]:
    place = queue.join(predicts, retry_after=7)
    return place, [place.next_turn() for _ in range(predicts)]


async def test_turns_come_in_order_one_generation_after_the_other() -> None:
    queue, _ = queue_of(concurrency=2, limit=2)
    (first, first_turns), (second, second_turns) = join(queue, 3), join(queue, 2)
    turns = [*first_turns, *second_turns]
    came = []
    for _ in turns:
        came.append([turn.done() for turn in turns].count(True))
        assert [turn.done() for turn in turns] == sorted((turn.done() for turn in turns), reverse=True)
        queue.release()
    assert came == [2, 3, 4, 5, 5]
    assert (queue.waiting, first.ahead, second.ahead) == (0, 0, 0)


async def test_ahead_counts_the_images_at_the_runtime_and_before_it_in_line() -> None:
    queue, _ = queue_of(concurrency=1, limit=5)
    places = [join(queue, predicts)[0] for predicts in (3, 2, 1)]
    assert [place.ahead for place in places] == [0, 3, 5]
    queue.release()
    assert [place.ahead for place in places] == [0, 2, 4]
    places[1].leave()
    assert [place.ahead for place in places] == [0, 0, 2]


async def test_only_generations_not_begun_count_against_the_limit() -> None:
    queue, _ = queue_of(concurrency=1, limit=1)
    join(queue, 4)  # begun: it stands in line for three more images but does not wait
    assert queue.waiting == 0
    waiting, _ = join(queue)
    with pytest.raises(QueueFull) as refused:
        join(queue)
    assert (refused.value.retry_after, queue.waiting, queue.in_flight) == (7, 1, 1)
    waiting.leave()
    join(queue)
    assert queue.waiting == 1


async def test_the_oldest_wait_is_that_of_the_first_in_line() -> None:
    queue, clock = queue_of(concurrency=1, limit=5)
    join(queue)
    assert queue.oldest_wait == 0
    first, _ = join(queue)
    clock.seconds += 2
    join(queue)
    clock.seconds += 3
    assert queue.oldest_wait == 5
    first.leave()
    assert queue.oldest_wait == 3
    queue.release()
    assert queue.oldest_wait == 0


async def test_a_turn_cancelled_in_line_is_passed_over() -> None:
    queue, _ = queue_of(concurrency=1, limit=5)
    join(queue)
    (_, (cancelled,)), (_, (following,)) = join(queue), join(queue)
    cancelled.cancel()
    queue.release()
    assert (following.done(), queue.in_flight, queue.waiting) == (True, 1, 0)


async def test_a_place_left_after_its_turn_came_keeps_the_slot_until_it_is_given_back() -> None:
    queue, _ = queue_of(concurrency=1, limit=5)
    place, _ = join(queue, 2)
    _, (following,) = join(queue)
    place.leave()  # its first image is at the runtime, its second will not be asked for
    assert (following.done(), queue.in_flight) == (False, 1)
    queue.release()
    assert (following.done(), queue.in_flight) == (True, 1)
    place.leave()
    assert queue.in_flight == 1


async def test_a_movement_is_a_slot_given_or_given_back() -> None:
    queue, clock = queue_of(concurrency=1, limit=5)
    clock.seconds = 200
    join(queue)
    assert (queue.last_movement, queue.full) == (200, True)
    clock.seconds = 300
    join(queue)[0].leave()
    assert queue.last_movement == 200
    queue.release()
    assert (queue.last_movement, queue.full) == (300, False)


async def test_a_line_is_stalled_since_its_last_movement_while_every_slot_is_taken() -> None:
    queue, clock = queue_of(concurrency=2, limit=5)
    clock.seconds = 100
    join(queue)
    assert queue.stalled == 0
    clock.seconds = 200
    join(queue, predicts=2)
    clock.seconds = 260
    assert (queue.oldest_wait, queue.stalled) == (0, 60)
    join(queue)
    clock.seconds = 300
    assert (queue.oldest_wait, queue.stalled) == (40, 100)
    queue.release()
    assert queue.stalled == 0
