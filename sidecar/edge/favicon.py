"""The icon that browsers ask for by themselves, also beside an image that is opened in a tab of its own."""

from __future__ import annotations

from pathlib import Path

from aiohttp import hdrs, web

from sidecar.edge.static_files import StaticFile

_ICON = StaticFile.read(Path(__file__).with_name("favicon.ico"))
_HEADERS = {hdrs.CACHE_CONTROL: "public, max-age=604800", "X-Content-Type-Options": "nosniff"}


def routes() -> list[web.RouteDef]:
    return [web.get("/favicon.ico", favicon)]


async def favicon(request: web.Request) -> web.Response:
    return _ICON.answer(request, _HEADERS)
