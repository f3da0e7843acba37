"""The MCP App in a real browser: a host that speaks the bridge, the page in its sandbox, and the running sidecar."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from tests.app_host import HAS_PLAYWRIGHT, Host, a_host, chromium, context, host, job, parameters
from tests.conftest import StartSidecar
from tests.fake_kserve import FakeKServe, say, succeed, succeed_when
from tests.pictures import picture

if HAS_PLAYWRIGHT:
    from playwright.async_api import BrowserContext, expect

pytestmark = pytest.mark.real
__all__ = ["chromium", "context", "host"]

MARKUP = '<img src=x onerror="document.title=1"><script>document.title = 2</script><b>a cat</b>'


async def test_a_result_is_shown_large_with_its_parameters(host: Host, kserve: FakeKServe) -> None:
    kserve.script.append(succeed(picture(640, 480)))
    await host.open(context={"locale": "en-GB", "timeZone": "UTC"})
    await host.model_calls(num_inference_steps=20, guidance_scale=6.5, negative_prompt="people")
    await expect(host.picture).to_have_attribute("alt", "a lighthouse in fog")
    assert await host.picture.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [640, 480]
    box = await host.picture.bounding_box()
    assert box["width"] > 600
    assert round(box["width"] / box["height"], 1) == 1.3
    await expect(host.view.locator("#prompt")).to_have_text("a lighthouse in fog")
    await expect(host.view.locator("#status")).to_have_text("New image, seed 7.")
    shown = await parameters(host)
    assert shown.pop("Made")
    assert shown.pop("Link works").startswith("until ")
    assert shown.pop("File").startswith("PNG, ")
    assert shown == {
        "Seed": "7\nnot known to be used by this model",
        "Size": "640 × 480",
        "Model": "painter",
        "Steps": "20",
        "Guidance": "6.5",
        "Kept out": "people",
    }


@pytest.mark.parametrize(("width", "beside"), [(700, False), (1100, True)])
async def test_where_there_is_room_the_parameters_stand_beside_the_image(width: int, beside: bool, host: Host) -> None:
    await host.page.set_viewport_size({"width": width, "height": 900})
    await host.open()
    await host.model_calls()
    await expect(host.picture).to_be_visible()
    image, about = await host.picture.bounding_box(), await host.view.locator(".about").bounding_box()
    assert about is not None
    assert (about["x"] >= image["x"] + image["width"]) is beside
    assert (about["y"] >= image["y"] + image["height"]) is not beside


async def test_while_the_image_is_made_its_prompt_and_progress_are_shown(host: Host, kserve: FakeKServe) -> None:
    release = asyncio.Event()
    kserve.script.append(succeed_when(release))
    await host.open()
    call = asyncio.create_task(host.model_calls(aspect_ratio="16:9"))
    await expect(host.view.locator("#prompt")).to_have_text("a lighthouse in fog")
    await expect(host.view.locator("#doing")).to_have_text("Painting…")
    await expect(host.view.locator("#status")).to_have_text("Painting…")
    await expect(host.view.locator("#actions")).to_be_hidden()
    release.set()
    await call
    await expect(host.picture).to_be_visible()
    await expect(host.view.locator("#progress")).to_be_hidden()


async def test_again_makes_the_same_image_with_another_seed(host: Host, kserve: FakeKServe) -> None:
    release = asyncio.Event()
    await host.open()
    await host.model_calls(num_inference_steps=9, result="link")
    await expect(host.picture).to_be_visible()
    first = await host.picture.get_attribute("src")
    kserve.script.append(succeed_when(release))

    await host.view.get_by_role("button", name="Again with a new seed").click()

    again = host.view.locator("#again")
    await expect(again).to_be_disabled()
    await expect(host.view.locator("#status")).to_have_text("Painting again…")
    release.set()
    await expect(again).to_be_enabled()
    await expect(host.picture).not_to_have_attribute("src", first or "")
    (_, (tool, given)) = host.calls
    assert (tool, given | {"seed": 0}) == (
        "generate_image",
        {"prompt": "a lighthouse in fog", "num_inference_steps": 9, "result": "link", "seed": 0},
    )
    assert given["seed"] != 7
    assert 0 <= given["seed"] < 2**32
    assert (await parameters(host))["Seed"].startswith(str(given["seed"]))
    (told,) = await host.heard("ui/update-model-context")
    assert f"(seed {given['seed']})" in told["content"][0]["text"]


async def test_earlier_images_stay_at_hand(host: Host) -> None:
    await host.open()
    await host.model_calls(num_images=2)
    await expect(host.view.locator("#strip button")).to_have_count(2)
    await host.view.locator("#again").click()
    await expect(host.view.locator("#strip button")).to_have_count(4)
    await host.view.get_by_role("button", name="Seed 8", exact=True).focus()
    await host.page.keyboard.press("Enter")
    await expect(host.view.get_by_role("button", name="Seed 8", exact=True)).to_be_focused()
    await expect(host.view.locator('#strip [aria-current="true"]')).to_have_attribute("aria-label", "Seed 8")
    assert (await parameters(host))["Seed"].startswith("8")


async def test_an_idempotency_key_is_not_used_a_second_time(host: Host) -> None:
    await host.open()
    made = await host.sidecar.made(seed=7)
    given = {"prompt": "a cat", "idempotency_key": "once", "seed": 7}
    await host.notify("ui/notifications/tool-input", {"arguments": given})
    await host.result({"status": "completed", "images": [made], "message": None})
    await host.view.locator("#again").click()
    await expect(host.view.locator("#strip button")).to_have_count(2)
    assert [(name, sorted(arguments)) for name, arguments in host.calls] == [("generate_image", ["prompt", "seed"])]


async def test_a_call_that_fails_shows_its_sentence_and_can_be_tried_again(host: Host, kserve: FakeKServe) -> None:
    kserve.script.append(say(400, {"error": "Prediction failed: out of memory"}))
    await host.open()
    await host.model_calls()
    await expect(host.view.get_by_role("alert")).to_contain_text("out of memory")
    await expect(host.view.locator("#stage")).to_be_hidden()
    await host.view.locator("#again").click()
    await expect(host.picture).to_be_visible()
    await expect(host.view.get_by_role("alert")).to_be_hidden()


async def test_when_again_fails_the_old_image_stays(host: Host, kserve: FakeKServe) -> None:
    await host.open()
    await host.model_calls()
    await expect(host.picture).to_be_visible()
    first = await host.picture.get_attribute("src")
    kserve.script.append(say(400, {"error": "Prediction failed: the painter fell asleep"}))
    await host.view.locator("#again").click()
    await expect(host.view.get_by_role("alert")).to_contain_text("the painter fell asleep")
    await expect(host.picture).to_have_attribute("src", first or "")
    await expect(host.view.locator("#again")).to_be_enabled()


async def test_a_host_that_refuses_the_call_is_told_of_in_one_sentence(host: Host) -> None:
    await host.open()
    await host.model_calls()
    host.answers("generate_image", {"error": {"code": -32000, "message": "The user said no."}})
    await host.view.locator("#again").click()
    await expect(host.view.get_by_role("alert")).to_have_text("The user said no.")


async def test_a_cancelled_call_says_so(host: Host) -> None:
    await host.open()
    await host.notify("ui/notifications/tool-input", {"arguments": {"prompt": "a cat"}})
    await host.notify("ui/notifications/tool-cancelled", {"reason": "user action"})
    await expect(host.view.get_by_role("alert")).to_have_text("The call was cancelled: user action")
    await expect(host.view.locator("#stage")).to_be_hidden()


async def test_markup_in_a_prompt_is_text(host: Host) -> None:
    await host.open()
    await host.model_calls(prompt=MARKUP, negative_prompt=MARKUP)
    await expect(host.picture).to_have_attribute("alt", MARKUP)
    await expect(host.view.locator("#prompt")).to_have_text(MARKUP)
    assert (await parameters(host))["Kept out"] == MARKUP
    assert await host.view.locator("body").evaluate("() => document.title") == "Generated images"
    assert await host.view.locator("b").count() == 0


@pytest.mark.parametrize("url", ["javascript:alert(1)", "data:image/svg+xml,<svg/>", "file:///etc/passwd", "/x", 7])
async def test_an_image_that_is_at_no_web_address_is_not_shown(url: Any, host: Host) -> None:
    await host.open()
    made = await host.sidecar.made()
    await host.notify("ui/notifications/tool-input", {"arguments": {"prompt": "a cat"}})
    await host.result({"status": "completed", "images": [{**made, "url": url}], "message": None})
    await expect(host.view.get_by_role("alert")).to_contain_text("no image")
    assert await host.picture.count() == 0


async def test_nothing_is_requested_but_images_from_their_own_origin(host: Host) -> None:
    await host.open()
    await host.model_calls(num_images=2)
    await host.view.locator("#again").click()
    await expect(host.view.locator("#strip button")).to_have_count(4)
    foreign = [url for url in host.requests if not url.startswith((host.url, "data:", "about:"))]
    assert foreign
    assert {(urlsplit(url).netloc, urlsplit(url).path.split("/")[1]) for url in foreign} == {
        (urlsplit(host.sidecar.url).netloc, "images")
    }


async def test_an_image_from_an_undeclared_origin_is_blocked_and_its_link_is_shown(
    host: Host, aiohttp_server: Any
) -> None:
    reached: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        reached.append(request.path)
        return web.Response(body=picture(), content_type="image/png")

    app = web.Application()
    app.router.add_get("/{name}", elsewhere)
    url = str((await aiohttp_server(app)).make_url("/stolen.png"))
    made = await host.sidecar.made()
    await host.open()
    await host.notify("ui/notifications/tool-input", {"arguments": {"prompt": "a cat"}})
    await host.result({"status": "completed", "images": [{**made, "url": url, "thumbnail_url": url}], "message": None})
    await expect(host.view.locator("#unshown")).to_contain_text("cannot show the image here")
    await expect(host.view.get_by_label("Link to the image")).to_have_value(url)
    assert reached == []
    assert await host.picture.count() == 0


async def test_where_the_image_cannot_be_loaded_the_preview_in_the_result_is_shown(host: Host) -> None:
    host.changed = {"csp": {}}
    await host.open()
    await host.model_calls()
    await expect(host.picture).to_be_visible()
    assert (await host.picture.get_attribute("src") or "").startswith("data:image/webp;base64,")
    await expect(host.view.locator("#note")).to_contain_text("small preview")
    await expect(host.view.get_by_label("Link to the image")).to_have_value(re.compile(f"^{host.sidecar.url}/images/"))


async def test_an_expired_image_says_when_it_was_deleted(host: Host) -> None:
    made = await host.sidecar.made()
    gone = {
        **made,
        "url": f"{host.sidecar.url}/images/gone.png",
        "thumbnail_url": f"{host.sidecar.url}/images/gone/thumbnail",
        "expires_at": "2020-05-17T10:00:00.000Z",
    }
    await host.open(context={"locale": "en-GB", "timeZone": "UTC"})
    await host.notify("ui/notifications/tool-input", {"arguments": {"prompt": "a cat"}})
    await host.result({"status": "completed", "images": [gone], "message": None})
    await expect(host.view.locator("#unshown")).to_contain_text("was deleted when its time was up, 17 May 2020, 10:00")


async def test_the_hosts_theme_and_colours_are_followed(host: Host) -> None:
    await host.page.emulate_media(color_scheme="light")
    await host.open(context={"theme": "dark"})
    await host.model_calls()
    await expect(host.view.locator("html")).to_have_css("color-scheme", "dark")
    await expect(host.view.locator("body")).to_have_css("background-color", "rgb(28, 28, 30)")
    await host.notify("ui/notifications/host-context-changed", {"theme": "light"})
    await expect(host.view.locator("body")).to_have_css("background-color", "rgb(255, 255, 255)")
    variables = {"--color-background-primary": "light-dark(rgb(1 2 3), black)", "nonsense": "red"}
    await host.notify("ui/notifications/host-context-changed", {"styles": {"variables": variables}})
    await expect(host.view.locator("body")).to_have_css("background-color", "rgb(1, 2, 3)")


async def test_without_a_word_from_the_host_the_systems_theme_holds(host: Host) -> None:
    await host.page.emulate_media(color_scheme="dark")
    await host.open()
    await expect(host.view.locator("body")).to_have_css("background-color", "rgb(28, 28, 30)")
    await host.page.emulate_media(color_scheme="light")
    await expect(host.view.locator("body")).to_have_css("background-color", "rgb(255, 255, 255)")


async def test_the_host_is_told_the_size_the_page_needs(host: Host, kserve: FakeKServe) -> None:
    kserve.script.append(succeed(picture(600, 600)))
    await host.open()
    (first, *_) = await host.heard("ui/notifications/size-changed")
    await host.model_calls()
    await expect(host.picture).to_be_visible()
    await expect(host.view.locator("#status")).to_have_text("New image, seed 7.")
    needed = await host.view.locator("html").evaluate("root => Math.ceil(root.getBoundingClientRect().height)")
    sizes = await host.heard("ui/notifications/size-changed")
    assert sizes[-1] == {"width": 700, "height": needed}
    assert first["height"] != needed
    assert len(sizes) < 12  # the host follows, and the page does not run after the host


async def test_when_the_width_changes_the_host_makes_room_until_nothing_needs_scrolling(host: Host) -> None:
    await host.page.set_viewport_size({"width": 1100, "height": 2000})
    await host.open()
    await host.model_calls(negative_prompt="people")
    await expect(host.picture).to_be_visible()
    for width in (300, 419, 420, 760, 300):
        await host.page.set_viewport_size({"width": width, "height": 2000})
        await expect(host.view.locator("html")).to_have_js_property("offsetWidth", width)
        needed = await host.view.locator("html").evaluate("root => Math.ceil(root.getBoundingClientRect().height)")
        await expect(host.page.locator("iframe")).to_have_js_property("offsetHeight", needed)


async def test_a_host_that_makes_no_room_gets_a_page_that_scrolls(host: Host) -> None:
    await host.open()
    await host.page.evaluate("host.frame.style.maxHeight = '200px'")
    await host.model_calls()
    await expect(host.picture).to_be_visible()
    await expect(host.view.locator("html")).to_have_css("overflow-y", "auto")
    await host.view.get_by_role("button", name="Copy link").click()
    await expect(host.view.get_by_label("Link to the image")).to_be_in_viewport()


async def test_a_low_container_gets_a_lower_image(host: Host, kserve: FakeKServe) -> None:
    kserve.script.append(succeed(picture(600, 600)))
    await host.open(context={"containerDimensions": {"maxHeight": 420, "width": 700}})
    await host.model_calls()
    await expect(host.picture).to_be_visible()
    assert (await host.picture.bounding_box())["height"] == 250


async def test_copying_puts_the_link_on_the_clipboard_where_the_host_allows_it(
    host: Host, context: BrowserContext
) -> None:
    await context.grant_permissions(["clipboard-read", "clipboard-write"])
    await host.open(allow="clipboard-write *")
    await host.model_calls()
    await host.view.get_by_role("button", name="Copy link").click()
    await expect(host.view.locator("#status")).to_have_text("Link copied.")
    await expect(host.view.locator("#copy")).to_have_text("Copied")
    assert await host.page.evaluate("navigator.clipboard.readText()") == await host.picture.get_attribute("src")


async def test_where_copying_is_not_allowed_the_link_is_selected_instead(host: Host) -> None:
    await host.open()
    await host.model_calls()
    await host.view.get_by_role("button", name="Copy link").click()
    address = host.view.get_by_label("Link to the image")
    await expect(address).to_be_focused()
    selected = await address.evaluate("field => field.value.slice(field.selectionStart, field.selectionEnd)")
    assert selected == await host.picture.get_attribute("src")
    await expect(host.view.locator("#status")).to_contain_text("does not let the page copy")


async def test_open_asks_the_host_and_shows_the_link_where_it_refuses(host: Host) -> None:
    await host.open()
    await host.model_calls()
    await host.view.get_by_role("button", name="Open").click()
    src = await host.picture.get_attribute("src")
    await host.page.wait_for_function("host.opened.length === 1")
    assert await host.page.evaluate("host.opened") == [src]
    await expect(host.view.locator("#link")).to_be_hidden()
    await host.page.evaluate("host.refuseLinks = true")
    await host.view.get_by_role("button", name="Open").click()
    await expect(host.view.get_by_label("Link to the image")).to_have_value(src or "")


async def test_a_job_under_way_is_asked_for_until_it_is_done(host: Host) -> None:
    made = await host.sidecar.made()
    host.answers("get_generation", job("queued"), job("working"), job("completed", images=[made]))
    await host.page.clock.install()
    await host.open()
    await host.notify("ui/notifications/tool-input", {"arguments": {"prompt": "a cat"}})
    await host.result(job("working")["result"]["structuredContent"])
    await expect(host.view.locator("#doing")).to_have_text("Still working…")
    await host.page.clock.run_for(1_000)
    await expect(host.view.locator("#doing")).to_have_text("Waiting in line…")
    await host.page.clock.run_for(1_000)
    await expect(host.view.locator("#doing")).to_have_text("Still working…")
    await host.page.clock.run_for(1_000)
    await expect(host.picture).to_be_visible()
    assert host.calls == [("get_generation", {"job_id": "job-1", "wait_seconds": 10})] * 3


AWAY = "The image store cannot be asked at the moment."


async def test_a_job_is_asked_for_again_when_the_store_may_be_back(host: Host) -> None:
    made = await host.sidecar.made()
    host.answers(
        "get_generation", job("working", message=AWAY, retry_after_seconds=30), job("completed", images=[made])
    )
    await host.page.clock.install()
    await host.open()
    await host.notify("ui/notifications/tool-input", {"arguments": {"prompt": "a cat"}})
    await host.result(job("working")["result"]["structuredContent"])
    await host.page.clock.run_for(1_000)
    await expect(host.view.locator("#doing")).to_have_text("The image store is away; asking again…")
    await host.page.clock.run_for(29_000)
    assert len(host.calls) == 1
    await host.page.clock.run_for(1_000)
    await expect(host.picture).to_be_visible()


async def test_a_key_of_which_nothing_is_known_shows_the_sentence_that_says_so(host: Host) -> None:
    await host.open()
    await host.notify("ui/notifications/tool-input", {"arguments": {"prompt": "a cat"}})
    unknown = job("working", message=AWAY, retry_after_seconds=30)["result"]["structuredContent"]
    await host.result({**unknown, "job_id": None})
    await expect(host.view.get_by_role("alert")).to_have_text(AWAY)
    assert host.calls == []


async def test_a_job_that_fails_shows_its_sentence(host: Host) -> None:
    host.answers("get_generation", job("failed", message="The painter fell asleep."))
    await host.open()
    await host.notify("ui/notifications/tool-input", {"arguments": {"prompt": "a cat"}})
    await host.result(job("working")["result"]["structuredContent"])
    await expect(host.view.get_by_role("alert")).to_have_text("The painter fell asleep.")


async def test_a_page_that_is_torn_down_asks_for_nothing_more(host: Host) -> None:
    host.answers("get_generation", *[job("working")] * 9)
    await host.page.clock.install()
    await host.open()
    await host.notify("ui/notifications/tool-input", {"arguments": {"prompt": "a cat"}})
    await host.result(job("working")["result"]["structuredContent"])
    await host.page.clock.run_for(1_000)
    await host.page.wait_for_function("host.heard.some((said) => said.params?.name === 'get_generation')")
    answer = await host.page.evaluate("host.request('ui/resource-teardown', { reason: 'the chat was closed' })")
    assert answer["result"] == {}
    before = await host.page.evaluate("host.heard.length")
    await host.page.clock.run_for(60_000)
    assert (await host.page.evaluate("host.heard.length"), len(host.calls)) == (before, 1)


async def test_a_job_that_never_ends_is_not_asked_for_for_ever(host: Host) -> None:
    async def half_an_hour(_arguments: dict[str, Any]) -> dict[str, Any]:
        await host.page.clock.fast_forward(31 * 60_000)
        return job("working")

    host.scripted["get_generation"] = deque([half_an_hour])
    await host.page.clock.install()
    await host.open()
    await host.notify("ui/notifications/tool-input", {"arguments": {"prompt": "a cat"}})
    await host.result(job("working")["result"]["structuredContent"])
    await expect(host.view.locator("#doing")).to_have_text("Still working…")
    await host.page.clock.run_for(1_000)
    await expect(host.view.get_by_role("alert")).to_contain_text("still being made")
    assert len(host.calls) == 1


async def test_a_server_without_that_tool_ends_the_wait_at_once(host: Host) -> None:
    await host.open()
    await host.notify("ui/notifications/tool-input", {"arguments": {"prompt": "a cat"}})
    host.answers("get_generation", {"error": {"code": -32602, "message": "Unknown tool 'get_generation'."}})
    await host.result(job("working")["result"]["structuredContent"])
    await expect(host.view.get_by_role("alert")).to_have_text("Unknown tool 'get_generation'.")
    assert len(host.calls) == 1


async def test_a_host_that_passes_no_calls_on_offers_none(host: Host) -> None:
    await host.open(capabilities={"openLinks": {}})
    await host.model_calls()
    await expect(host.view.get_by_role("button", name="Copy link")).to_be_visible()
    await expect(host.view.locator("#again")).to_be_hidden()


async def test_a_list_is_a_grid_whose_images_open_large(host: Host) -> None:
    made = [await host.sidecar.made(seed=seed) for seed in (1, 2, 3)]
    about = {"image_id": made[1]["image_id"], "prompt": "a red boat", "num_inference_steps": 12}
    host.answers("get_image_metadata", {"result": {"content": [], "structuredContent": about}})
    more = {"content": [], "structuredContent": {"images": made[2:], "next_cursor": None}}
    host.answers("list_generated_images", {"result": more})
    await host.open()
    await host.notify("ui/notifications/tool-input", {"arguments": {"limit": 2}})
    await host.result({"images": made[:2], "next_cursor": "c1"})
    tiles = host.view.locator("#grid button")
    await expect(tiles).to_have_count(2)
    await host.view.get_by_role("button", name="Show more").click()
    await expect(tiles).to_have_count(3)
    await expect(host.view.locator("#more")).to_be_hidden()

    await tiles.nth(1).click()

    await expect(host.picture).to_have_attribute("src", made[1]["url"])
    await expect(host.view.locator("#prompt")).to_have_text("a red boat")
    await host.view.locator("#again").click()
    await expect(host.view.locator("#status")).to_contain_text("New image, seed")
    await host.page.keyboard.press("Escape")
    await expect(tiles).to_have_count(4)
    assert [name for name, _ in host.calls] == ["list_generated_images", "get_image_metadata", "generate_image"]
    assert host.calls[0][1] == {"limit": 2, "cursor": "c1"}
    assert {**host.calls[2][1], "seed": 0} == {"prompt": "a red boat", "num_inference_steps": 12, "seed": 0}


async def test_a_list_goes_by_keyboard_and_back_to_where_one_was(host: Host) -> None:
    made = [await host.sidecar.made(seed=seed) for seed in (1, 2)]
    host.answers("get_image_metadata", *[{"error": {"code": -32602, "message": "no such tool"}}] * 2)
    await host.open()
    await host.notify("ui/notifications/tool-input", {"arguments": {}})
    await host.result({"images": made, "next_cursor": None})
    await host.view.locator("#grid button").nth(1).focus()
    await host.page.keyboard.press("Enter")
    await expect(host.view.locator("#back")).to_be_focused()
    await expect(host.view.locator("#again")).to_be_hidden()
    await host.page.keyboard.press("Escape")
    await expect(host.view.locator("#grid button").nth(1)).to_be_focused()


async def test_an_empty_list_says_so(host: Host) -> None:
    await host.open()
    await host.notify("ui/notifications/tool-input", {"arguments": {}})
    await host.result({"images": [], "next_cursor": None})
    await expect(host.view.locator("#note")).to_have_text("There are no images yet.")
    await expect(host.view.locator("#stage")).to_be_hidden()


@pytest.mark.parametrize("width", [300, 420, 760, 1400])
async def test_nothing_sticks_out_at_any_width(width: int, host: Host) -> None:
    await host.page.set_viewport_size({"width": width, "height": 900})
    await host.open()
    await host.model_calls(prompt="x" * 400, negative_prompt="y" * 300, num_images=3)
    await expect(host.picture).to_be_visible()
    overflow = "root => root.scrollWidth - root.clientWidth"
    assert await host.view.locator("html").evaluate(overflow) == 0
    for button in await host.view.locator("#actions button").all():
        box = await button.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


async def test_the_page_answers_pings_and_refuses_what_it_does_not_know(host: Host) -> None:
    await host.open()
    assert (await host.page.evaluate("host.request('ping', {})"))["result"] == {}
    assert (await host.page.evaluate("host.request('tools/list', {})"))["error"]["code"] == -32601


async def test_messages_of_other_windows_are_not_heard(host: Host) -> None:
    await host.open()
    await host.model_calls()
    forged = {"jsonrpc": "2.0", "method": "ui/notifications/tool-cancelled", "params": {"reason": "forged"}}
    await host.view.locator("html").evaluate("(_, message) => window.postMessage(message, '*')", forged)
    assert (await host.page.evaluate("host.request('ping', {})"))["result"] == {}
    await expect(host.view.get_by_role("alert")).to_be_hidden()


async def test_images_of_a_server_under_another_name_are_shown_as_declared(
    start_sidecar: StartSidecar, context: BrowserContext, aiohttp_server: Any
) -> None:
    sidecar = await start_sidecar()
    port = urlsplit(sidecar.url).port
    named = await start_sidecar(PUBLIC_BASE_URL=f"http://localhost:{port}")
    host = await a_host(named, context, aiohttp_server)
    await host.open()
    await host.model_calls()
    await expect(host.picture).to_be_visible()
    assert (await host.picture.get_attribute("src") or "").startswith(f"http://localhost:{port}/images/")
