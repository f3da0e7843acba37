"""What a result says of a generation that is not done: images ahead, seconds so far, seconds expected (issue 14)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sidecar.core.generation import Progress
from tests.conftest import ERAS, Sidecar, StartSidecar
from tests.fake_kserve import FakeKServe, succeed_when

BRIEF = {"RESPONSE_BUDGET": "0.2s", "JOB_LEASE_INTERVAL": "0.1s"}
FIELDS = ("ahead", "elapsed_seconds", "expected_seconds")


async def call(sidecar: Sidecar, tool: str, era: str = "auto", **arguments: Any) -> dict[str, Any]:
    async with sidecar.client(era) as client:
        found: dict[str, Any] = (await client.call_tool(tool, arguments)).structured_content
    return found


@pytest.mark.parametrize("era", ERAS)
async def test_what_waits_and_what_is_worked_on_say_how_far_they_are(
    era: str, start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(**BRIEF)
    kserve.script.append(succeed_when(release := asyncio.Event()))
    working = await call(sidecar, "generate_image", era, prompt="first", num_images=2)
    queued = await call(sidecar, "generate_image", era, prompt="second")
    assert (working["status"], working["ahead"], working["expected_seconds"]) == ("working", 0, None)
    assert (queued["status"], queued["ahead"], queued["expected_seconds"]) == ("queued", 2, None)
    assert working["elapsed_seconds"] >= 0.2
    later = await call(sidecar, "get_generation", era, job_id=working["job_id"], wait_seconds=0)
    assert later["elapsed_seconds"] > working["elapsed_seconds"]
    release.set()
    for job in (working, queued):
        done = await call(sidecar, "get_generation", era, job_id=job["job_id"])
        assert (done["status"], *(done[name] for name in FIELDS)) == ("completed", None, None, None)


async def test_once_an_image_was_made_the_next_ones_time_is_expected(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(**BRIEF)
    await sidecar.made()
    kserve.script.append(succeed_when(release := asyncio.Event()))
    working = await call(sidecar, "generate_image", prompt="first")
    queued = await call(sidecar, "generate_image", prompt="second")
    assert working["expected_seconds"] is not None
    assert queued["expected_seconds"] >= queued["elapsed_seconds"]
    release.set()


async def test_another_process_knows_since_when_and_nothing_else(
    start_sidecar: StartSidecar, kserve: FakeKServe, never: None
) -> None:
    sidecar = await start_sidecar(**BRIEF)
    job = await call(sidecar, "generate_image", prompt="first")
    other = await start_sidecar(**BRIEF)
    found = await call(other, "get_generation", job_id=job["job_id"])
    assert (found["status"], found["ahead"], found["expected_seconds"]) == ("working", None, None)
    assert found["elapsed_seconds"] >= job["elapsed_seconds"]


@pytest.mark.parametrize(
    ("progress", "since_call", "expected"),
    [
        (Progress(phase="queued", ahead=2, elapsed=5, estimate=30, finished=0, total=1), 5, 35),
        (Progress(phase="generating", ahead=0, elapsed=4, estimate=10, finished=0, total=1, waited=25), 29, 35),
        (Progress(phase="generating", ahead=0, elapsed=40, estimate=10, finished=0, total=1, waited=25), 65, 35),
        (Progress(phase="queued", ahead=2, elapsed=5, estimate=None, finished=0, total=1), 5, None),
    ],
)
def test_both_times_count_from_the_call_whether_it_waits_or_is_worked_on(
    progress: Progress, since_call: float, expected: float | None
) -> None:
    assert (progress.since_call, progress.expected) == (since_call, expected)
