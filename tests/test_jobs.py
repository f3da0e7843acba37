"""Generations outlive their call, their connection and their pod; no acknowledged one vanishes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sidecar.domain import MOST_IMAGES, ImageId, JobId
from tests.conftest import ERAS, Sidecar, StartSidecar, metric_becomes
from tests.fake_kserve import FakeKServe, say, succeed, succeed_when

DEPTH = 'imagegen_queue_depth{model="painter"}'
BRIEF = {"RESPONSE_BUDGET": "0.2s", "JOB_LEASE_INTERVAL": "0.1s"}


async def call(sidecar: Sidecar, tool: str, era: str = "auto", **arguments: Any) -> dict[str, Any]:
    """The structured content of one call by a client of its own."""
    async with sidecar.client(era) as client:
        result = await client.call_tool(tool, arguments)
    found: dict[str, Any] = result.structured_content
    return found


async def start(sidecar: Sidecar, prompt: str = "a cat", **arguments: Any) -> dict[str, Any]:
    """A generation whose call has ended before its image came."""
    return await call(sidecar, "generate_image", prompt=prompt, **arguments)


async def ended(sidecar: Sidecar, job_id: str) -> dict[str, Any]:
    """Poll as a model would until the generation has ended."""
    async with asyncio.timeout(20):
        while (found := await call(sidecar, "get_generation", job_id=job_id))["status"] in ("queued", "working"):
            pass
    return found


# --- a call that is answered at once ---------------------------------------------------------------------------------


async def test_what_came_at_once_is_found_by_its_job_id_by_another_process(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar()
    done = await start(sidecar, num_images=3)
    assert sidecar.stored_jobs() == []  # its images are all there is to keep
    another = await start_sidecar()
    for tool in ("get_generation", "cancel_generation"):
        found = await call(another, tool, job_id=done["job_id"])
        assert (found["status"], found["job_id"]) == ("completed", done["job_id"])
        assert [image["image_id"] for image in found["images"]] == [image["image_id"] for image in done["images"]]


async def test_a_deleted_image_of_what_came_at_once_is_told(start_sidecar: StartSidecar, kserve: FakeKServe) -> None:
    sidecar = await start_sidecar()
    done = await start(sidecar, num_images=2)
    await call(sidecar, "delete_image", image_id=done["images"][0]["image_id"])
    found = await call(sidecar, "get_generation", job_id=done["job_id"])
    assert [image["image_id"] for image in found["images"]] == [done["images"][1]["image_id"]]
    assert "1 of 2 images have expired or been deleted" in found["message"]
    await call(sidecar, "delete_image", image_id=done["images"][1]["image_id"])
    assert "may have expired" in (await call(sidecar, "get_generation", job_id=done["job_id"]))["message"]


async def test_what_failed_at_once_is_told_at_once_and_leaves_no_record(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    """Its caller has heard everything: such records filled the volume (issue 13)."""
    sidecar = await start_sidecar()
    kserve.script.append(say(500, "out of memory"))
    failed = await start(sidecar, num_images=1)
    assert (failed["status"], failed["job_id"], "out of memory" in failed["message"]) == ("failed", None, True)
    assert sidecar.stored_jobs() == []


async def test_what_came_in_part_is_found_by_its_job_id_with_what_is_missing(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar()
    kserve.script += [succeed(), say(500, "out of memory")]
    done = await start(sidecar, num_images=2)
    found = await call(await start_sidecar(), "get_generation", job_id=done["job_id"])
    assert (found["status"], len(found["images"]), found["message"]) == ("completed", 1, done["message"])
    assert "out of memory" in found["message"]


async def test_records_of_failed_calls_fill_a_share_of_the_room_and_images_are_made_all_the_same(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    """Calls with a key keep their record for a week; refused for their sake are only calls that need a record."""
    bound, calls = 800_000, 14
    sidecar = await start_sidecar(STORAGE_MAX_BYTES=str(bound), CLEANUP_INTERVAL="100ms")
    await sidecar.until_ready()
    kserve.script += [say(400, "no")] * 200
    prompt = "😀" * 2000
    asked = {"negative_prompt": prompt, "num_images": 4, "width": 64, "height": 64}
    outcomes = [await start(sidecar, prompt, **asked, idempotency_key=f"{number}") for number in range(calls)]
    refused = [found for found in outcomes if "no room for the record" in found["message"]]
    assert 0 < len(refused) < calls
    assert {found["job_id"] for found in refused} == {None}
    kserve.script.clear()
    size = sum((sidecar.store / "jobs" / name).stat().st_size for name in sidecar.stored_jobs())
    assert size <= bound / 4 + 2000  # how the last one ended
    await metric_becomes(sidecar, "imagegen_jobs_bytes", size)
    await metric_becomes(sidecar, 'imagegen_jobs{state="failed"}', calls - len(refused))
    assert (await start(sidecar, width=64, height=64))["status"] == "completed"
    assert await sidecar.metric('imagegen_storage_bytes{backend="file"}') >= size
    for key in ("one more, where an inventory counted twice what ended meanwhile", "new"):
        kserve.script.append(say(400, "no"))
        refused_again = await start(sidecar, prompt, **asked, idempotency_key=key)
    assert (refused_again["status"], "without an idempotency_key" in refused_again["message"]) == ("failed", True)
    assert (await start(sidecar, prompt, **asked, idempotency_key="0"))["message"] == outcomes[0]["message"]


async def test_what_the_runtime_has_begun_is_recorded_in_a_store_that_has_become_full(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(STORAGE_MAX_BYTES="200000", CLEANUP_INTERVAL="100ms", **BRIEF)
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    begun = asyncio.create_task(start(sidecar, "first", width=64, height=64))
    await kserve.seen(1)
    filler = sidecar.store / "jobs" / "done" / "00000" / f"{'0' * 43}.json"
    filler.parent.mkdir(parents=True)
    filler.write_bytes(b" " * 199_000)
    await metric_becomes(sidecar, 'imagegen_jobs{state="completed"}', 1)
    handle = await begun
    assert handle["status"] == "working"
    release.set()
    assert (await ended(sidecar, handle["job_id"]))["status"] == "completed"
    assert [name for name in sidecar.stored_jobs() if handle["job_id"] in name] != []
    refused = await start(sidecar, "second", width=64, height=64)
    assert (refused["status"], "The image store is full" in refused["message"]) == ("failed", True)


def test_an_image_id_does_not_lead_back_to_its_generation() -> None:
    job_id = JobId.new(datetime.now(UTC))
    images = {job_id.image(number).text for number in range(1, MOST_IMAGES + 1)}
    assert len(images) == MOST_IMAGES
    assert all(ImageId.parse(text).created == job_id.created for text in images)
    assert job_id.text not in images


# --- a call that takes too long ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("era", ERAS)
async def test_a_call_that_takes_too_long_gives_a_handle_and_the_image_comes_by_it(
    era: str, start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(**BRIEF)
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    handle = await call(sidecar, "generate_image", era, prompt="a cat")
    assert (handle["status"], handle["images"]) == ("working", [])
    assert "call get_generation with this job_id" in handle["message"]
    release.set()
    done = await ended(sidecar, handle["job_id"])
    assert (done["status"], done["job_id"], len(done["images"])) == ("completed", handle["job_id"], 1)
    response, _ = await sidecar.get(done["images"][0]["url"])
    assert (response.status, len(kserve.instances)) == (200, 1)


async def test_who_waits_in_line_is_told_how_many_are_ahead(start_sidecar: StartSidecar, kserve: FakeKServe) -> None:
    sidecar = await start_sidecar(**BRIEF)
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    await start(sidecar, "first")
    second = await start(sidecar, "second")
    assert (second["status"], "(queued, 1 ahead)" in second["message"]) == ("queued", True)
    release.set()
    assert (await ended(sidecar, second["job_id"]))["status"] == "completed"


async def test_a_handle_alone_is_text_that_names_the_job(start_sidecar: StartSidecar, kserve: FakeKServe) -> None:
    """Hosts that show text only must not lose the id."""
    sidecar = await start_sidecar(**BRIEF)
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    result = await sidecar.generate()
    assert result.content[0].text.endswith(f"job_id: {result.structured_content['job_id']}")
    assert (len(result.content), result.is_error) == (1, False)
    release.set()


async def test_a_failure_after_the_handle_is_told_by_it(start_sidecar: StartSidecar, kserve: FakeKServe) -> None:
    sidecar = await start_sidecar(**BRIEF)
    release = asyncio.Event()

    async def fail_later(request: Any, instance: dict[str, Any]) -> Any:
        await release.wait()
        return await say(400, {"error": "Prediction failed: CUDA out of memory"})(request, instance)

    kserve.script.append(fail_later)
    handle = await start(sidecar)
    release.set()
    done = await ended(sidecar, handle["job_id"])
    assert (done["status"], done["images"], "ran out of memory" in done["message"]) == ("failed", [], True)


async def test_a_poll_of_no_seconds_only_looks(start_sidecar: StartSidecar, kserve: FakeKServe) -> None:
    sidecar = await start_sidecar(RESPONSE_BUDGET="30s")
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    generating = asyncio.create_task(start(sidecar, idempotency_key="k"))
    await kserve.seen(1)
    (job,) = [JobId(name.split(".")[0]) for name in await recorded(sidecar)]
    found = await call(sidecar, "get_generation", job_id=str(job), wait_seconds=0)
    assert (found["status"], generating.done()) == ("working", False)
    release.set()
    await generating


async def recorded(sidecar: Sidecar) -> list[str]:
    """The open jobs' files, once there is one."""
    async with asyncio.timeout(30):
        while not (found := [name for name in sidecar.stored_jobs() if name.endswith(".json")]):
            await asyncio.sleep(0.01)
    return [name.removeprefix("open/") for name in found if name.startswith("open/")]


async def test_a_thousand_who_poll_at_once_are_all_answered(start_sidecar: StartSidecar, kserve: FakeKServe) -> None:
    owner = await start_sidecar(**BRIEF)
    other = await start_sidecar(RESPONSE_BUDGET="20s")
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    job_id = JobId((await start(owner))["job_id"])
    jobs = other.app[_jobs_key()]
    polls = [asyncio.create_task(jobs.wait(job_id, 20)) for _ in range(1000)]
    release.set()
    views = await asyncio.gather(*polls)
    assert Counter(view.status for view in views) == {"completed": 1000}


def _jobs_key() -> Any:
    from sidecar.edge import keys

    return keys.JOBS


# --- leaving and cancelling -------------------------------------------------------------------------------------------


async def test_a_handle_keeps_a_queued_generation_when_its_caller_leaves(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(**BRIEF)
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    await start(sidecar, "first")
    second = await start(sidecar, "second")
    await sidecar.session.close()  # nothing of the caller is left
    release.set()
    assert (await ended(sidecar, second["job_id"]))["status"] == "completed"


async def test_a_caller_who_leaves_with_a_key_keeps_the_place(start_sidecar: StartSidecar, kserve: FakeKServe) -> None:
    sidecar = await start_sidecar()
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    first = asyncio.create_task(start(sidecar, "first"))
    await kserve.seen(1)
    leaving = asyncio.create_task(start(sidecar, "second", idempotency_key="mine"))
    await metric_becomes(sidecar, DEPTH, 1)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    release.set()
    await first
    again = await start(sidecar, "second", idempotency_key="mine")
    assert (again["status"], [instance["prompt"] for instance in kserve.instances]) == (
        "completed",
        ["first", "second"],
    )


async def test_a_queued_generation_is_cancelled_and_never_begun(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(**BRIEF)
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    first = await start(sidecar, "first")
    second = await start(sidecar, "second")
    cancelled = await call(sidecar, "cancel_generation", job_id=second["job_id"])
    assert (cancelled["status"], cancelled["images"]) == ("cancelled", [])
    assert await call(sidecar, "cancel_generation", job_id=second["job_id"]) == cancelled
    release.set()
    await ended(sidecar, first["job_id"])
    assert [instance["prompt"] for instance in kserve.instances] == ["first"]
    assert (await call(sidecar, "get_generation", job_id=second["job_id"]))["status"] == "cancelled"


async def test_a_running_generation_cannot_be_interrupted_and_that_is_said(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(**BRIEF)
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    handle = await start(sidecar)
    told = await call(sidecar, "cancel_generation", job_id=handle["job_id"])
    assert (told["status"], "cannot be interrupted" in told["message"]) == ("working", True)
    release.set()
    assert (await ended(sidecar, handle["job_id"]))["status"] == "completed"


# --- idempotency ------------------------------------------------------------------------------------------------------


async def test_the_same_key_with_the_same_arguments_is_the_same_job(sidecar: Sidecar, kserve: FakeKServe) -> None:
    first = await start(sidecar, idempotency_key="k", width=64, result="link")
    second = await start(sidecar, idempotency_key="k", width=64, result="thumbnail")
    assert (first["job_id"], first["images"]) == (second["job_id"], second["images"])
    assert len(kserve.instances) == 1


async def test_the_same_key_with_other_arguments_is_an_error(sidecar: Sidecar, kserve: FakeKServe) -> None:
    await start(sidecar, idempotency_key="k")
    other = await start(sidecar, "a dog", idempotency_key="k")
    assert (other["status"], other["message"].startswith("idempotency_key: it was used before")) == ("failed", True)
    assert len(kserve.instances) == 1


async def test_a_key_whose_images_are_gone_says_so(sidecar: Sidecar, kserve: FakeKServe) -> None:
    first = await start(sidecar, idempotency_key="k")
    await call(sidecar, "delete_image", image_id=first["images"][0]["image_id"])
    again = await start(sidecar, idempotency_key="k")
    assert (again["status"], again["images"]) == ("completed", [])
    assert "expired or been deleted" in again["message"]
    assert len(kserve.instances) == 1


async def test_a_refused_call_leaves_its_key_free(start_sidecar: StartSidecar, kserve: FakeKServe) -> None:
    sidecar = await start_sidecar(QUEUE_LIMIT="0", **BRIEF)
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    first = await start(sidecar, "first")
    assert (await start(sidecar, "second", idempotency_key="k"))["status"] == "failed"
    release.set()
    await ended(sidecar, first["job_id"])
    assert (await start(sidecar, "second", idempotency_key="k"))["status"] in ("working", "completed")


async def test_twenty_racing_calls_with_one_key_on_two_replicas_paint_once(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    replicas = [await start_sidecar(), await start_sidecar()]
    calls = [start(replicas[number % 2], idempotency_key="race", result="link") for number in range(20)]
    results = await asyncio.gather(*calls)
    assert {result["status"] for result in results} == {"completed"}
    assert len({result["job_id"] for result in results}) == 1
    assert len({image["image_id"] for result in results for image in result["images"]}) == 1
    assert len(kserve.instances) == 1


# --- other pods and restarts ------------------------------------------------------------------------------------------


async def test_two_replicas_share_jobs_and_images(start_sidecar: StartSidecar, kserve: FakeKServe) -> None:
    one, other = await start_sidecar(**BRIEF), await start_sidecar(**BRIEF)
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    handle = await start(one)
    assert (await call(other, "get_generation", job_id=handle["job_id"], wait_seconds=0))["status"] == "working"
    release.set()
    done = await ended(other, handle["job_id"])
    (image,) = done["images"]
    assert (image["url"].startswith(other.url), (await other.get(image["url"]))[0].status) == (True, 200)
    listed = await call(other, "list_generated_images")
    assert [entry["image_id"] for entry in listed["images"]] == [image["image_id"]]
    assert (await call(other, "delete_image", image_id=image["image_id"]))["deleted"] is True
    async with asyncio.timeout(30):  # the other replica believes its cache for a second
        while (await one.get(f"/images/{image['image_id']}"))[0].status != 404:
            await asyncio.sleep(0.05)


async def test_a_queued_generation_is_cancelled_from_another_replica(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    one, other = await start_sidecar(**BRIEF), await start_sidecar(**BRIEF)
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    first, second = await start(one, "first"), await start(one, "second")
    assert (await call(other, "cancel_generation", job_id=second["job_id"]))["status"] == "cancelled"
    release.set()
    await ended(one, first["job_id"])
    await metric_becomes(one, DEPTH, 0)
    assert (await call(one, "get_generation", job_id=second["job_id"]))["status"] == "cancelled"
    assert [instance["prompt"] for instance in kserve.instances] == ["first"]


class Process:
    """A sidecar in a process of its own, so that it can be killed."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process = process
        self.url = url

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)


async def serve(kserve: FakeKServe, store: Path, **settings: str) -> Process:
    environment = {
        **os.environ,
        "LISTEN_PORT": "0",
        "KSERVE_ENDPOINT": f"http://127.0.0.1:{kserve.server.port}/v1/models/painter",
        "STORAGE_PATH": str(store),
        **BRIEF,
        **settings,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sidecar", "serve", env=environment, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    async with asyncio.timeout(30):
        while b'"listening"' not in (line := await process.stderr.readline()):
            assert line, "the sidecar has ended"
    return Process(process, line.decode().split('"url": "')[1].split('"')[0])


async def test_after_a_kill_every_job_is_accounted_for(
    start_sidecar: StartSidecar, kserve: FakeKServe, tmp_path: Path
) -> None:
    """One was at the runtime, two waited, one of them with a key; the pod is killed and another starts on the store."""
    store = tmp_path / "images"
    doomed = await serve(kserve, store)
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    sidecar = await start_sidecar(JOB_LEASE_INTERVAL="1h")  # only its client is used, on the doomed one's address
    url, sidecar.url = sidecar.url, doomed.url
    running = await start(sidecar, "running")
    waiting = [await start(sidecar, "waiting"), await start(sidecar, "keyed", idempotency_key="k")]
    assert [running["status"], *(job["status"] for job in waiting)] == ["working", "queued", "queued"]
    doomed.kill()
    await doomed.process.wait()
    release.set()
    heir = await start_sidecar(**BRIEF)
    sidecar.url = url
    interrupted = await ended(heir, running["job_id"])
    assert (interrupted["status"], "ended before the image was stored" in interrupted["message"]) == ("failed", True)
    done = [await ended(heir, job["job_id"]) for job in waiting]
    assert [job["status"] for job in done] == ["completed", "completed"]
    assert [instance["prompt"] for instance in kserve.instances] == ["running", "waiting", "keyed"]
    again = await start(heir, "keyed", idempotency_key="k")
    assert (again["job_id"], again["images"][0]["image_id"]) == (done[1]["job_id"], done[1]["images"][0]["image_id"])


async def test_several_heirs_take_over_each_job_once(
    start_sidecar: StartSidecar, kserve: FakeKServe, tmp_path: Path
) -> None:
    doomed = await serve(kserve, tmp_path / "images")
    never = asyncio.Event()
    kserve.script.append(succeed_when(never))
    heirs = [await start_sidecar(**BRIEF) for _ in range(3)]
    url, heirs[0].url = heirs[0].url, doomed.url
    await start(heirs[0], "running")
    waiting = [await start(heirs[0], f"waiting {number}") for number in range(4)]
    doomed.kill()
    await doomed.process.wait()
    heirs[0].url = url
    done = [await ended(heirs[number % 3], job["job_id"]) for number, job in enumerate(waiting)]
    assert [job["status"] for job in done] == ["completed"] * 4
    assert Counter(instance["prompt"] for instance in kserve.instances) == {
        "running": 1, **{f"waiting {number}": 1 for number in range(4)}
    }  # fmt: skip
    never.set()


async def test_a_pod_that_comes_back_late_changes_nothing_that_was_told(
    start_sidecar: StartSidecar, kserve: FakeKServe, tmp_path: Path
) -> None:
    """Stopped while its generation runs, and long enough for another pod to give it up."""
    frozen = await serve(kserve, tmp_path / "images")
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    other = await start_sidecar(**BRIEF)
    url, other.url = other.url, frozen.url
    handle = await start(other)
    other.url = url
    frozen.kill(signal.SIGSTOP)
    interrupted = await ended(other, handle["job_id"])
    assert interrupted["status"] == "failed"
    frozen.kill(signal.SIGCONT)
    release.set()
    await kserve.idle()
    async with asyncio.timeout(30):  # its image is not lost all the same
        while (found := await call(other, "get_generation", job_id=handle["job_id"]))["status"] != "completed":
            pass
    assert len(found["images"]) == 1
    frozen.kill(signal.SIGTERM)
    await frozen.process.wait()
    assert len(kserve.instances) == 1


async def test_what_waits_with_a_handle_goes_on_after_an_orderly_restart(
    start_sidecar: StartSidecar, kserve: FakeKServe, tmp_path: Path
) -> None:
    """SIGTERM with a grace too short for the line: the next process takes the job at once, lease or not."""
    leaving = await serve(kserve, tmp_path / "images", SHUTDOWN_GRACE="0", JOB_LEASE_INTERVAL="1h")
    never = asyncio.Event()
    kserve.script.append(succeed_when(never))
    heir = await start_sidecar(JOB_LEASE_INTERVAL="1h", RESPONSE_BUDGET="0.2s")
    url, heir.url = heir.url, leaving.url
    await start(heir, "running")
    waiting = await start(heir, "waiting")
    leaving.kill(signal.SIGTERM)
    await leaving.process.wait()
    heir.url = url
    await heir.app[_jobs_key()].takeover.look()
    assert (await ended(heir, waiting["job_id"]))["status"] == "completed"
    never.set()


# --- found by a second look -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "k"])
async def test_several_images_of_one_job_begin_together_where_the_runtime_has_slots(
    key: str | None, start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    """Their job begins once for all of them, also when they have waited in line."""
    sidecar = await start_sidecar(RUNTIME_CONCURRENCY="2", RESPONSE_BUDGET="30s")
    release = asyncio.Event()
    kserve.script.extend([succeed_when(release), succeed_when(release)])
    ahead = asyncio.create_task(start(sidecar, "ahead", num_images=2))
    await kserve.seen(2)
    given = {} if key is None else {"idempotency_key": key}
    behind = asyncio.create_task(start(sidecar, "behind", num_images=2, **given))
    await metric_becomes(sidecar, DEPTH, 1)
    release.set()
    assert [(done["status"], len(done["images"])) for done in (await ahead, await behind)] == [("completed", 2)] * 2
    assert not [name for name in sidecar.stored_jobs() if name.startswith("open/")]


async def test_a_job_cancelled_elsewhere_leaves_the_line_of_its_holder(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    one, other = await start_sidecar(**BRIEF), await start_sidecar(**BRIEF)
    never = asyncio.Event()
    kserve.script.append(succeed_when(never))
    await start(one, "first")
    second = await start(one, "second")
    await call(other, "cancel_generation", job_id=second["job_id"])
    assert (await call(one, "get_generation", job_id=second["job_id"]))["status"] == "cancelled"
    assert (await call(one, "cancel_generation", job_id=second["job_id"]))["status"] == "cancelled"
    await metric_becomes(one, DEPTH, 0)
    never.set()


async def test_who_waits_while_the_server_stops_is_answered_and_the_rest_is_left_to_the_next(
    kserve: FakeKServe, start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    leaving = await serve(kserve, tmp_path / "images", SHUTDOWN_GRACE="1s", RESPONSE_BUDGET="30s")
    never = asyncio.Event()
    kserve.script.append(succeed_when(never))
    sidecar = await start_sidecar(JOB_LEASE_INTERVAL="1h")
    sidecar.url = leaving.url
    running = asyncio.create_task(start(sidecar, "running"))
    await kserve.seen(1)
    waiting = asyncio.create_task(start(sidecar, "waiting", idempotency_key="k"))
    await metric_becomes(sidecar, DEPTH, 1)
    leaving.kill(signal.SIGTERM)
    async with asyncio.timeout(20):
        assert ((await running)["status"], (await waiting)["status"]) == ("failed", "queued")
        assert await leaving.process.wait() == 0
    never.set()


async def test_a_key_whose_time_is_over_is_free_although_nobody_has_swept(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(JOB_TTL="2s", CLEANUP_INTERVAL="1h")
    first = await start(sidecar, idempotency_key="k")
    async with asyncio.timeout(20):
        while (again := await start(sidecar, idempotency_key="k"))["job_id"] in (first["job_id"], None):
            pass
    assert (again["status"], len(kserve.instances)) == ("completed", 2)


async def test_a_failure_that_a_key_keeps_says_how_to_try_again(sidecar: Sidecar, kserve: FakeKServe) -> None:
    kserve.script.append(say(400, {"error": "no"}))
    for _ in range(2):
        told = await start(sidecar, idempotency_key="k")
        assert (told["status"], told["message"].endswith("use another idempotency_key.")) == ("failed", True)
    assert len(kserve.instances) == 1


async def test_a_damaged_job_does_not_keep_the_others_from_being_taken_over(
    start_sidecar: StartSidecar, kserve: FakeKServe, tmp_path: Path
) -> None:
    doomed = await serve(kserve, tmp_path / "images")
    never = asyncio.Event()
    kserve.script.append(succeed_when(never))
    heir = await start_sidecar(**BRIEF)
    url, heir.url = heir.url, doomed.url
    await start(heir, "running")
    damaged, whole = await start(heir, "damaged"), await start(heir, "whole")
    doomed.kill()
    await doomed.process.wait()
    (heir.store / f"jobs/open/{damaged['job_id']}.json").write_bytes(b"{")
    heir.url = url
    assert (await ended(heir, whole["job_id"]))["status"] == "completed"
    never.set()


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", ["get_generation", "cancel_generation"])
@pytest.mark.parametrize("job_id", ["", "1", "../../etc/passwd", "0" * 43, "é" * 43, "x" * 200])
async def test_an_id_that_is_none_is_told_so(tool: str, job_id: str, sidecar: Sidecar) -> None:
    found = await call(sidecar, tool, job_id=job_id)
    assert (found["status"], found["message"].startswith("There is no generation with this job_id")) == ("failed", True)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"wait_seconds": -1}, "wait_seconds: -1 was given; allowed: 0 to 3600."),
        ({"wait_seconds": 1e9}, "wait_seconds: 1000000000.0 was given; allowed: 0 to 3600."),
        ({"job_id": 7}, "job_id: 7 was given; allowed: the job_id of a generate_image result."),
    ],
)
async def test_a_wrong_argument_of_a_poll_is_named(arguments: dict[str, Any], told: str, sidecar: Sidecar) -> None:
    found = await call(sidecar, "get_generation", **{"job_id": "0" * 43, **arguments})
    assert found["message"] == told


async def test_an_image_is_no_job_and_a_job_no_image(sidecar: Sidecar) -> None:
    done = await start(sidecar)
    image_id = done["images"][0]["image_id"]
    assert (await call(sidecar, "get_generation", job_id=image_id))["status"] == "failed"
    assert (await sidecar.get(f"/images/{done['job_id']}"))[0].status == 404


async def test_a_damaged_job_hides_only_itself(start_sidecar: StartSidecar, kserve: FakeKServe) -> None:
    sidecar = await start_sidecar()
    done, other = await start(sidecar, "one", idempotency_key="1"), await start(sidecar, "two", idempotency_key="2")
    (damaged,) = (path for path in sidecar.store.rglob(f"{done['job_id']}.json"))
    damaged.write_bytes(b'{"schema_version": 99}')
    images = [image["url"] for image in (await call(sidecar, "get_generation", job_id=done["job_id"]))["images"]]
    assert images == [image["url"] for image in done["images"]]  # what the damaged file does not say, the images do
    assert (await call(sidecar, "get_generation", job_id=other["job_id"]))["status"] == "completed"
    assert damaged.exists()


async def test_jobs_and_their_keys_are_deleted_when_their_time_is_up(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(JOB_TTL="0.2s", IMAGE_TTL="0.2s", CLEANUP_INTERVAL="0.1s")
    done = await start(sidecar, idempotency_key="k")
    async with asyncio.timeout(30):
        while (await call(sidecar, "get_generation", job_id=done["job_id"]))["status"] != "failed":
            pass
    kserve.script.append(succeed())
    assert (await start(sidecar, idempotency_key="k"))["job_id"] != done["job_id"]
