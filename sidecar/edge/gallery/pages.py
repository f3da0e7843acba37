"""The gallery's routes.

A page is one request of the store and never kept by a cache, since images expire. What goes wrong is a page too, with
the status that errors_map has for it.
"""

from __future__ import annotations

import gzip
from collections.abc import Awaitable, Callable

from aiohttp import hdrs, web

from sidecar.domain import ImageId
from sidecar.edge.errors_map import http_status
from sidecar.edge.gallery import views
from sidecar.edge.gallery.assets import ASSETS
from sidecar.edge.gallery.markup import Html
from sidecar.edge.gallery.status import Status
from sidecar.edge.guard import Handler
from sidecar.edge.images_http import image_id_of
from sidecar.edge.keys import CLOCK, SERVICE, SETTINGS
from sidecar.edge.negotiation import takes_gzip
from sidecar.errors import InvalidRequest, SidecarError

STATUS = web.AppKey("gallery_status", Status)

PAGE_IMAGES = 24
LONGEST_FILTER = 200
_PAGE_COMPRESSION = 5
_FOREVER = "public, max-age=31536000, immutable"
_POLICY = (
    "default-src 'none'; img-src 'self'{}; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY.format(""),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    hdrs.CACHE_CONTROL: "no-store",
}

Show = Callable[[web.Request, views.Site], Awaitable[Html]]


def routes() -> list[web.RouteDef]:
    return [
        web.get("/", _page(".", images)),
        web.get("/gallery/status", status),
        web.get("/gallery/assets/{name}", asset),
        web.get("/gallery/{image_id}", _page("..", image)),
        web.delete("/images/{image_id}", delete),
    ]


def _page(root: str, show: Show) -> Handler:
    """A handler that answers with the page, or with one that says what was wrong."""

    async def handler(request: web.Request) -> web.Response:
        site = await _site(request, root)
        try:
            return _html(request, await show(request, site), 200, _where_images_are(request))
        except SidecarError as error:
            code, headers = http_status(error)
            return _html(request, views.error_page(site, code, error.message), code, headers)

    return handler


def _where_images_are(request: web.Request) -> dict[str, str]:
    """A page's policy applies to what its images are redirected to."""
    origin = request.app[SERVICE].link_origin
    return {} if origin is None else {"Content-Security-Policy": _POLICY.format(f" {origin}")}


async def _site(request: web.Request, root: str) -> views.Site:
    status = request.app[STATUS]
    newest = await status.newest()
    return views.Site(
        root=root,
        public_base_url=request.app[SETTINGS].listen.public_base_url,
        now=request.app[CLOCK].now(),
        standing=status.standing,
        failures=status.failures,
        newest=newest,
    )


def _html(request: web.Request, page: Html, code: int, headers: dict[str, str]) -> web.Response:
    """The page, compressed where the browser takes it.

    Not where it repeats what its address says: beside a text of a stranger's choice the length of a compressed page
    tells what else is in it (BREACH), and an image's id is its key.
    """
    body = page.markup.encode()
    sent = {**_HEADERS, **headers, hdrs.VARY: hdrs.ACCEPT_ENCODING}
    if takes_gzip(request) and request.query.keys() <= {"cursor"}:
        body = gzip.compress(body, _PAGE_COMPRESSION, mtime=0)
        sent[hdrs.CONTENT_ENCODING] = "gzip"
    return web.Response(body=body, status=code, content_type="text/html", charset="utf-8", headers=sent)


async def images(request: web.Request, site: views.Site) -> Html:
    """The newest images, or those after a cursor, of one model or with a text in their prompt."""
    service = request.app[SERVICE]
    chosen = views.Filter(model=_text(request, "model"), prompt=_text(request, "prompt"))
    cursor = _text(request, "cursor")
    found = await service.list_images(
        limit=PAGE_IMAGES, cursor=cursor, model=chosen.model, prompt_contains=chosen.prompt
    )
    base_url = site.public_base_url or str(request.url.origin())
    return views.list_page(site, found, chosen=chosen, models=service.lanes, cursor=cursor, mcp_url=f"{base_url}/mcp")


def _text(request: web.Request, name: str) -> str | None:
    text = request.query.get(name, "").strip()
    if len(text) > LONGEST_FILTER:
        raise InvalidRequest(f"{name}: at most {LONGEST_FILTER} characters, please.")
    return text or None


async def image(request: web.Request, site: views.Site) -> Html:
    stored = await request.app[SERVICE].get(ImageId.parse(request.match_info["image_id"]))
    return views.detail_page(site, stored.record)


async def status(request: web.Request) -> web.Response:
    """How the server is, and by which ids a page notices new images and failures."""
    return web.json_response(await request.app[STATUS].as_json(), headers=_HEADERS)


async def asset(request: web.Request) -> web.Response:
    """A file of the pages'. One asked for by another version's address must be asked for again each time."""
    found = ASSETS.get(request.match_info["name"])
    if found is None:
        raise web.HTTPNotFound
    lasting = request.query.get("v") == found.version
    return found.answer(request, {**_HEADERS, hdrs.CACHE_CONTROL: _FOREVER if lasting else "no-cache"})


async def delete(request: web.Request) -> web.Response:
    """Delete an image; one that is already gone is as good."""
    await request.app[SERVICE].delete(image_id_of(request))
    return web.Response(status=204, headers={hdrs.CACHE_CONTROL: "no-store"})
