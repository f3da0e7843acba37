"""A dead link opened in a browser is a page; for every other client it stays what it was (issue 14)."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest

from tests.browsing import look
from tests.conftest import Sidecar, StartSidecar

UNKNOWN = "0" * 43
BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"}
IMG_ELEMENT = {"Accept": "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"}


@pytest.mark.parametrize("path", [f"/images/{UNKNOWN}.png", f"/images/{UNKNOWN}", f"/images/{UNKNOWN}/thumbnail"])
async def test_a_dead_image_link_is_a_page_for_a_browser_and_json_for_everyone_else(
    path: str, sidecar: Sidecar
) -> None:
    status, page, text = await look(sidecar, path, headers=BROWSER)
    assert (status, "Image not found" in page.text) == (404, True)
    assert "It has expired or been deleted" in page.text
    assert "deleted after 1 day" in page.text
    for accept in (IMG_ELEMENT, {"Accept": "*/*"}, {"Accept": "application/json, text/html;q=0.5"}, {"Accept": ""}):
        response, body = await sidecar.get(path, headers=accept)
        assert (response.status, response.content_type) == (404, "application/json")
        assert b'"reason": "image_not_found"' in body
    assert page.way("All images", text) == "/.." * (path.count("/") - 1) + "/"


async def test_an_image_that_was_deleted_is_such_a_page(sidecar: Sidecar) -> None:
    image = await sidecar.made()
    assert (await sidecar.get(image["url"], headers=BROWSER))[0].content_type == "image/png"
    await sidecar.get(f"/images/{image['image_id']}", method="DELETE")
    response, _ = await sidecar.get(image["url"], headers=BROWSER)
    assert (response.status, response.content_type) == (404, "text/html")


async def test_the_page_forbids_everything_but_its_own_style_and_is_kept_by_nobody(sidecar: Sidecar) -> None:
    response, body = await sidecar.get(f"/images/{UNKNOWN}", headers=BROWSER)
    (style,) = re.findall(r"<style>(.*?)</style>", body.decode(), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert response.headers["Content-Security-Policy"] == (
        f"default-src 'none'; img-src 'self'; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Vary"] == "Accept"
    head, nothing = await sidecar.get(f"/images/{UNKNOWN}", headers=BROWSER, method="HEAD")
    assert (head.status, nothing, head.headers["Content-Length"]) == (404, b"", str(len(body)))


@pytest.mark.parametrize("path", ["/nothing", "/nothing/here", "/%3Cscript%3Ealert(1)%3C/script%3E", "/images/"])
async def test_an_unknown_address_is_a_page_for_a_browser(path: str, sidecar: Sidecar) -> None:
    status, page, text = await look(sidecar, path, headers=BROWSER)
    assert (status, "There is nothing here" in page.text) == (404, True)
    assert "alert" not in text
    response, body = await sidecar.get(path)
    assert (response.status, response.content_type, body) == (404, "text/plain", b"404: Not Found")


async def test_the_mcp_address_opened_in_a_browser_says_what_it_is_for(sidecar: Sidecar) -> None:
    response, body = await sidecar.get("/mcp", headers=BROWSER)
    assert (response.status, response.headers["Allow"]) == (405, "POST")
    assert b"This address is for MCP clients" in body
    plain, _ = await sidecar.get("/mcp", headers={"Accept": "text/event-stream"})
    assert (plain.status, plain.content_type) == (405, "text/plain")


async def test_where_the_gallery_is_off_the_page_leads_nowhere(start_sidecar: StartSidecar) -> None:
    sidecar = await start_sidecar(GALLERY="off", IMAGE_TTL="0")
    for path in (f"/images/{UNKNOWN}", "/"):
        status, page, _ = await look(sidecar, path, headers=BROWSER)
        assert (status, page.all("a")) == (404, [])
        assert "deleted after" not in page.text


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT"])
async def test_only_what_a_browser_opens_is_a_page(method: str, sidecar: Sidecar) -> None:
    response, _ = await sidecar.get("/nothing", headers=BROWSER, method=method)
    assert (response.status, response.content_type) == (404, "text/plain")


async def test_there_is_an_icon_that_browsers_may_keep(start_sidecar: StartSidecar) -> None:
    sidecar = await start_sidecar(GALLERY="off")
    response, body = await sidecar.get("/favicon.ico")
    assert (response.status, response.content_type, body[:4]) == (200, "image/x-icon", b"\0\0\1\0")
    assert response.headers["Cache-Control"] == "public, max-age=604800"
    again, nothing = await sidecar.get("/favicon.ico", headers={"If-None-Match": response.headers["ETag"]})
    assert (again.status, nothing) == (304, b"")
    assert (await sidecar.get("/favicon.ico", headers={"Host": "evil.example.org"}))[0].status == 421
