"""What a browser would see of the sidecar's pages, read without one."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

from tests.conftest import Sidecar


@dataclass
class Page(HTMLParser):
    """What a browser would see in some HTML."""

    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, **having: str) -> list[dict[str, str]]:
        return [a for name, a in self.tags if name == tag and having.items() <= {k: a.get(k) for k in having}.items()]

    @property
    def prompts(self) -> list[str]:
        """The alternative texts of the thumbnails, in order."""
        return [image["alt"] for image in self.all("img", loading="lazy")]

    def way(self, text: str, markup: str) -> str | None:
        """Where the button of this name leads."""
        found = re.search(rf'<a class="button" href="([^"]*)">{text}</a>', markup)
        return found and found[1].replace("&amp;", "&").removeprefix(".")


async def look(sidecar: Sidecar, path: str = "/", **kwargs: Any) -> tuple[int, Page, str]:
    response, body = await sidecar.get(path, **kwargs)
    page = Page()
    page.feed(body.decode())
    return response.status, page, body.decode()
