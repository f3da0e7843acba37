"""While the store cannot be asked, a generation has not failed: its caller is told to ask again (issue 13, part 6)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sidecar.domain import JobId
from sidecar.ports import SystemClock
from tests.conftest import ERAS, Sidecar, StartSidecar
from tests.fake_kserve import FakeKServe, say, succeed_when
from tests.odd_store import Odd, at, odd
from tests.test_tasks import request

__all__ = ["odd"]


class Outage:
    """A sidecar whose store can be taken away and given back."""

    def __init__(self, sidecar: Sidecar, begin: Callable[[], object], end: Callable[[], object]) -> None:
        self.sidecar = sidecar
        self.begin = begin
        self.end = end

    async def told(self, tool: str, era: str = "auto", **arguments: Any) -> tuple[bool, dict[str, Any], str]:
        """Whether the result is an error, its structured content, and its text."""
        async with self.sidecar.client(era) as client:
            result = await client.call_tool(tool, arguments)
        structured: dict[str, Any] = result.structured_content
        return bool(result.is_error), structured, getattr(result.content[0], "text", "")


@pytest.fixture(params=["file", "s3"])
async def outage(request: pytest.FixtureRequest, start_sidecar: StartSidecar, odd: Odd, tmp_path: Path) -> Outage:
    settings = {"JOB_LEASE_INTERVAL": "1h"}
    if request.param == "s3":
        sidecar = await start_sidecar(**at(odd), SPOOL_PATH=str(tmp_path / "spool"), **settings)
        return Outage(sidecar, lambda: odd.unreadable.update({"jobs/", "records/"}), odd.unreadable.clear)
    sidecar = await start_sidecar(**settings)
    elsewhere = sidecar.store.with_name("elsewhere")
    return Outage(sidecar, lambda: sidecar.store.rename(elsewhere), lambda: elsewhere.rename(sidecar.store))


LOOK: dict[str, dict[str, Any]] = {"get_generation": {"wait_seconds": 0}, "cancel_generation": {}}


async def made(outage: Outage, **arguments: Any) -> dict[str, Any]:
    is_error, structured, _ = await outage.told("generate_image", prompt="a cat", result="link", **arguments)
    assert (is_error, structured["status"]) == (False, "completed")
    return structured


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("tool", LOOK)
async def test_an_ended_generation_is_asked_for_again_rather_than_given_up(outage: Outage, tool: str, era: str) -> None:
    done = await made(outage, idempotency_key="k", num_images=2)
    outage.begin()
    is_error, unknown, text = await outage.told(tool, era, job_id=done["job_id"], **LOOK[tool])
    assert (is_error, unknown["status"], unknown["job_id"], unknown["images"]) == (False, "working", done["job_id"], [])
    assert unknown["retry_after_seconds"] >= 1
    assert f"Call {tool} with this job_id again in about {unknown['retry_after_seconds']} s" in unknown["message"]
    assert text == f"{unknown['message']} job_id: {done['job_id']}"
    outage.end()
    async with asyncio.timeout(20):
        while (again := (await outage.told(tool, era, job_id=done["job_id"], **LOOK[tool]))[1])["status"] == "working":
            pass
    assert (again["status"], again["images"]) == ("completed", done["images"])
    assert again["retry_after_seconds"] is None


async def test_a_key_of_which_nothing_is_known_is_repeated_and_paid_for_once(
    outage: Outage, kserve: FakeKServe
) -> None:
    done = await made(outage, idempotency_key="k")
    outage.begin()
    is_error, unknown, text = await outage.told("generate_image", prompt="a cat", result="link", idempotency_key="k")
    assert (is_error, unknown["status"], unknown["job_id"]) == (False, "working", None)
    assert (text, unknown["retry_after_seconds"] >= 1) == (unknown["message"], True)
    assert "Repeat the call with the same idempotency_key in about" in text
    outage.end()
    assert (await made(outage, idempotency_key="k"))["images"] == done["images"]
    assert len(kserve.instances) == 1


async def test_a_generation_that_the_runtime_refused_is_still_told_as_failed(
    outage: Outage, kserve: FakeKServe
) -> None:
    kserve.script.append(say(400, {"error": "Prediction failed: CUDA out of memory"}))
    is_error, failed, _ = await outage.told("generate_image", prompt="a cat", idempotency_key="k")
    assert (is_error, failed["status"], failed["retry_after_seconds"]) == (True, "failed", None)
    is_error, again, _ = await outage.told("get_generation", job_id=failed["job_id"])
    assert (is_error, again["status"], again["message"]) == (True, "failed", failed["message"])


async def test_a_generation_that_never_was_is_not_taken_for_one_of_which_nothing_is_known(outage: Outage) -> None:
    await made(outage)
    is_error, missing, _ = await outage.told("get_generation", job_id=str(JobId.new(SystemClock().now())))
    assert (is_error, missing["status"], missing["retry_after_seconds"]) == (True, "failed", None)


async def test_a_task_goes_on_while_its_store_is_away(outage: Outage) -> None:
    done = await made(outage)
    outage.begin()
    task = (await request(outage.sidecar, "tasks/get", {"taskId": done["job_id"]}))["result"]
    assert (task["status"], task["taskId"], "result" in task) == ("working", done["job_id"], False)
    assert (task["pollIntervalMs"] >= 2000, "cannot be asked at the moment" in task["statusMessage"]) == (True, True)
    outage.end()
    task = (await request(outage.sidecar, "tasks/get", {"taskId": done["job_id"]}))["result"]
    assert (task["status"], len(task["result"]["structuredContent"]["images"])) == ("completed", 1)


async def test_a_call_that_is_refused_says_when_to_try_again(start_sidecar: StartSidecar, kserve: FakeKServe) -> None:
    sidecar = await start_sidecar(QUEUE_LIMIT="1", RESPONSE_BUDGET="0.1s")
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    for _ in range(2):
        await sidecar.generate()
    refused = await sidecar.generate()
    assert (refused.is_error, refused.structured_content["status"]) == (True, "failed")
    assert refused.structured_content["retry_after_seconds"] >= 1
    release.set()
    await sidecar.service.drained()
