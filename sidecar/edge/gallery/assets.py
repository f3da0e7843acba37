"""Style sheet, script and icon: read once, addressed by their content so that browsers may keep them for ever."""

from __future__ import annotations

from pathlib import Path

from sidecar.edge.static_files import StaticFile

_FOLDER = Path(__file__).with_name("assets")

ASSETS = {name: StaticFile.read(_FOLDER / name) for name in ("gallery.css", "gallery.js", "icon.svg")}


def asset_url(root: str, name: str) -> str:
    """Where a page finds an asset; `root` is its way to the gallery's own `/`."""
    return f"{root}/gallery/assets/{name}?v={ASSETS[name].version}"
