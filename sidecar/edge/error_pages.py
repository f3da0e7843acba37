"""What a browser shows where a program gets JSON: one page that stands alone, with its own style and nothing else.

It is there with the gallery on or off, so it uses no file of the gallery's pages.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from datetime import timedelta

from aiohttp import hdrs, web

from sidecar.edge.errors_map import http_status
from sidecar.edge.gallery.markup import Html, fill
from sidecar.edge.gallery.wording import span
from sidecar.edge.keys import SETTINGS
from sidecar.errors import INTERNAL, ImageNotFound, SidecarError

_MARKUP = fill("alone", root=".", title="", text="", action=Html()).markup
_STYLE = _MARKUP[_MARKUP.index("<style>") + len("<style>") : _MARKUP.index("</style>")]
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; "
    f"style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    hdrs.CACHE_CONTROL: "no-store",
    hdrs.VARY: hdrs.ACCEPT,
}

_NO_ROUTE = ("There is nothing here", "No page has this address. This server makes images for MCP clients.")
_NO_GET = (
    "This address is for MCP clients",
    "Add it to your chat client as an MCP server; there is nothing to see in a browser.",
)


def error_page(request: web.Request, error: SidecarError) -> web.Response:
    """The page for an error of ours, with the status and headers that errors_map has for it."""
    status, headers = http_status(error)
    if isinstance(error, ImageNotFound):
        return _page(request, status, "Image not found", _gone(request), headers)
    title = "Not at the moment" if status >= 500 else "That cannot be shown"
    return _page(request, status, title, error.message, headers)


def no_route_page(request: web.Request, answer: web.HTTPException) -> web.Response:
    """The page for an address without a route, or without one for GET."""
    title, text = _NO_ROUTE if answer.status == 404 else _NO_GET
    kept = {str(name): answer.headers[name] for name in (hdrs.ALLOW,) if name in answer.headers}
    return _page(request, answer.status, title, text, kept)


def failure_page(request: web.Request) -> web.Response:
    """The page for what went wrong unexpectedly."""
    return _page(request, 500, "Something went wrong", INTERNAL, {})


def _gone(request: web.Request) -> str:
    settings = request.app.get(SETTINGS)
    ttl = settings.storage.image_ttl if settings is not None else None
    kept = span(timedelta(seconds=ttl)) if ttl is not None else None
    lasting = f" Images on this server are deleted after {kept}." if kept is not None else ""
    return f"It has expired or been deleted, or the link is incomplete.{lasting}"


def _page(request: web.Request, status: int, title: str, text: str, headers: Mapping[str, str]) -> web.Response:
    root = "/".join([".", *[".."] * (request.rel_url.raw_path.count("/") - 1)])
    settings = request.app.get(SETTINGS)
    gallery = settings is not None and settings.listen.gallery
    action = fill("way", url=f"{root}/", text="All images") if gallery else Html()
    page = fill("alone", root=root, title=title, text=text, action=action)
    return web.Response(text=page.markup, status=status, content_type="text/html", headers={**headers, **_HEADERS})
