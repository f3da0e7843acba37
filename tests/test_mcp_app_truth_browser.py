"""What the MCP App says of jobs under way and of images that are gone, in a real browser (issue 14)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.app_host import HAS_PLAYWRIGHT, Host, a_host, chromium, context, host, job
from tests.conftest import Sidecar, StartSidecar
from tests.fake_kserve import FakeKServe, succeed_when

if HAS_PLAYWRIGHT:
    from playwright.async_api import BrowserContext, expect

pytestmark = pytest.mark.real
__all__ = ["chromium", "context", "host"]


# --- jobs under way ---------------------------------------------------------------------------------------------------


async def under_way(host: Host, status: str, **fields: Any) -> None:
    """The page sees a call of the model that has not ended; it asks for it again when the clock is moved."""
    await host.page.clock.install()
    await host.open()
    await host.notify("ui/notifications/tool-input", {"arguments": {"prompt": "a cat"}})
    await host.result(job(status, **fields)["result"]["structuredContent"])


async def test_who_waits_sees_how_many_are_ahead_and_a_bar_that_goes_on(host: Host) -> None:
    await under_way(host, "queued", ahead=2, elapsed_seconds=4.0, expected_seconds=20.0)
    await expect(host.view.locator("#doing")).to_have_text("Waiting in line, 2 images ahead…")
    await expect(host.view.locator("#elapsed")).to_have_text("4 s of about 20 s")
    bar = host.view.locator("#bar")
    await expect(bar).to_be_visible()
    before = float(await bar.get_attribute("value") or 0)
    assert before == pytest.approx(0.2, abs=0.05)
    host.answers("get_generation", job("working", ahead=0, elapsed_seconds=10.0, expected_seconds=20.0))
    await host.page.clock.run_for(1_000)
    await expect(host.view.locator("#doing")).to_have_text("Still working…")
    await expect(host.view.locator("#elapsed")).to_have_text("10 s of about 20 s")


async def test_a_bar_is_not_full_before_the_image_is_there(host: Host) -> None:
    await under_way(host, "working", ahead=0, elapsed_seconds=90.0, expected_seconds=20.0)
    await expect(host.view.locator("#elapsed")).to_have_text("90 s")
    assert float(await host.view.locator("#bar").get_attribute("value") or 1) < 1


@pytest.mark.parametrize("fields", [{}, {"ahead": None, "elapsed_seconds": None, "expected_seconds": None}])
async def test_where_nothing_is_known_the_bar_says_only_that_it_goes_on(fields: dict[str, Any], host: Host) -> None:
    await under_way(host, "queued", **fields)
    await expect(host.view.locator("#doing")).to_have_text("Waiting in line…")
    await expect(host.view.locator("#bar")).to_be_visible()
    assert await host.view.locator("#bar").get_attribute("value") is None


async def test_what_waits_in_line_is_cancelled_for_good(
    start_sidecar: StartSidecar, kserve: FakeKServe, never: None, context: BrowserContext, aiohttp_server: Any
) -> None:
    sidecar = await start_sidecar(RESPONSE_BUDGET="1s")
    await sidecar.generate(prompt="first")
    host = await a_host(sidecar, context, aiohttp_server)
    await host.open()
    call = asyncio.create_task(host.model_calls())
    await expect(host.view.locator("#doing")).to_have_text("Waiting in line, 1 image ahead…")
    await call
    await host.view.get_by_role("button", name="Cancel").click()
    await expect(host.view.get_by_role("alert")).to_have_text("The generation was cancelled.")
    await expect(host.view.locator("#stage")).to_be_hidden()
    await expect(host.view.get_by_role("button", name="Again with a new seed")).to_be_visible()
    ((job_id,),) = {tuple(given.values())[:1] for name, given in host.calls if name == "cancel_generation"}
    async with sidecar.client() as client:
        found = await client.call_tool("get_generation", {"job_id": job_id, "wait_seconds": 0})
    assert found.structured_content["status"] == "cancelled"
    assert len(kserve.instances) == 1


async def test_what_the_runtime_has_begun_cannot_be_cancelled_and_the_page_says_so(
    start_sidecar: StartSidecar, kserve: FakeKServe, context: BrowserContext, aiohttp_server: Any
) -> None:
    sidecar = await start_sidecar(RESPONSE_BUDGET="1s")
    kserve.script.append(succeed_when(release := asyncio.Event()))
    host = await a_host(sidecar, context, aiohttp_server)
    await host.open()
    await host.model_calls()
    await host.view.get_by_role("button", name="Cancel").click()
    await expect(host.view.locator("#note")).to_contain_text("already at work on it and cannot be stopped")
    await expect(host.view.locator("#cancel")).to_be_hidden()
    await expect(host.view.locator("#doing")).to_have_text("Still working…")
    release.set()
    await expect(host.picture).to_be_visible()
    await expect(host.view.locator("#bar")).to_be_hidden()
    await expect(host.view.locator("#note")).not_to_contain_text("stopped")


async def test_a_cancellation_that_does_not_reach_the_store_can_be_tried_again(host: Host) -> None:
    await under_way(host, "queued", ahead=1)
    host.answers(
        "cancel_generation",
        job("working", message="The image store cannot be asked.", retry_after_seconds=5),
        job("cancelled"),
    )
    cancel = host.view.get_by_role("button", name="Cancel")
    await cancel.click()
    await expect(host.view.locator("#note")).to_have_text("The image store cannot be asked.")
    await cancel.click()
    await expect(host.view.get_by_role("alert")).to_have_text("The generation was cancelled.")
    await host.page.clock.run_for(60_000)
    assert [name for name, _ in host.calls] == ["cancel_generation"] * 2


async def test_a_host_that_passes_no_calls_on_has_nothing_to_cancel_with(host: Host) -> None:
    await host.open(capabilities={"openLinks": {}})
    await host.notify("ui/notifications/tool-input", {"arguments": {"prompt": "a cat"}})
    await host.result(job("queued", ahead=1)["result"]["structuredContent"])
    await expect(host.view.get_by_role("alert")).to_contain_text("still being made")
    await expect(host.view.locator("#cancel")).to_be_hidden()


# --- images that are gone ---------------------------------------------------------------------------------------------


async def test_of_a_deleted_image_the_page_says_that_it_is_gone(host: Host) -> None:
    result = await host.sidecar.generate(result="thumbnail")
    made = result.structured_content["images"][0]
    await host.sidecar.get(f"/images/{made['image_id']}", method="DELETE")
    await host.open()
    await host.notify("ui/notifications/tool-input", {"arguments": {"prompt": "a cat"}})
    await host.result({"status": "completed", "images": [made], "message": None})
    await expect(host.view.locator("#unshown")).to_have_text("This image has been deleted.")
    await expect(host.view.locator("#link")).to_be_hidden()
    await expect(host.view.locator("#parameters")).not_to_contain_text("Link works")
    for dead in ("Copy link", "Open"):
        await expect(host.view.get_by_role("button", name=dead)).to_be_hidden()
    await expect(host.view.get_by_role("button", name="Again with a new seed")).to_be_visible()


async def test_of_a_deleted_image_the_preview_is_shown_as_what_is_left(host: Host) -> None:
    result = await host.sidecar.generate(result="thumbnail")
    made = result.structured_content["images"][0]
    await host.sidecar.get(f"/images/{made['image_id']}", method="DELETE")
    await host.open()
    await host.notify("ui/notifications/tool-input", {"arguments": {"prompt": "a cat"}})
    whole = result.model_dump(mode="json", by_alias=True, exclude_none=True)
    await host.notify("ui/notifications/tool-result", whole)
    await expect(host.picture).to_have_attribute("src", f"data:image/webp;base64,{whole['content'][-1]['data']}")
    await expect(host.view.locator("#note")).to_have_text(
        "This image has been deleted. Only this small preview is left."
    )
    await expect(host.view.locator("#link")).to_be_hidden()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"result": {"content": [], "structuredContent": {}}}, "The link has all of it."),
        ({"result": {"content": [], "isError": True}}, "The link has all of it, if it is still stored."),
        ({"error": {"code": -32603, "message": "no"}}, "The link has all of it, if it is still stored."),
    ],
)
async def test_of_an_image_that_does_not_load_no_more_is_said_than_is_known(
    answer: dict[str, Any], said: str, host: Host
) -> None:
    host.changed = {"csp": {}}
    host.answers("get_image_metadata", answer)
    await host.open()
    await host.model_calls()
    await expect(host.view.locator("#note")).to_have_text(
        f"This host cannot load the image itself, so a small preview is shown. {said}"
    )
    await expect(host.view.get_by_label("Link to the image")).to_be_visible()


# --- texts and lists --------------------------------------------------------------------------------------------------


async def test_a_text_from_right_to_left_is_set_so(host: Host) -> None:
    prompt = "מגדלור בערפל, oil painting"
    await host.open()
    await host.model_calls(prompt=prompt, negative_prompt=prompt)
    await expect(host.view.locator("#prompt")).to_have_css("direction", "rtl")
    await expect(host.view.locator("#parameters dd", has_text=prompt)).to_have_css("direction", "rtl")


async def test_a_list_is_captioned_with_the_prompts(host: Host) -> None:
    for prompt in ("a red boat", "<b>מגדלור</b>"):
        await host.sidecar.made(prompt=prompt, seed=1)
    async with host.sidecar.client() as client:
        listed = (await client.call_tool("list_generated_images", {})).structured_content
    await host.open()
    await host.notify("ui/notifications/tool-input", {"arguments": {}})
    await host.result(listed)
    await expect(host.view.locator("#grid .caption")).to_have_text(["<b>מגדלור</b>", "a red boat"])
    await expect(host.view.locator("#grid .caption").first).to_have_attribute("dir", "auto")
    await host.view.get_by_role("button", name="a red boat (Seed 1)").click()
    await expect(host.view.locator("#prompt")).to_have_text("a red boat")


async def test_pictures_of_a_list_are_loaded_when_they_come_into_sight(host: Host) -> None:
    made = await host.sidecar.made()
    many = [
        {**made, "image_id": f"{number}", "thumbnail_url": f"{made['thumbnail_url']}?{number}"} for number in range(200)
    ]
    await host.open()
    await host.page.evaluate("host.frame.style.maxHeight = '400px'")
    await host.notify("ui/notifications/tool-input", {"arguments": {}})
    await host.result({"images": many, "next_cursor": None})
    first = host.view.locator("#grid img").first
    await expect(first).to_have_js_property("complete", True)
    await expect(first).not_to_have_js_property("naturalWidth", 0)
    assert 0 < len([url for url in host.requests if "/thumbnail?" in url]) < 150
    last = host.view.locator("#grid img").last
    await last.scroll_into_view_if_needed()
    await expect(last).not_to_have_js_property("naturalWidth", 0)


async def test_a_thumbnail_that_does_not_come_is_replaced_by_what_there_is(host: Host) -> None:
    made = await host.sidecar.made(seed=5)
    await host.open()
    await host.notify("ui/notifications/tool-input", {"arguments": {}})
    await host.result(
        {"images": [{**made, "thumbnail_url": f"{host.sidecar.url}/images/x/thumbnail"}], "next_cursor": None}
    )
    await expect(host.view.locator("#grid .thumbnail")).to_have_text("Seed 5")


async def test_under_a_finger_every_button_is_large_enough(
    sidecar: Sidecar, context: BrowserContext, aiohttp_server: Any
) -> None:
    assert context.browser is not None
    phone = await context.browser.new_context(viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    host = await a_host(sidecar, phone, aiohttp_server)
    await host.open()
    await host.model_calls(num_images=2)
    await expect(host.picture).to_be_visible()
    await expect(host.view.locator("#strip button")).to_have_count(2)
    for button in await host.view.get_by_role("button").all():
        box = await button.bounding_box()
        assert box is not None
        assert min(box["width"], box["height"]) >= 44
    await phone.close()
