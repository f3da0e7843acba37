"""The MCP App: one self-contained page that hosts with MCP Apps show beside an image tool's result.

Host and page agree on everything through the specification's revision 2026-01-26 (`io.modelcontextprotocol/ui`). The
page's parts are files of their own; they are put together once, so that the host gets one document without a
single reference to elsewhere. What it may load is declared: images, from the origins they are served by.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mcp_types as types

from sidecar import __version__

EXTENSION_ID = "io.modelcontextprotocol/ui"
APP_MIME_TYPE = "text/html;profile=mcp-app"
APP_URI = "ui://mcp-image-sidecar/image.html"

TOOL_META: dict[str, Any] = {"ui": {"resourceUri": APP_URI}}
"""The `_meta` of a tool whose results the page shows. Hosts without MCP Apps ignore it."""

_SCRIPTS = ("bridge.js", "view.js", "image.js")
_ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?", re.ASCII | re.IGNORECASE)
_TITLE = "Generated images"
_DESCRIPTION = "Shows a generated image large, with its parameters, its link and a way to make it again."


def origin(url: str) -> str:
    """The origin of this URL, the way a Content-Security-Policy names it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def app_resource(image_origins: Iterable[str]) -> types.Resource:
    """The page as `resources/list` shows it."""
    return types.Resource(
        uri=APP_URI,
        name="image_app",
        title=_TITLE,
        description=_DESCRIPTION,
        mime_type=APP_MIME_TYPE,
        _meta=_meta(image_origins),
    )


def read_app(image_origins: Iterable[str]) -> types.ReadResourceResult:
    """The page as `resources/read` gives it. `image_origins` are where images come from, redirects included."""
    page = types.TextResourceContents(uri=APP_URI, mime_type=APP_MIME_TYPE, text=document(), _meta=_meta(image_origins))
    return types.ReadResourceResult(contents=[page])


@cache
def document() -> str:
    """The page's files as one document."""
    page = _part("image.html")
    for reference, inlined in (
        ('<link rel="stylesheet" href="image.css">', f"<style>\n{_part('image.css')}</style>"),
        ("".join(f'<script src="{name}"></script>\n' for name in _SCRIPTS), _script()),
        ('data-version=""', f'data-version="{__version__}"'),
    ):
        before, found, after = page.partition(reference)
        if not found:
            raise ValueError(f"image.html lacks {reference}")
        page = before + inlined + after
    return page


def _script() -> str:
    return "<script>\n" + "\n".join(_part(name) for name in _SCRIPTS) + "</script>\n"


def _part(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _meta(image_origins: Iterable[str]) -> dict[str, Any]:
    """What the host must allow. Origins come from callers' Host headers: what is none is left out of the policy."""
    allowed = [given for given in dict.fromkeys(image_origins) if _ORIGIN.fullmatch(given)]
    return {
        "ui": {
            "csp": {"connectDomains": [], "resourceDomains": allowed},
            "permissions": {"clipboardWrite": {}},
            "prefersBorder": True,
        }
    }
