"""The gallery in a real Chromium keeps up with the server by itself, and lies still while it loads (issue 14)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import Sidecar, Visit
from tests.fake_kserve import FakeKServe, say, succeed
from tests.pictures import picture

pytestmark = pytest.mark.real

if TYPE_CHECKING:
    from playwright.async_api import Page, Route

LOOK_AGAIN = "document.dispatchEvent(new Event('visibilitychange'))"
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 800}, "has_touch": True, "is_mobile": True}


async def test_a_runtime_that_went_away_is_told_and_so_is_its_return(
    sidecar: Sidecar, kserve: FakeKServe, visit: Visit
) -> None:
    from playwright.async_api import expect

    await sidecar.until_ready()
    async with visit(sidecar.url) as page:
        await expect(page.locator("#status")).to_have_text("Idle")
        await expect(page.locator("#troubles")).to_be_hidden()
        kserve.readiness = (200, {"name": "painter", "ready": False})
        await expect(page.locator("#status")).to_have_text("Not ready", timeout=30_000)
        await expect(page.locator(".status")).to_have_attribute("data-state", "trouble")
        dot = "getComputedStyle(document.querySelector('.status .dot')).backgroundColor"
        assert await page.evaluate(dot) == "rgb(179, 38, 30)"
        trouble = page.locator("#troubles li")
        await expect(trouble).to_contain_text("painter is not ready: the runtime says that the model is not ready.")
        since = await page.evaluate("Date.parse(document.querySelector('#troubles time').dateTime)")
        assert abs(since - await page.evaluate("Date.now()")) < 60_000
        kserve.readiness = (200, {"name": "painter", "ready": True})
        await expect(page.locator("#status")).to_have_text("Idle", timeout=30_000)
        await expect(page.locator("#troubles")).to_be_hidden()


async def test_an_image_made_between_two_looks_is_noticed_and_shown_in_its_place(
    sidecar: Sidecar, visit: Visit
) -> None:
    from playwright.async_api import expect

    await sidecar.made(prompt="a fox")
    async with visit(sidecar.url) as page:
        await page.evaluate(f"window.sameDocument = true; {LOOK_AGAIN}")
        await expect(page.locator(".fresh")).to_be_hidden()
        await sidecar.made(prompt="a hen")  # the queue is empty before and after
        await page.evaluate(LOOK_AGAIN)
        await page.get_by_role("link", name="Show the newest").click()
        await expect(page.locator(".card .prompt")).to_have_text(["a hen", "a fox"])
        await expect(page.locator(".fresh")).to_be_hidden()
        await expect(page.get_by_role("button", name="Delete: a hen")).to_be_visible()
        for image in await page.locator(".card img").all():
            await expect(image).not_to_have_js_property("naturalWidth", 0)
        await expect(page.locator(".card img")).to_have_count(2)
        async with page.expect_response("**/gallery/status"):
            await page.evaluate(LOOK_AGAIN)
        await expect(page.locator(".fresh")).to_be_hidden()
        assert await page.evaluate("window.sameDocument")


async def test_deleting_an_image_is_not_taken_for_a_new_one(sidecar: Sidecar, visit: Visit) -> None:
    from playwright.async_api import expect

    await sidecar.made(prompt="a fox")
    await sidecar.made(prompt="a hen")
    async with visit(sidecar.url) as page:
        await page.get_by_role("button", name="Delete: a hen").click()
        await page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        await expect(page.locator(".card .prompt")).to_have_text(["a fox"])
        async with page.expect_response("**/gallery/status"):
            await page.evaluate(LOOK_AGAIN)
        await expect(page.locator(".fresh")).to_be_hidden()


async def test_on_an_older_page_the_newest_are_one_link_away(sidecar: Sidecar, visit: Visit) -> None:
    from playwright.async_api import expect

    await sidecar.made(prompt="a fox")
    async with visit(f"{sidecar.url}/?prompt=fox") as page:
        await sidecar.made(prompt="a hen")
        await page.evaluate(LOOK_AGAIN)
        await page.get_by_role("link", name="Show the newest").click()
        await page.wait_for_url(f"{sidecar.url}/")
        await expect(page.locator(".card .prompt")).to_have_text(["a hen", "a fox"])


async def test_the_empty_page_fills_itself(sidecar: Sidecar, visit: Visit) -> None:
    from playwright.async_api import expect

    async with visit(sidecar.url) as page:
        await page.evaluate("window.sameDocument = true")
        await expect(page.get_by_role("heading", name="No images yet")).to_be_visible()
        await sidecar.made(prompt="a fox")
        await page.evaluate(LOOK_AGAIN)
        await expect(page.locator(".card .prompt")).to_have_text(["a fox"])
        await expect(page.locator(".fresh")).to_be_hidden()
        await expect(page.get_by_role("button", name="Copy link: a fox")).to_be_visible()
        assert await page.evaluate("window.sameDocument")


async def test_a_failure_is_told_with_its_reason_until_it_is_dismissed(
    sidecar: Sidecar, kserve: FakeKServe, visit: Visit
) -> None:
    from playwright.async_api import expect

    await sidecar.made(prompt="a fox")
    async with visit(sidecar.url) as page:
        failures = page.get_by_role("region", name="Not made")
        await expect(failures).to_be_hidden()
        for prompt, error in (("a <i>dragon</i>", "asleep"), ("a hen", "awake")):
            kserve.script.append(say(400, {"error": f"the painter is {error}"}))
            await sidecar.generate(prompt=prompt)
            await page.evaluate(LOOK_AGAIN)
            await expect(failures.locator("li").first).to_contain_text(f"the painter is {error}")
            await expect(failures.locator("q").first).to_have_text(prompt)
            await expect(page.locator("#toast")).to_contain_text("An image was not made: The model's runtime refused")
        await expect(failures.locator("li")).to_have_count(2)
        await expect(page.locator(".fresh")).to_be_hidden()
        await failures.get_by_role("button", name="Dismiss").click()
        await expect(failures).to_be_hidden()
        await page.reload()
        async with page.expect_response("**/gallery/status"):
            await page.evaluate(LOOK_AGAIN)
        await expect(failures).to_be_hidden()
        kserve.script.append(say(400, {"error": "the painter left"}))
        await sidecar.generate()
        await page.evaluate(LOOK_AGAIN)
        await expect(failures.locator("li")).to_have_count(1)


async def test_how_old_an_image_is_stays_true_while_the_page_is_open(sidecar: Sidecar, visit: Visit) -> None:
    from playwright.async_api import expect

    await sidecar.made()
    async with visit(sidecar.url) as page:
        await expect(page.locator(".card time")).to_have_text("just now")
        await page.clock.install()
        await page.clock.fast_forward(150_000)
        await page.evaluate(LOOK_AGAIN)
        await expect(page.locator(".card time")).to_have_text("2 minutes ago")


async def test_the_question_whether_to_delete_shows_the_picture(sidecar: Sidecar, visit: Visit) -> None:
    fox, hen = await sidecar.made(prompt="a fox"), await sidecar.made(prompt="a hen")
    async with visit(sidecar.url) as page:
        for image, prompt in ((fox, "a fox"), (hen, "a hen")):
            await page.get_by_role("button", name=f"Delete: {prompt}").click()
            shown = page.locator("#confirm-picture")
            assert await shown.evaluate("image => image.decode().then(() => image.src)") == image["thumbnail_url"]
            assert await shown.is_visible()
            await page.keyboard.press("Escape")


async def test_the_thumbnail_is_there_before_the_whole_picture(
    sidecar: Sidecar, kserve: FakeKServe, visit: Visit
) -> None:
    from playwright.async_api import expect

    kserve.script.append(succeed(picture(640, 480)))
    image = await sidecar.made(prompt="a fox")
    async with visit(sidecar.url) as page:
        release = asyncio.Event()

        async def hold(route: Route) -> None:
            await release.wait()
            await route.continue_()

        await page.route("**/*.png", hold)
        await page.goto(f"{sidecar.url}/gallery/{image['image_id']}", wait_until="domcontentloaded")
        sketch = page.locator("img.sketch")
        await sketch.evaluate("image => image.decode()")
        box, whole = await sketch.bounding_box(), await page.locator("img.whole").bounding_box()
        assert box == whole
        assert box is not None
        assert round(box["width"] / box["height"], 2) == 1.33
        release.set()
        await expect(sketch).to_have_count(0)
        assert await page.locator("img.whole").evaluate("image => image.naturalWidth") == 640


@pytest.mark.parametrize("window", [PHONE, {}], ids=["phone", "desktop"])
@pytest.mark.parametrize(("width", "height"), [(1024, 1024), (512, 1024), (64, 64)])
async def test_nothing_moves_while_the_pictures_come(
    width: int, height: int, window: dict[str, Any], sidecar: Sidecar, kserve: FakeKServe, visit: Visit
) -> None:
    kserve.script.append(succeed(picture(width, height)))
    image = await sidecar.made(prompt="a fox")
    for path in ("/", f"/gallery/{image['image_id']}"):
        async with visit(f"{sidecar.url}{path}", **window) as page:
            assert await layout_shift(page) == 0, path


async def layout_shift(page: Page) -> float:
    await page.wait_for_load_state("networkidle")
    script = """() => new Promise(resolve => {
      let sum = 0;
      const add = entries => entries.getEntries().forEach(entry => { sum += entry.value; });
      new PerformanceObserver(add).observe({type: "layout-shift", buffered: true});
      requestAnimationFrame(() => requestAnimationFrame(() => resolve(sum)));
    })"""
    return float(await page.evaluate(script))


@pytest.mark.parametrize("path", ["/", "/gallery/{image_id}", "/?prompt=fox"])
async def test_whatever_is_touched_is_large_enough_for_a_finger(
    path: str, sidecar: Sidecar, kserve: FakeKServe, visit: Visit
) -> None:
    image = await sidecar.made(prompt="a fox")
    kserve.script.append(say(400, {"error": "asleep"}))
    await sidecar.generate()
    async with visit(f"{sidecar.url}{path.format(**image)}", **PHONE) as page:
        await page.evaluate("document.querySelector('.fresh').hidden = false")
        small = """() => [...document.querySelectorAll("a, button, input, select")]
          .filter(element => element.checkVisibility({visibilityProperty: true}) && !element.matches(".skip"))
          .map(element => [element.getBoundingClientRect(), element.textContent.trim() || element.ariaLabel])
          .filter(([box]) => box.width < 44 || box.height < 44)
          .map(([box, name]) => `${name}: ${box.width} x ${box.height}`)"""
        assert await page.evaluate(small) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_page_of_a_dead_link_has_its_own_style(scheme: str, sidecar: Sidecar, browser: Any) -> None:
    context = await browser.new_context(color_scheme=scheme, **PHONE)
    page = await context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text))
    answer = await page.goto(f"{sidecar.url}/images/{'0' * 43}.png")
    assert answer.status == 404
    assert await page.title() == "Image not found · Image sidecar"
    ground = "rgb(250, 250, 248)" if scheme == "light" else "rgb(18, 18, 17)"
    assert await page.evaluate("getComputedStyle(document.body).backgroundColor") == ground
    assert [told for told in wrong if "404" not in told] == []
    await page.get_by_role("link", name="All images").tap()
    await page.wait_for_url(f"{sidecar.url}/")
    await context.close()
