"""The gallery's routes.

A page is one request of the store and never kept by a cache, since images expire. What goes wrong is a page too, with
the status that errors_map has for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import hdrs, web

from sidecar.domain import ImageId
from sidecar.edge.errors_map import http_status
from sidecar.edge.gallery import views, wording
from sidecar.edge.gallery.assets import ASSETS
from sidecar.edge.gallery.markup import Html
from sidecar.edge.guard import Handler
from sidecar.edge.images_http import image_id_of
from sidecar.edge.keys import CLOCK, SERVICE, SETTINGS
from sidecar.errors import InvalidRequest, SidecarError

PAGE_IMAGES = 24
LONGEST_FILTER = 200
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
        site = _site(request, root)
        try:
            return _html(await show(request, site), 200, _where_images_are(request))
        except SidecarError as error:
            code, headers = http_status(error)
            return _html(views.error_page(site, code, error.message), code, headers)

    return handler


def _where_images_are(request: web.Request) -> dict[str, str]:
    """A page's policy applies to what its images are redirected to."""
    origin = request.app[SERVICE].link_origin
    return {} if origin is None else {"Content-Security-Policy": _POLICY.format(f" {origin}")}


def _site(request: web.Request, root: str) -> views.Site:
    return views.Site(
        root=root,
        public_base_url=request.app[SETTINGS].listen.public_base_url,
        now=request.app[CLOCK].now(),
        queues=wording.queues(request.app[SERVICE].lanes),
    )


def _html(page: Html, code: int, headers: dict[str, str]) -> web.Response:
    return web.Response(text=page.markup, status=code, content_type="text/html", headers={**_HEADERS, **headers})


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
    """Each model's queue, and all of them in words."""
    lanes = request.app[SERVICE].lanes
    models = [
        {
            "model": name,
            "waiting": lane.queue.waiting,
            "in_flight": lane.queue.in_flight,
            "oldest_wait": round(lane.queue.oldest_wait, 1),
        }
        for name, lane in lanes.items()
    ]
    return web.json_response({"summary": wording.queues(lanes), "models": models}, headers=_HEADERS)


async def asset(request: web.Request) -> web.Response:
    """A file of the pages'. One asked for by another version's address is not kept."""
    found = ASSETS.get(request.match_info["name"])
    if found is None:
        raise web.HTTPNotFound
    lasting = request.query.get("v") == found.version
    headers = {**_HEADERS, hdrs.CACHE_CONTROL: _FOREVER if lasting else "no-cache"}
    return web.Response(body=found.body, content_type=found.media_type, charset="utf-8", headers=headers)


async def delete(request: web.Request) -> web.Response:
    """Delete an image; one that is already gone is as good."""
    await request.app[SERVICE].delete(image_id_of(request))
    return web.Response(status=204, headers={hdrs.CACHE_CONTROL: "no-store"})
