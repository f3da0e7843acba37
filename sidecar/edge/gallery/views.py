"""Records as HTML. Every function here is pure; pages.py knows requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from urllib.parse import urlencode

from sidecar import __version__
from sidecar.core.thumbnails import THUMBNAIL_PIXELS
from sidecar.domain import ImageId, ImageRecord, Picture, RecordPage
from sidecar.edge.gallery.assets import asset_url
from sidecar.edge.gallery.markup import Html, fill, joined
from sidecar.edge.gallery.status import Standing, Trouble
from sidecar.edge.gallery.wording import ago, byte_size, clock_time, until, utc
from sidecar.edge.tools.results import image_url
from sidecar.errors import bounded
from sidecar.observe.activity import Failure

_ALT_CHARACTERS = 160
_LABEL_CHARACTERS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What every page needs to know. `root` is the page's way to the gallery's `/`: `.` or `..`."""

    root: str
    public_base_url: str | None
    now: datetime
    standing: Standing
    failures: Sequence[Failure] = ()
    newest: ImageId | None = None

    def link(self, record: ImageRecord) -> str:
        """The image's address as it is handed on; the script makes a relative one absolute."""
        return image_url(self.public_base_url or self.root, record)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which images a list shows."""

    model: str | None = None
    prompt: str | None = None

    def __bool__(self) -> bool:
        return bool(self.model or self.prompt)

    def query(self, cursor: str) -> str:
        """The page after `cursor`; the first one for an empty text."""
        given = {"model": self.model, "prompt": self.prompt, "cursor": cursor}
        return "?" + urlencode({name: value for name, value in given.items() if value}, errors="replace")


def page(site: Site, title: str, content: Html) -> Html:
    """A whole document."""
    root = site.root
    return fill(
        "layout",
        root=root,
        title=title,
        style=asset_url(root, "gallery.css"),
        script=asset_url(root, "gallery.js"),
        icon=asset_url(root, "icon.svg"),
        rendered=site.now.isoformat(),
        newest=site.newest.text if site.newest is not None else "",
        failure=site.failures[0].failure_id if site.failures else "",
        queues=site.standing.summary,
        state=site.standing.state,
        troubles=joined(_trouble(trouble, site.now) for trouble in site.standing.troubles),
        version=__version__,
        content=content,
    )


def _trouble(trouble: Trouble, now: datetime) -> Html:
    since = (
        Html()
        if trouble.since is None
        else fill("since", moment=trouble.since.isoformat(), text=clock_time(trouble.since, now))
    )
    return fill("trouble", text=trouble.text, since=since)


def error_page(site: Site, status: int, message: str) -> Html:
    title = {404: "No such image", 400: "That cannot be shown"}.get(status, "Not at the moment")
    content = fill("error", title=title, text=message, action=_way(f"{site.root}/", "All images"))
    return page(site, title, content)


def list_page(
    site: Site, found: RecordPage, *, chosen: Filter, models: Iterable[str], cursor: str | None, mcp_url: str
) -> Html:
    """One page of images, or how to make the first; on the first one also what failed lately."""
    first = not (cursor or chosen)
    if first and found.records:
        site = replace(site, newest=found.records[0].image_id)
    if not (found.records or found.cursor or cursor or chosen):
        parts = [fill("first", mcp=mcp_url)]
    else:
        parts = [_filters(site, chosen, models), _images(site, found, cursor)]
    if first:
        parts.insert(-1, _failures(site))
    if ways := list(_ways(site, found, chosen, cursor)):
        parts.append(fill("ways", ways=joined(ways)))
    return page(site, "Gallery", fill("list", content=joined(parts)))


def _failures(site: Site) -> Html:
    return fill("failures", failures=joined(_failure(site, failure) for failure in site.failures))


def _failure(site: Site, failure: Failure) -> Html:
    lost = f"{failure.missing} of {failure.total} images: " if failure.total > 1 else ""
    return fill(
        "failure",
        message=f"{lost}{failure.message}",
        moment=failure.at.isoformat(),
        age=ago(failure.at, site.now),
        model=failure.model,
        prompt=failure.prompt,
    )


def _filters(site: Site, chosen: Filter, models: Iterable[str]) -> Html:
    names = dict.fromkeys([*models, *([chosen.model] if chosen.model else [])])
    return fill(
        "filters",
        root=site.root,
        prompt=chosen.prompt or "",
        models=joined(fill("option_chosen" if name == chosen.model else "option", name=name) for name in names),
        clear=_way(f"{site.root}/", "Clear") if chosen else Html(),
    )


def _images(site: Site, found: RecordPage, cursor: str | None) -> Html:
    if found.records:
        return fill("cards", cards=joined(_card(site, record) for record in found.records))
    if found.cursor is not None:
        return fill("notice", title="Nothing here yet", text="None of the images looked through fits.")
    if cursor is not None:
        return fill("notice", title="That was all", text="There are no older images.")
    return fill("notice", title="No image fits", text="Try another model or fewer words.")


def _ways(site: Site, found: RecordPage, chosen: Filter, cursor: str | None) -> Iterator[Html]:
    if cursor is not None:
        yield _way(f"{site.root}/{chosen.query('')}", "Newest")
    if found.cursor is not None:
        yield _way(f"{site.root}/{chosen.query(found.cursor)}", "Older" if found.records else "Keep looking")


def _way(url: str, text: str) -> Html:
    return fill("way", url=url, text=text)


def _card(site: Site, record: ImageRecord) -> Html:
    width, height = thumbnail_size(record.picture)
    return fill(
        "card",
        page=f"{site.root}/gallery/{record.image_id}",
        thumbnail=f"{site.root}/images/{record.image_id}/thumbnail",
        width=width,
        height=height,
        alt=bounded(record.request.prompt, _ALT_CHARACTERS),
        prompt=bounded(record.request.prompt, _ALT_CHARACTERS),
        model=record.request.model,
        created=record.created.isoformat(),
        created_utc=utc(record.created),
        age=ago(record.created, site.now),
        actions=_actions(site, record),
    )


def thumbnail_size(picture: Picture) -> tuple[int, int]:
    """The thumbnail's pixels, told to the browser so that nothing moves once it has come."""
    scale = min(1.0, THUMBNAIL_PIXELS / max(picture.width, picture.height))
    return max(1, round(picture.width * scale)), max(1, round(picture.height * scale))


def _actions(site: Site, record: ImageRecord) -> Html:
    return fill(
        "actions",
        label=bounded(record.request.prompt, _LABEL_CHARACTERS),
        link=site.link(record),
        url=f"{site.root}/images/{record.image_id}",
        thumbnail=f"{site.root}/images/{record.image_id}/thumbnail",
    )


def detail_page(site: Site, record: ImageRecord) -> Html:
    """One image with everything that is known of it."""
    prompt = record.request.prompt
    content = fill(
        "detail",
        root=site.root,
        image=image_url(site.root, record),
        thumbnail=f"{site.root}/images/{record.image_id}/thumbnail",
        created=record.created.isoformat(),
        width=record.picture.width,
        height=record.picture.height,
        alt=bounded(prompt, _ALT_CHARACTERS),
        prompt=prompt,
        age=ago(record.created, site.now),
        actions=_actions(site, record),
        parameters=joined(fill("parameter", name=name, value=value) for name, value in _parameters(site, record)),
    )
    return page(site, bounded(prompt, _LABEL_CHARACTERS), content)


def _parameters(site: Site, record: ImageRecord) -> Iterator[tuple[str, str | Html]]:
    """What the image was made with and what came of it; what was left to the runtime is left out."""
    request, picture = record.request, record.picture
    yield "Model", request.model
    if request.negative_prompt is not None:
        yield "Negative prompt", request.negative_prompt
    yield "Seed", str(request.seed) if record.seed_applied else f"{request.seed} (the runtime may not have used it)"
    yield "Size", _size(record)
    if request.num_inference_steps is not None:
        yield "Steps", str(request.num_inference_steps)
    if request.guidance_scale is not None:
        yield "Guidance scale", f"{request.guidance_scale:g}"
    if record.dropped_parameters:
        yield "Not applied", ", ".join(record.dropped_parameters)
    yield "File", f"{picture.media_type.removeprefix('image/').upper()}, {byte_size(record.size_bytes)}"
    yield "Took", f"{record.runtime_seconds:.1f} s, after {record.queue_seconds:.1f} s in the queue"
    yield "Created", _time(record.created)
    yield "Expires", "never" if record.expires is None else _time(record.expires, until(record.expires, site.now))
    yield "Image id", fill("code", text=str(record.image_id))
    yield "SHA-256", fill("code", text=record.sha256)


def _size(record: ImageRecord) -> str:
    request, picture = record.request, record.picture
    asked = (request.width or picture.width, request.height or picture.height)
    size = f"{picture.width} × {picture.height} pixels"
    return size if asked == (picture.width, picture.height) else f"{size}, {asked[0]} × {asked[1]} were asked for"


def _time(moment: datetime, note: str = "") -> Html:
    return fill("time", moment=moment.isoformat(), text=utc(moment), note=f" ({note})" if note else "")
