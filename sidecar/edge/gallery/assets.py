"""Style sheet, script and icon: read once, addressed by their content so that browsers may keep them for ever."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


@dataclass(frozen=True, slots=True)
class Asset:
    """One file. `version` changes with its content."""

    body: bytes
    media_type: str
    version: str


def _read(name: str) -> Asset:
    body = (files(__package__) / "assets" / name).read_bytes()
    return Asset(body, _TYPES[name.rsplit(".", 1)[1]], hashlib.sha256(body).hexdigest()[:16])


ASSETS = {name: _read(name) for name in ("gallery.css", "gallery.js", "icon.svg")}


def asset_url(root: str, name: str) -> str:
    """Where a page finds an asset; `root` is its way to the gallery's own `/`."""
    return f"{root}/gallery/assets/{name}?v={ASSETS[name].version}"
