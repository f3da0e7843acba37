"""The extension io.modelcontextprotocol/tasks on the jobs (SEP-2663), by plain requests: the SDK has no client."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from sidecar.domain import JobId
from sidecar.ports import SystemClock
from tests.conftest import Sidecar, StartSidecar
from tests.fake_kserve import FakeKServe, say, succeed_when

ABOUT = "io.modelcontextprotocol"
TASKS: dict[str, Any] = {"extensions": {f"{ABOUT}/tasks": {}}}
BRIEF = {"RESPONSE_BUDGET": "0.1s"}
METHODS = ["tasks/get", "tasks/update", "tasks/cancel"]


async def request(
    sidecar: Sidecar,
    method: str,
    params: dict[str, Any],
    *,
    name: str | None = None,
    capabilities: dict[str, Any] | None = None,
    version: str = "2026-07-28",
    switches: str = "",
) -> dict[str, Any]:
    """One request and the JSON-RPC message that answers it."""
    meta = {
        f"{ABOUT}/protocolVersion": version,
        f"{ABOUT}/clientCapabilities": TASKS if capabilities is None else capabilities,
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}}
    headers = {
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": version,
        "Mcp-Method": method,
        "Mcp-Name": name or params.get("name") or params.get("taskId", ""),
    }
    _, answer = await sidecar.get(f"/mcp{switches}", method="POST", json=body, headers=headers)
    text = answer.decode()
    message: dict[str, Any] = json.loads(text.split("data: ")[-1] if text.startswith(("event", ":")) else text)
    return message


async def generate(sidecar: Sidecar, **kwargs: Any) -> dict[str, Any]:
    params = {"name": "generate_image", "arguments": {"prompt": "a cat", "result": "link"}}
    result: dict[str, Any] = (await request(sidecar, "tools/call", params, **kwargs))["result"]
    return result


async def poll(sidecar: Sidecar, task_id: str) -> dict[str, Any]:
    """The task once it has ended."""
    async with asyncio.timeout(30):
        while (task := (await request(sidecar, "tasks/get", {"taskId": task_id}))["result"])["status"] == "working":
            await asyncio.sleep(0.02)
    found: dict[str, Any] = task
    return found


@pytest.fixture
async def slow(start_sidecar: StartSidecar, kserve: FakeKServe) -> tuple[Sidecar, asyncio.Event]:
    """A sidecar whose first predict waits for the event."""
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    return await start_sidecar(**BRIEF), release


async def test_a_call_that_takes_too_long_becomes_a_task_that_completes(slow: tuple[Sidecar, asyncio.Event]) -> None:
    sidecar, release = slow
    task = await generate(sidecar)
    assert {key: task[key] for key in ("resultType", "status", "ttlMs", "pollIntervalMs")} == {
        "resultType": "task",
        "status": "working",
        "ttlMs": 7 * 24 * 3600 * 1000,
        "pollIntervalMs": 2000,
    }
    release.set()
    done = await poll(sidecar, task["taskId"])
    assert (done["resultType"], done["status"], done["taskId"]) == ("complete", "completed", task["taskId"])
    structured = done["result"]["structuredContent"]
    assert (structured["job_id"], len(structured["images"])) == (task["taskId"], 1)


async def test_a_tasks_result_is_shown_the_way_its_call_asked_for(slow: tuple[Sidecar, asyncio.Event]) -> None:
    sidecar, release = slow
    task = await generate(sidecar)  # with result: link
    release.set()
    done = await poll(sidecar, task["taskId"])
    assert [block["type"] for block in done["result"]["content"]] == ["text"]


async def test_a_client_that_does_not_declare_tasks_never_sees_one(slow: tuple[Sidecar, asyncio.Event]) -> None:
    sidecar, release = slow
    result = await generate(sidecar, capabilities={})
    assert (result["resultType"], result["structuredContent"]["status"]) == ("complete", "working")
    answer = await request(
        sidecar, "tasks/get", {"taskId": result["structuredContent"]["job_id"]}, capabilities={"extensions": {}}
    )
    assert answer["error"]["code"] == -32021
    assert answer["error"]["data"] == {"requiredCapabilities": TASKS}
    release.set()


async def test_a_call_that_is_quick_enough_is_no_task(sidecar: Sidecar) -> None:
    assert (await generate(sidecar))["structuredContent"]["status"] == "completed"


async def test_a_generation_that_fails_is_a_completed_task_whose_result_says_so(
    start_sidecar: StartSidecar, kserve: FakeKServe
) -> None:
    sidecar = await start_sidecar(**BRIEF)
    release = asyncio.Event()

    async def fail_later(http: Any, instance: dict[str, Any]) -> Any:
        await release.wait()
        return await say(400, {"error": "no"})(http, instance)

    kserve.script.append(fail_later)
    task = await generate(sidecar)
    release.set()
    done = await poll(sidecar, task["taskId"])
    assert (done["status"], done["result"]["isError"], "error" in done) == ("completed", True, False)


async def test_a_queued_task_is_working_and_can_be_cancelled(slow: tuple[Sidecar, asyncio.Event]) -> None:
    sidecar, release = slow
    running, queued = await generate(sidecar), await generate(sidecar)
    assert (queued["status"], queued["statusMessage"]) == ("working", "queued, 1 ahead")
    assert (await request(sidecar, "tasks/cancel", {"taskId": queued["taskId"]}))["result"]["resultType"] == "complete"
    assert (await poll(sidecar, queued["taskId"]))["status"] == "cancelled"
    assert (await request(sidecar, "tasks/cancel", {"taskId": running["taskId"]}))["result"]["resultType"] == "complete"
    release.set()
    assert (await poll(sidecar, running["taskId"]))["status"] == "completed"


async def test_an_update_is_acknowledged_and_changes_nothing(slow: tuple[Sidecar, asyncio.Event]) -> None:
    sidecar, release = slow
    task = await generate(sidecar)
    params = {"taskId": task["taskId"], "inputResponses": {"never asked": {}}}
    assert (await request(sidecar, "tasks/update", params))["result"]["resultType"] == "complete"
    release.set()
    assert (await poll(sidecar, task["taskId"]))["status"] == "completed"


@pytest.mark.parametrize("method", METHODS)
async def test_bad_requests_are_told_apart(method: str, slow: tuple[Sidecar, asyncio.Event]) -> None:
    sidecar, release = slow
    task_id = (await generate(sidecar))["taskId"]
    params = {"taskId": task_id, "inputResponses": {}}
    codes = {
        "unknown": (await request(sidecar, method, {**params, "taskId": "0" * 43}))["error"]["code"],
        "malformed": (await request(sidecar, method, {**params, "taskId": "../x"}))["error"]["code"],
        "header": (await request(sidecar, method, params, name="other"))["error"]["code"],
        "undeclared": (await request(sidecar, method, params, capabilities={}))["error"]["code"],
        "missing": (await request(sidecar, method, {}, name=task_id))["error"]["code"],
    }
    assert codes == {
        "unknown": -32602,
        "malformed": -32602,
        "header": -32020,
        "undeclared": -32021,
        "missing": -32602,
    }
    release.set()


@pytest.mark.parametrize("method", METHODS)
async def test_a_switch_of_the_mcp_url_that_means_nothing_is_told(method: str, sidecar: Sidecar) -> None:
    params = {"taskId": "0" * 43, "inputResponses": {}}
    error = (await request(sidecar, method, params, switches="?image=bogus"))["error"]
    assert error == {
        "code": -32602,
        "message": "The MCP URL has image='bogus'; allowed: on, off. Its user corrects the URL.",
    }


@pytest.mark.parametrize("method", ["tasks/update", "tasks/cancel"])
async def test_a_store_in_trouble_is_told_in_the_words_of_the_tools(method: str, sidecar: Sidecar) -> None:
    (sidecar.store / "jobs").write_bytes(b"")  # no directory, so no job can be read
    job_id = str(JobId.new(SystemClock().now()))
    tool = "cancel_generation" if method == "tasks/cancel" else "get_generation"
    async with sidecar.client() as client:
        told = (await client.call_tool(tool, {"job_id": job_id})).structured_content
    error = (await request(sidecar, method, {"taskId": job_id, "inputResponses": {}}))["error"]
    assert (error["code"], told["message"].startswith(error["message"])) == (-32603, True)


async def test_the_extension_is_advertised_and_the_handshake_era_knows_no_tasks(sidecar: Sidecar) -> None:
    discovered = (await request(sidecar, "server/discover", {}))["result"]
    assert discovered["capabilities"]["extensions"][f"{ABOUT}/tasks"] == {}
    answer = await request(sidecar, "tasks/get", {"taskId": "0" * 43}, version="2025-06-18")
    assert answer["error"]["code"] == -32601
