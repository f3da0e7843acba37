"""The gallery in a real Chromium: without script, by keyboard, on a phone, in the dark."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from tests.conftest import Sidecar, StartSidecar, Visit, metric_becomes
from tests.fake_kserve import FakeKServe, say, succeed, succeed_when
from tests.pictures import picture, png_claiming

pytestmark = pytest.mark.real

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page


async def expect_prompts(page: Page, *prompts: str) -> None:
    """The cards there are, in order, their pictures really shown."""
    from playwright.async_api import expect

    await expect(page.locator(".card .prompt")).to_have_text(list(prompts))
    for image in await page.locator(".card img").all():
        await image.scroll_into_view_if_needed()
        await page.wait_for_function(
            "image => image.complete && image.naturalWidth > 0", arg=await image.element_handle()
        )


async def focused(page: Page) -> str:
    """What the keyboard acts on, in the words a screen reader has for it."""
    name = await page.evaluate(
        "(element => element.ariaLabel ?? element.querySelector('img')?.alt ?? element.labels?.[0]?.textContent"
        " ?? element.textContent)(document.activeElement)"
    )
    return str(name).strip()


@pytest.mark.parametrize("script", [True, False])
async def test_everything_can_be_seen_with_and_without_script(script: bool, sidecar: Sidecar, visit: Visit) -> None:
    from playwright.async_api import expect

    await sidecar.made(prompt="a lighthouse")
    await sidecar.made(prompt="a fox", guidance_scale=7.5)
    async with visit(sidecar.url, java_script_enabled=script) as page:
        await expect(page.locator(".card .prompt")).to_have_text(["a fox", "a lighthouse"])
        await expect(page.locator("#status")).to_have_text("Idle")
        await expect(page.get_by_role("button", name="Delete: a fox")).to_have_count(1 if script else 0)
        await page.get_by_label("Prompt contains").fill("FOX")
        await page.get_by_role("button", name="Filter").click()
        await expect(page.locator(".card .prompt")).to_have_text(["a fox"])
        await page.get_by_role("link", name="a fox").click()
        await expect(page.locator("dl.parameters")).to_contain_text("Guidance scale7.5")
        await page.get_by_role("link", name="All images").click()
        await expect(page.locator(".card .prompt")).to_have_text(["a fox", "a lighthouse"])


async def test_a_card_leads_to_the_whole_image_and_its_parameters(
    sidecar: Sidecar, kserve: FakeKServe, visit: Visit
) -> None:
    kserve.script.append(succeed(picture(640, 480)))
    image = await sidecar.made(prompt="a lighthouse", negative_prompt="fog")
    async with visit(sidecar.url) as page:
        await expect_prompts(page, "a lighthouse")
        await page.get_by_role("link", name="a lighthouse").click()
        await page.wait_for_url(f"{sidecar.url}/gallery/{image['image_id']}")
        shown = page.get_by_role("img", name="a lighthouse")
        assert await shown.evaluate(
            "image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])"
        ) == [
            640,
            480,
        ]
        text = await page.locator("dl.parameters").inner_text()
        assert all(part in text for part in ("fog", "640 × 480 pixels", image["sha256"], image["image_id"]))
        await page.get_by_role("link", name="Full size").click()
        await page.wait_for_url(image["url"])  # where the browser styles the picture as it does anywhere


@pytest.mark.parametrize("where", ["", "/gallery/{image_id}"])
async def test_copying_a_link_puts_the_images_address_on_the_clipboard(
    where: str, sidecar: Sidecar, visit: Visit
) -> None:
    from playwright.async_api import expect

    image = await sidecar.made(prompt="a fox")
    allowed = ["clipboard-read", "clipboard-write"]
    async with visit(f"{sidecar.url}{where.format(**image)}", permissions=allowed) as page:
        await page.get_by_role("button", name="Copy link: a fox").click()
        await expect(page.locator("#toast")).to_have_text("Link copied.")
        assert await page.evaluate("navigator.clipboard.readText()") == image["url"]


async def test_where_there_is_no_clipboard_of_the_new_kind_the_link_is_copied_all_the_same(
    sidecar: Sidecar, visit: Visit
) -> None:
    from playwright.async_api import expect

    image = await sidecar.made(prompt="a fox")
    async with visit(sidecar.url, permissions=["clipboard-read"]) as page:
        await page.evaluate("Object.defineProperty(navigator.clipboard, 'writeText', {value: () => Promise.reject()})")
        await page.get_by_role("button", name="Copy link: a fox").click()
        await expect(page.locator("#toast")).to_have_text("Link copied.")
        assert await page.evaluate("navigator.clipboard.readText()") == image["url"]
        assert await focused(page) == "Copy link: a fox"


async def test_an_image_is_deleted_only_once_that_is_confirmed(sidecar: Sidecar, visit: Visit) -> None:
    from playwright.async_api import expect

    for prompt in ("a fox", "a hen", "a cow"):
        await sidecar.made(prompt=prompt)
    async with visit(sidecar.url) as page:
        dialog = page.get_by_role("dialog", name="Delete this image?")
        for way_out in ("Keep it", "Escape"):
            await page.get_by_role("button", name="Delete: a hen").click()
            await expect(dialog).to_contain_text("a hen")
            assert await focused(page) == "Keep it"
            if way_out == "Escape":
                await page.keyboard.press("Escape")
            else:
                await dialog.get_by_role("button", name=way_out).click()
            await expect(dialog).to_be_hidden()
            assert await focused(page) == "Delete: a hen"
        await expect_prompts(page, "a cow", "a hen", "a fox")
        await page.get_by_role("button", name="Delete: a hen").click()
        await dialog.get_by_role("button", name="Delete").click()
        await expect(page.locator("#toast")).to_have_text("Image deleted.")
        await expect_prompts(page, "a cow", "a fox")
        assert await focused(page) == "a fox"
        await page.reload()
        await expect_prompts(page, "a cow", "a fox")


async def test_after_the_last_image_is_deleted_the_page_says_how_to_make_one(sidecar: Sidecar, visit: Visit) -> None:
    from playwright.async_api import expect

    await sidecar.made(prompt="a fox")
    async with visit(sidecar.url) as page:
        await page.get_by_role("button", name="Delete: a fox").click()
        await page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        await expect(page.get_by_role("heading", name="No images yet")).to_be_visible()


async def test_deleting_an_image_on_its_own_page_leads_back_to_the_others(sidecar: Sidecar, visit: Visit) -> None:
    image = await sidecar.made(prompt="a fox")
    await sidecar.made(prompt="a hen")
    async with visit(f"{sidecar.url}/gallery/{image['image_id']}") as page:
        await page.get_by_role("button", name="Delete: a fox").click()
        await page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        await page.wait_for_url(f"{sidecar.url}/")
        await expect_prompts(page, "a hen")


async def test_a_delete_that_fails_says_why_and_the_card_stays(sidecar: Sidecar, visit: Visit) -> None:
    from playwright.async_api import expect

    await sidecar.made(prompt="a fox")
    async with visit(sidecar.url, offline=True) as page:
        await page.context.set_offline(True)
        await page.get_by_role("button", name="Delete: a fox").click()
        await page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        await expect(page.locator("#toast")).to_have_text("The server does not answer; the image has not been deleted.")
        assert await focused(page) == "Delete: a fox"


async def test_all_of_it_can_be_reached_by_keyboard_alone(sidecar: Sidecar, visit: Visit) -> None:
    from playwright.async_api import expect

    for prompt in ("a fox", "a hen"):
        await sidecar.made(prompt=prompt)
    async with visit(sidecar.url) as page:
        stops = []
        for _ in range(9):
            await page.keyboard.press("Tab")
            stops.append(await focused(page))
            outline = "getComputedStyle(document.activeElement).outlineStyle"
            assert await page.evaluate(outline) == "solid" or stops[-1].startswith("Skip")
        assert stops == [
            "Skip to the content",
            "Image sidecar",
            "Prompt contains",
            "Model",
            "Filter",
            "a hen",
            "Copy link: a hen",
            "Delete: a hen",
            "a fox",
        ]
        for key in ("Shift+Tab", "Enter", "Tab", "Enter"):  # back to the hen's Delete, and in the dialog to its Delete
            await page.keyboard.press(key)
        await expect(page.locator(".card .prompt")).to_have_text(["a fox"])
        await page.keyboard.press("Enter")
        await expect(page.locator("dl.parameters")).to_be_visible()
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        assert await page.evaluate("document.activeElement.id") == "main"


PROMPT = "<img src=x onerror=alert(1)><script>alert(2)</script>\"'><svg onload=alert(3)>"


async def test_a_prompt_that_is_markup_is_shown_as_text_and_runs_nothing(sidecar: Sidecar, visit: Visit) -> None:
    from playwright.async_api import expect

    image = await sidecar.made(prompt=PROMPT, negative_prompt=PROMPT)
    async with visit(sidecar.url) as page:
        await expect_prompts(page, PROMPT)
        assert await page.locator(".card img").get_attribute("alt") == PROMPT
        await page.locator("[data-do=delete]").click()
        await expect(page.locator("#confirm-subject")).to_contain_text("<img src=x onerror=alert(1)>")
    async with visit(f"{sidecar.url}/gallery/{image['image_id']}") as page:
        await expect(page.locator(".prompt")).to_have_text(PROMPT)
        await expect(page.locator("dl.parameters")).to_contain_text(PROMPT)
        assert await page.locator("script, [onerror], [onload]").count() == 1  # our own


async def test_the_queue_is_told_as_it_changes_and_new_images_are_offered(
    sidecar: Sidecar, kserve: FakeKServe, visit: Visit
) -> None:
    from playwright.async_api import expect

    await sidecar.made(prompt="a fox")
    async with visit(sidecar.url) as page:
        status = page.get_by_role("status").and_(page.locator("#status"))
        await expect(status).to_have_text("Idle")
        kserve.script.append(succeed_when(release := asyncio.Event()))
        calls = [asyncio.create_task(sidecar.made(prompt=prompt)) for prompt in ("a hen", "a cow")]
        await metric_becomes(sidecar, 'imagegen_queue_depth{model="painter"}', 1)
        await expect(status).to_have_text("1 painting, 1 waiting")
        await expect(page.locator(".fresh")).to_be_hidden()
        release.set()
        await asyncio.gather(*calls)
        await expect(status).to_have_text("Idle")
        await page.get_by_role("link", name="Show the newest").click()
        await expect(page.locator(".card")).to_have_count(3)


async def test_a_server_that_has_gone_is_told(sidecar: Sidecar, visit: Visit) -> None:
    from playwright.async_api import expect

    async with visit(sidecar.url) as page:
        await page.route("**/gallery/status", lambda route: route.fulfill(status=200, body="no JSON"))
        await page.evaluate(COME_BACK)
        await expect(page.locator("#status")).to_have_text("The server does not answer")
        await page.unroute("**/gallery/status")
        await page.evaluate(COME_BACK)
        await expect(page.locator("#status")).to_have_text("Idle")


COME_BACK = "document.dispatchEvent(new Event('visibilitychange'))"
LOOK_AWAY = "Object.defineProperty(document, 'hidden', {get: () => window.away ?? true, configurable: true})"


async def test_a_page_nobody_looks_at_asks_for_nothing(sidecar: Sidecar, visit: Visit) -> None:
    async with visit(sidecar.url) as page:
        await page.clock.install()
        async with page.expect_response("**/gallery/status"):
            await page.evaluate(COME_BACK)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        async with page.expect_request("**/gallery/status"):
            await page.clock.run_for(3_100)
        await page.evaluate(LOOK_AWAY)
        await page.clock.run_for(60_000)
        assert len(asked) == 1
        async with page.expect_request("**/gallery/status"):
            await page.evaluate(f"window.away = false; {COME_BACK}")


@pytest.mark.parametrize("width", [320, 390, 768])
async def test_no_window_is_so_small_that_it_must_be_scrolled_sideways(
    width: int, sidecar: Sidecar, visit: Visit
) -> None:
    image = await sidecar.made(prompt="W" * 400, negative_prompt="M" * 400)
    await sidecar.made(prompt="a fox")
    fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    window: dict[str, Any] = {"viewport": {"width": width, "height": 740}, "has_touch": True, "is_mobile": True}
    for path in ("/", f"/gallery/{image['image_id']}", f"/?prompt={'x' * 200}&model={'y' * 200}"):
        async with visit(f"{sidecar.url}{path}", **window) as page:
            assert await page.evaluate(fits), path
    async with visit(sidecar.url, **window) as page:
        await page.get_by_role("button", name="Delete: a fox").tap()
        assert await page.evaluate(fits)
        box = await page.get_by_role("dialog").bounding_box()
        assert box is not None
        assert 0 <= box["x"] <= box["x"] + box["width"] <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_text_can_be_read_in_the_light_and_in_the_dark(
    scheme: str, sidecar: Sidecar, kserve: FakeKServe, visit: Visit
) -> None:
    image = await sidecar.made(prompt="a fox")
    kserve.script.append(say(400, {"error": "the painter fell asleep"}))
    await sidecar.generate()
    for path in ("/", f"/gallery/{image['image_id']}", "/?prompt=zebra"):
        async with visit(f"{sidecar.url}{path}", color_scheme=scheme) as page:
            ground = luminance(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert (ground < 0.05) == (scheme == "dark")
            colors = await page.evaluate(COLORS)
            assert len(colors) > 5
            assert {text: ratio for text, *pair in colors if (ratio := contrast(*pair)) < 4.5} == {}


COLORS = """() => [...document.querySelectorAll("body *")].filter(element => element.checkVisibility()
    && [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())).map(element => {
  let ground = element;
  while (getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
  return [element.textContent.trim(), getComputedStyle(element).color, getComputedStyle(ground).backgroundColor];
})"""
"""Every visible element with text of its own: the text, its colour and the colour behind it."""


def luminance(color: str) -> float:
    """The relative luminance of `rgb(…)` as WCAG defines it."""
    parts = [int(part) / 255 for part in color.removeprefix("rgb(").removesuffix(")").split(",")]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


async def test_behind_a_path_prefix_every_link_picture_and_script_still_works(
    start_sidecar: StartSidecar, aiohttp_server: Any, visit: Visit
) -> None:
    from playwright.async_api import expect

    backend: list[Sidecar] = []

    async def pass_on(request: web.Request) -> web.Response:
        url = f"{backend[0].url}/{request.match_info['rest']}"
        async with backend[0].session.request(
            request.method, url, params=request.query, headers=request.headers
        ) as answer:
            kept = {
                name: value for name, value in answer.headers.items() if name.startswith(("Content-Sec", "Content-T"))
            }
            return web.Response(status=answer.status, headers=kept, body=await answer.read())

    proxy = web.Application()
    proxy.router.add_route("*", "/svc/{rest:.*}", pass_on)
    public = f"http://127.0.0.1:{(await aiohttp_server(proxy)).port}/svc"
    backend.append(await start_sidecar(PUBLIC_BASE_URL=public))
    await backend[0].made(prompt="a fox")
    image = await backend[0].made(prompt="a hen")
    async with visit(f"{public}/", permissions=["clipboard-read", "clipboard-write"]) as page:
        await expect_prompts(page, "a hen", "a fox")
        await page.get_by_label("Prompt contains").fill("hen")
        await page.get_by_role("button", name="Filter").click()
        await expect_prompts(page, "a hen")
        await page.get_by_role("link", name="Clear").click()
        await page.get_by_role("link", name="a hen").click()
        await page.wait_for_url(f"{public}/gallery/{image['image_id']}")
        await page.get_by_role("button", name="Copy link").click()
        await expect(page.locator("#toast")).to_have_text("Link copied.")
        assert await page.evaluate("navigator.clipboard.readText()") == image["url"]
        await page.get_by_role("button", name="Delete").click()
        await page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        await page.wait_for_url(f"{public}/")
        await expect_prompts(page, "a fox")


async def test_a_picture_without_a_preview_says_so_in_its_place(
    sidecar: Sidecar, kserve: FakeKServe, browser: Browser
) -> None:
    from playwright.async_api import expect

    kserve.script.append(succeed(png_claiming(8192, 8192, random.Random(1).randbytes(200_000))))
    image = await sidecar.made(prompt="a whale")
    page = await browser.new_page()  # whose console tells of the refusal
    await page.goto(sidecar.url)
    tile = page.locator(".tile")
    await expect(tile.get_by_role("img", name="a whale (no preview)")).to_have_text("No preview")
    await expect(tile.locator("img")).to_have_count(0)
    await tile.click()
    await page.wait_for_url(f"{sidecar.url}/gallery/{image['image_id']}")
    await page.close()
