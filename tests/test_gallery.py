"""The gallery over HTTP: what its pages say, to whom, and what they never say."""

from __future__ import annotations

import asyncio
import gzip
import re
import shutil
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest

from sidecar.config import read_settings
from sidecar.domain import RecordPage
from sidecar.edge.gallery import views, wording
from sidecar.edge.gallery.markup import Html, fill
from sidecar.edge.gallery.status import Standing
from tests.browsing import Page, look
from tests.conftest import Sidecar, StartSidecar
from tests.fake_kserve import FakeKServe, succeed_when

UNKNOWN = "0" * 43
POLICY = (
    "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)


async def test_images_are_listed_newest_first_with_what_a_browser_needs_to_place_them(sidecar: Sidecar) -> None:
    first = await sidecar.made(prompt="a lighthouse", width=1024, height=512)
    second = await sidecar.made(prompt="a fox")
    status, page, text = await look(sidecar)
    assert (status, page.prompts) == (200, ["a fox", "a lighthouse"])
    assert page.all("img", loading="lazy") == [
        {
            "src": f"./images/{image['image_id']}/thumbnail",
            "width": width,
            "height": height,
            "alt": alt,
            "loading": "lazy",
            "decoding": "async",
        }
        for image, width, height, alt in [(second, "64", "64", "a fox"), (first, "512", "256", "a lighthouse")]
    ]
    assert f'href="./gallery/{first["image_id"]}"' in text
    assert "just now" in page.text
    assert (await sidecar.get(f"/images/{first['image_id']}/thumbnail"))[0].status == 200


async def test_every_page_forbids_what_it_does_not_need_and_is_never_kept(sidecar: Sidecar) -> None:
    image = await sidecar.made()
    for path in ("/", f"/gallery/{image['image_id']}", "/?cursor=x", f"/gallery/{UNKNOWN}", "/gallery/status"):
        headers = (await sidecar.get(path))[0].headers
        assert headers["Content-Security-Policy"] == POLICY
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
    _, page, text = await look(sidecar)
    assert not re.search(r"\son\w+=|\sstyle=|<style|javascript:", text)
    assert [script["src"].split("?")[0] for script in page.all("script")] == ["./gallery/assets/gallery.js"]


async def test_nothing_yet_is_answered_with_how_to_make_the_first_image(sidecar: Sidecar) -> None:
    status, page, _ = await look(sidecar)
    assert (status, page.prompts, page.all("form", role="search")) == (200, [], [])
    assert f"claude mcp add --transport http images {sidecar.url}/mcp" in page.text


async def test_the_first_image_is_made_through_the_public_address(start_sidecar: StartSidecar) -> None:
    sidecar = await start_sidecar(PUBLIC_BASE_URL="https://img.example.org/svc")
    assert "images https://img.example.org/svc/mcp" in (await look(sidecar))[1].text


async def test_the_list_is_filtered_by_model_and_by_words_of_the_prompt(sidecar: Sidecar) -> None:
    for prompt in ("a red fox", "a lighthouse", "A FOX at night"):
        await sidecar.made(prompt=prompt)
    assert (await look(sidecar, "/?prompt=fox&model="))[1].prompts == ["A FOX at night", "a red fox"]
    assert (await look(sidecar, "/?prompt=fox&model=painter"))[1].prompts == ["A FOX at night", "a red fox"]
    _, page, text = await look(sidecar, "/?prompt=%22%3E%3Cb%3Efox&model=other")
    assert (page.prompts, "No image fits" in page.text) == ([], True)
    assert [field["value"] for field in page.all("input")] == ['"><b>fox']
    assert "<option selected>other</option>" in text
    assert page.way("Clear", text) == "/"


async def test_older_images_are_one_link_away_and_the_filter_goes_along(sidecar: Sidecar) -> None:
    for batch in range(7):
        await sidecar.made(prompt=f"batch {batch}", num_images=4)
    seen = []
    path: str | None = "/?prompt=batch"
    while path is not None:
        _, page, text = await look(sidecar, path)
        seen.append(page.prompts)
        path = page.way("Older", text)
    everything = [f"batch {batch}" for batch in range(6, -1, -1) for _ in range(4)]
    assert seen == [everything[:24], everything[24:]]
    assert page.way("Newest", text) == "/?prompt=batch"


def site() -> views.Site:
    return views.Site(
        root=".",
        public_base_url=None,
        now=datetime.now(UTC),
        standing=Standing(summary="Idle", state="idle", troubles=()),
    )


@pytest.mark.parametrize(
    ("found", "cursor", "said", "ways"),
    [
        (RecordPage(records=(), cursor="abc"), None, "None of the images looked through fits.", ["Keep looking"]),
        (RecordPage(records=(), cursor="abc"), "x", "None of the images looked", ["Newest", "Keep looking"]),
        (RecordPage(records=()), "x", "There are no older images.", ["Newest"]),
    ],
)  # fmt: skip
def test_a_page_without_an_image_says_whether_there_may_be_more(
    found: RecordPage, cursor: str | None, said: str, ways: list[str]
) -> None:
    chosen = views.Filter(prompt="fox")
    text = views.list_page(site(), found, chosen=chosen, models=["painter"], cursor=cursor, mcp_url="…").markup
    assert said in text
    assert re.findall(r'<a class="button" href="\./\?[^"]*">([^<]*)</a>', text) == ways


async def test_the_page_of_an_image_tells_everything_it_was_made_with(start_sidecar: StartSidecar) -> None:
    sidecar = await start_sidecar(RUNTIME_PROFILE="diffusers-seed")
    image = await sidecar.made(
        prompt="a fox", negative_prompt="text", seed=7, width=128, num_inference_steps=30, guidance_scale=7.5
    )
    status, page, text = await look(sidecar, f"/gallery/{image['image_id']}")
    rows = dict(re.findall(r'<div><dt>([^<]*)</dt><dd dir="auto">(.*?)</dd></div>', text, re.DOTALL))
    plain = {name: re.sub(r"<[^>]*>", "", value) for name, value in rows.items()}
    assert (status, page.all("img", **{"class": "whole"})[0]["src"]) == (200, f"../images/{image['image_id']}.png")
    assert plain.pop("Took").endswith("s in the queue")
    assert plain.pop("File").startswith("PNG, ")
    assert plain.pop("Created").endswith(" UTC")
    assert plain.pop("Expires").endswith("UTC (in 23 hours)")
    assert plain == {
        "Model": "painter",
        "Negative prompt": "text",
        "Seed": "7",
        "Size": f"{image['width']} × {image['height']} pixels",
        "Steps": "30",
        "Guidance scale": "7.5",
        "Image id": image["image_id"],
        "SHA-256": image["sha256"],
    }


async def test_what_was_asked_for_and_not_given_is_told(start_sidecar: StartSidecar, kserve: FakeKServe) -> None:
    sidecar = await start_sidecar(IMAGE_TTL="0")
    ready = asyncio.Event()
    ready.set()
    kserve.script.append(succeed_when(ready))
    image = await sidecar.made(seed=7)
    text = (await look(sidecar, f"/gallery/{image['image_id']}"))[1].text
    assert "7 (the runtime may not have used it)" in text
    assert "never" in text


async def test_the_link_to_hand_on_starts_with_the_public_address(start_sidecar: StartSidecar) -> None:
    sidecar = await start_sidecar(PUBLIC_BASE_URL="https://img.example.org/svc")
    image = await sidecar.made()
    for path in ("/", f"/gallery/{image['image_id']}"):
        page = (await look(sidecar, path))[1]
        assert page.all("div", **{"class": "actions"})[0]["data-link"] == image["url"]
        assert not any(found.get("src", "").startswith("http") for found in page.all("img"))


HOSTILE = [
    "<script>alert(1)</script>",
    "</title></style><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" x=\'',
    "&lt;b&gt; &amp; &#39;",
    "\u202eevil\u202c שלום עולם",
    "${root} $root $$ {{7*7}} %s",
    "a\u0000b\u0007c",
    "]]><!-- -->",
    "javascript:alert(1)",
]


@pytest.mark.parametrize("prompt", HOSTILE)
async def test_a_stored_prompt_is_text_and_never_markup(prompt: str, sidecar: Sidecar) -> None:
    plain = await sidecar.made(prompt="plain", negative_prompt="plain")
    _, list_before, _ = await look(sidecar)
    _, before, _ = await look(sidecar, f"/gallery/{plain['image_id']}")
    assert (await sidecar.get(f"/images/{plain['image_id']}", method="DELETE"))[0].status == 204
    image = await sidecar.made(prompt=prompt, negative_prompt=prompt)
    _, listed, _ = await look(sidecar)
    _, page, _ = await look(sidecar, f"/gallery/{image['image_id']}")
    assert shape(listed) == shape(list_before)
    assert shape(page) == shape(before)
    assert page.text.count(prompt) >= 2


def shape(page: Page) -> list[tuple[str, list[str]]]:
    """A page without its texts and values."""
    return [(tag, sorted(attributes)) for tag, attributes in page.tags]


async def test_a_long_prompt_is_bounded_in_the_list_and_whole_on_its_page(sidecar: Sidecar) -> None:
    prompt = "a very long tale " * 100
    image = await sidecar.made(prompt=prompt.strip())
    _, listed, _ = await look(sidecar)
    _, page, _ = await look(sidecar, f"/gallery/{image['image_id']}")
    assert [len(alt) for alt in listed.prompts] == [160]
    assert prompt.strip() in page.text


def test_markup_comes_from_templates_alone() -> None:
    assert fill("code", text='<b a="1">&\'\ud800').markup == "<code>&lt;b a=&quot;1&quot;&gt;&amp;&#x27;?</code>"
    assert fill("code", text=Html("<b>bold</b>")).markup == "<code><b>bold</b></code>"
    with pytest.raises(KeyError):
        fill("way", url="./")


async def test_a_deleted_image_is_gone_from_everywhere_and_deleting_it_again_is_as_good(sidecar: Sidecar) -> None:
    image, other = await sidecar.made(prompt="a fox"), await sidecar.made(prompt="a hen")
    url = f"/images/{image['image_id']}"
    response, body = await sidecar.get(url, method="DELETE", headers={"Origin": sidecar.url})
    assert (response.status, body) == (204, b"")
    assert (await sidecar.get(url))[0].status == 404
    assert (await sidecar.get(f"{url}/thumbnail"))[0].status == 404
    assert (await look(sidecar, f"/gallery/{image['image_id']}"))[0] == 404
    assert (await look(sidecar))[1].prompts == ["a hen"]
    assert not any(image["image_id"] in name for name in sidecar.stored())
    assert (await sidecar.get(url, method="DELETE"))[0].status == 204
    assert (await sidecar.get(f"/images/{other['image_id']}.png", method="DELETE"))[0].status == 204
    assert sidecar.stored() == []


async def test_of_many_who_delete_an_image_at_once_all_are_content(sidecar: Sidecar) -> None:
    image = await sidecar.made()
    deletes = (sidecar.get(f"/images/{image['image_id']}", method="DELETE") for _ in range(10))
    assert {response.status for response, _ in await asyncio.gather(*deletes)} == {204}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example.org"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example.org"}, 421),
        ({"Host": "evil.example.org", "Origin": "http://evil.example.org"}, 421),
    ],
)
async def test_pages_and_names_of_elsewhere_may_not_delete(
    headers: dict[str, str], status: int, sidecar: Sidecar
) -> None:
    url = f"/images/{(await sidecar.made())['image_id']}"
    assert (await sidecar.get(url, method="DELETE", headers=headers))[0].status == status
    assert (await sidecar.get(url))[0].status == 200


@pytest.mark.parametrize("path", ["/", f"/gallery/{UNKNOWN}", "/gallery/status", "/gallery/assets/gallery.css"])
async def test_the_gallery_answers_to_no_host_of_elsewhere(path: str, sidecar: Sidecar) -> None:
    assert (await sidecar.get(path, headers={"Host": "evil.example.org"}))[0].status == 421


@pytest.mark.parametrize("image_id", [UNKNOWN, "x", "%3Cscript%3E", "..%2f..%2fsecret", "%00", "%ff", "a" * 7000])
async def test_an_id_that_is_none_is_a_page_that_says_so(image_id: str, sidecar: Sidecar) -> None:
    status, page, text = await look(sidecar, f"/gallery/{image_id}")
    assert (status, "it may have expired or been deleted" in page.text) == (404, True)
    assert page.way("All images", text) == "./"
    assert "Traceback" not in text
    deleted, _ = await sidecar.get(f"/images/{image_id}", method="DELETE")
    assert deleted.status == (204 if image_id == UNKNOWN else 404)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("cursor=x", "cursor: not one that this server gave"),
        ("cursor=%00", "cursor: not one that this server gave"),
        (f"cursor={'z' * 150}", "cursor: not one that this server gave"),
        (f"prompt={'a' * 201}", "prompt: at most 200 characters, please."),
        (f"model={'%F0%9F%90%88' * 201}", "model: at most 200 characters, please."),
    ],
)
async def test_a_question_that_makes_no_sense_is_a_page_that_says_what_was_wrong(
    query: str, said: str, sidecar: Sidecar
) -> None:
    status, page, text = await look(sidecar, f"/?{query}")
    assert (status, said in page.text, "Traceback" in text) == (400, True, False)


@pytest.mark.parametrize("query", ["?", "?cursor=", "?prompt=%20&model=%20", "?page=7", "?prompt=%ff%fe", "?prompt=[("])
async def test_an_odd_question_is_no_error(query: str, sidecar: Sidecar) -> None:
    assert (await look(sidecar, f"/{query}"))[0] == 200


async def test_a_store_in_trouble_is_a_page_that_says_so(sidecar: Sidecar) -> None:
    image = await sidecar.made()
    shutil.rmtree(sidecar.store)
    response, body = await sidecar.get("/")
    assert (response.status, "Retry-After" in response.headers) == (503, True)
    assert b"The image store" in body
    assert b"Traceback" not in body
    deleted, told = await sidecar.get(f"/images/{image['image_id']}", method="DELETE")
    assert (deleted.status, b"Traceback" in told) == (503, False)


async def test_an_expired_image_is_not_shown_though_nobody_has_swept(start_sidecar: StartSidecar) -> None:
    sidecar = await start_sidecar(IMAGE_TTL="400ms", CLEANUP_INTERVAL="1h")
    image = await sidecar.made()
    async with asyncio.timeout(30):
        while (await look(sidecar))[1].prompts:
            await asyncio.sleep(0.05)
    assert (await look(sidecar, f"/gallery/{image['image_id']}"))[0] == 404


async def test_the_images_of_one_call_stand_in_the_order_asked_for(sidecar: Sidecar) -> None:
    await sidecar.made(prompt="older")
    result = await sidecar.generate(prompt="four", num_images=4, result="link")
    _, page, _ = await look(sidecar)
    asked = [f"./images/{image['image_id']}/thumbnail" for image in result.structured_content["images"]]
    assert [image["src"] for image in page.all("img", loading="lazy")][:4] == asked


async def test_assets_may_be_kept_for_ever_at_the_address_of_their_content(sidecar: Sidecar) -> None:
    _, page, _ = await look(sidecar)
    found = [
        page.all("link", rel="stylesheet")[0]["href"],
        page.all("script")[0]["src"],
        page.all("link", type="image/svg+xml")[0]["href"],
    ]
    types = []
    for url in found:
        response, body = await sidecar.get(url.removeprefix("."))
        assert (response.status, bool(body)) == (200, True)
        assert response.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        types.append(response.headers["Content-Type"])
    assert types == ["text/css; charset=utf-8", "text/javascript; charset=utf-8", "image/svg+xml; charset=utf-8"]
    response, _ = await sidecar.get("/gallery/assets/gallery.css?v=another")
    assert (response.status, response.headers["Cache-Control"]) == (200, "no-cache")
    for name in ("pages.py", "..%2fpages.py", "%2e%2e/pages.py", "layout.html"):
        assert (await sidecar.get(f"/gallery/assets/{name}"))[0].status == 404


async def test_head_answers_as_get_does_without_the_body(sidecar: Sidecar) -> None:
    plain = {"Accept-Encoding": "identity"}
    got, body = await sidecar.get("/", headers=plain)
    head, nothing = await sidecar.get("/", method="HEAD", headers=plain)
    assert (head.status, nothing, head.headers["Content-Length"]) == (200, b"", str(len(body)))
    assert head.headers["Content-Type"] == got.headers["Content-Type"] == "text/html; charset=utf-8"


async def raw(sidecar: Sidecar, path: str, **headers: str) -> tuple[aiohttp.ClientResponse, bytes]:
    """An answer as it came, not unpacked."""
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        async with session.get(f"{sidecar.url}{path}", headers={"Accept-Encoding": "gzip", **headers}) as response:
            return response, await response.read()


async def test_pages_and_assets_are_compressed_where_the_browser_takes_it(sidecar: Sidecar) -> None:
    image = await sidecar.made()
    for path in ("/", f"/gallery/{image['image_id']}", "/gallery/assets/gallery.css", "/gallery/assets/gallery.js"):
        response, body = await raw(sidecar, path)
        plain, text = await raw(sidecar, path, **{"Accept-Encoding": "identity"})
        refused, _ = await raw(sidecar, path, **{"Accept-Encoding": "br, gzip;q=0"})
        assert response.headers["Content-Encoding"] == "gzip", path
        assert response.headers["Vary"] == plain.headers["Vary"] == "Accept-Encoding"
        assert "Content-Encoding" not in plain.headers
        assert "Content-Encoding" not in refused.headers
        assert len(body) < len(text) / 2
        assert len(gzip.decompress(body)) == len(text)
    for path in (f"/images/{image['image_id']}.png", f"/images/{image['image_id']}/thumbnail"):
        assert "Content-Encoding" not in (await raw(sidecar, path))[0].headers


async def test_a_page_that_repeats_a_text_of_its_address_is_not_compressed(sidecar: Sidecar) -> None:
    """Its length would tell a stranger who chose that text what else is in it (BREACH)."""
    assert "Content-Encoding" not in (await raw(sidecar, "/?prompt=fox"))[0].headers


async def test_each_encoding_of_an_asset_has_an_etag_of_its_own(sidecar: Sidecar) -> None:
    path = "/gallery/assets/gallery.css"
    zipped, _ = await raw(sidecar, path)
    plain, _ = await raw(sidecar, path, **{"Accept-Encoding": "identity"})
    assert zipped.headers["ETag"] != plain.headers["ETag"]
    for etag in (zipped.headers["ETag"], f"W/{zipped.headers['ETag']}", '"x", ' + zipped.headers["ETag"], "*"):
        response, body = await raw(sidecar, path, **{"If-None-Match": etag})
        assert (response.status, body) == (304, b"")
        assert response.headers["ETag"] == zipped.headers["ETag"]
        assert response.headers["Vary"] == "Accept-Encoding"
    assert (await raw(sidecar, path, **{"If-None-Match": plain.headers["ETag"]}))[0].status == 200


@pytest.mark.parametrize(
    ("environment", "on"),
    [
        ({}, True),
        ({"LISTEN_HOST": "localhost"}, True),
        ({"LISTEN_HOST": "::1"}, True),
        ({"LISTEN_HOST": "127.8.8.8"}, True),
        ({"LISTEN_HOST": "0.0.0.0"}, False),
        ({"LISTEN_HOST": "::"}, False),
        ({"LISTEN_HOST": "10.1.2.3"}, False),
        ({"LISTEN_HOST": "127.0.0.1,::1"}, True),
        ({"LISTEN_HOST": "127.0.0.1,10.1.2.3"}, False),
        ({"LISTEN_HOST": "images.example.org"}, False),
        ({"GALLERY": "on", "LISTEN_HOST": "0.0.0.0"}, True),
        ({"GALLERY": "off"}, False),
        ({"GALLERY": "auto", "LISTEN_HOST": "127.0.0.1"}, True),
    ],
)
def test_it_is_on_where_only_this_machine_can_look_unless_told_otherwise(environment: dict[str, str], on: bool) -> None:
    assert read_settings(environment).listen.gallery is on


@pytest.mark.parametrize("environment", [{"GALLERY": "off"}, {"LISTEN_HOST": "0.0.0.0"}])
async def test_where_it_is_off_there_is_nothing_to_see_and_nothing_to_delete(
    environment: dict[str, str], start_sidecar: StartSidecar
) -> None:
    sidecar = await start_sidecar(**environment)
    url = f"/images/{(await sidecar.made())['image_id']}"
    for path in ("/", "/gallery/status", "/gallery/assets/gallery.css", f"/gallery/{url.rsplit('/', 1)[1]}"):
        assert (await sidecar.get(path))[0].status == 404
    assert (await sidecar.get(url, method="DELETE"))[0].status == 405
    assert (await sidecar.get(url))[0].status == 200


NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "just now"), (-5, "just now"), (59.9, "just now"), (60, "1 minute ago"), (7199, "1 hour ago"),
     (7200, "2 hours ago"), (86400, "1 day ago"), (40 * 86400, "40 days ago")],
)  # fmt: skip
def test_times_are_told_in_their_largest_whole_unit(seconds: float, said: str) -> None:
    assert wording.ago(NOW - timedelta(seconds=seconds), NOW) == said


@pytest.mark.parametrize(
    ("size", "said"), [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (3 * 2**20, "3.0 MiB")]
)
def test_sizes_are_told_in_a_fitting_unit(size: int, said: str) -> None:
    assert wording.byte_size(size) == said
