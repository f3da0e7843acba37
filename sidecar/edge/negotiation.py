"""What a client prefers: RFC 9110 section 12.5, as far as this server has a choice to offer."""

from __future__ import annotations

from aiohttp import hdrs, web


def wants_page(request: web.Request) -> bool:
    """Whether a browser opens this address for a person, rather than a program or an `<img>` asking for it."""
    if request.method not in (hdrs.METH_GET, hdrs.METH_HEAD):
        return False
    page = max(weight(request, hdrs.ACCEPT, kind) for kind in ("text/html", "application/xhtml+xml"))
    return page > 0 and page >= weight(request, hdrs.ACCEPT, "application/json")


def takes_gzip(request: web.Request) -> bool:
    return weight(request, hdrs.ACCEPT_ENCODING, "gzip") > 0


def weight(request: web.Request, header: str, name: str) -> float:
    """The quality a header gives to `name`, from 0 to 1; 0 for what it does not name."""
    for item in ",".join(request.headers.getall(header, ())).split(","):
        given, *parameters = (part.strip().lower() for part in item.split(";"))
        if given == name:
            return next((_quality(part[2:]) for part in parameters if part.startswith("q=")), 1.0)
    return 0.0


def _quality(text: str) -> float:
    """0 for what is no number between 0 and 1."""
    try:
        quality = float(text)
    except ValueError:
        return 0.0
    return quality if 0 <= quality <= 1 else 0.0
