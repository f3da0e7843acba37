"""Stored images as an MCP result.

`structuredContent` is self-sufficient, because hosts show it instead of the blocks, and never holds base64. The text
block stands alone. The link is for the user, lest a host loads the full image into the model. All image blocks of one
result stay under 100,000 base64 characters together.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, get_args

import mcp_types as types
import pybase64
from pydantic import BaseModel, Field

from sidecar.config import ResultMode
from sidecar.core.job import JobView
from sidecar.core.thumbnails import THUMBNAIL_BYTES
from sidecar.domain import ImageRecord, StoredImage
from sidecar.edge.tools.tool import Call
from sidecar.errors import INTERNAL, GenerationUnknown, NoPreview, SidecarError, UndecodablePicture

PREVIEW_SECONDS = 5.0
_LINK_HAS_IT = "the link has the image"
REASON_META = "mcp-image-sidecar/reason"
"""The key in the `_meta` of a failed call's result."""


class ImageModel(BaseModel):
    """One image: where it is and how it was made."""

    image_id: str
    url: str = Field(description="The full image. Give this link to the user.")
    thumbnail_url: str
    media_type: str
    width: int
    height: int
    size_bytes: int
    sha256: str
    model: str
    seed: int
    seed_applied: bool = Field(
        description="Whether the runtime is known to have used the seed, so that it repeats the image."
    )
    created_at: str
    expires_at: str | None = Field(description="When the link stops working, RFC 3339 UTC; null for never.")


class GenerationModel(BaseModel):
    """Where a generation stands, and its images once it has any."""

    status: Literal["queued", "working", "completed", "failed", "cancelled"]
    job_id: str | None = Field(description="For get_generation and cancel_generation; null where nothing is kept.")
    images: list[ImageModel]
    message: str | None = Field(
        description="What the user should know besides: what to do next, parameters not applied, images missing, "
        "what went wrong."
    )
    retry_after_seconds: int | None = Field(
        default=None,
        description="When to ask again. With the status working: the image store cannot be asked at the moment, so how "
        "the generation stands is not known; it has not failed.",
    )
    ahead: int | None = Field(
        default=None, description="While queued: images to be made before its first. null where unknown."
    )
    elapsed_seconds: float | None = Field(
        default=None, description="While queued or working: how long ago it was asked for. null where unknown."
    )
    expected_seconds: float | None = Field(
        default=None,
        description="While queued or working: how long it is likely to take in all, from the call to its last image, "
        "judged by recent ones. null where unknown.",
    )


def image_url(base_url: str, record: ImageRecord) -> str:
    return f"{base_url}/images/{record.image_id}.{record.picture.extension}"


async def generation_result(call: Call, view: JobView, mode: ResultMode | None = None) -> types.CallToolResult:
    """A job as the result of a tool call.

    `mode`, or what the call that began the job wanted, overrides what the caller's URL and the settings say.
    """
    if view.images and view.ended:
        wanted: dict[str | None, ResultMode] = {known: known for known in get_args(ResultMode)}
        return await _completed(call, view, mode or wanted.get(view.result_mode, call.presentation.mode))
    message = _message(view)
    structured = GenerationModel(
        status=view.status,
        job_id=str(view.job_id) if view.job_id else None,
        images=[],
        message=message,
        **_standing(view),
    )
    return types.CallToolResult(
        content=[types.TextContent(text=message if view.ended else f"{message} job_id: {view.job_id}")],
        structured_content=structured.model_dump(),
        is_error=view.status == "failed",
    )


async def _completed(call: Call, view: JobView, mode: ResultMode) -> types.CallToolResult:
    blocks, notes = await _image_blocks(call, view.images, mode if call.presentation.image else "link")
    notes = [*_notes(view), *notes]
    models = [image_model(call.base_url, stored.record) for stored in view.images]
    text = "\n".join([_headline(view.images), *(_line(call.base_url, stored.record) for stored in view.images), *notes])
    links = [_link(call.base_url, stored.record) for stored in view.images] if call.presentation.resource_link else []
    content: list[types.ContentBlock] = [types.TextContent(text=text), *links, *blocks]
    structured = GenerationModel(
        status="completed",
        job_id=str(view.job_id) if view.job_id else None,
        images=models,
        message=" ".join(notes) or None,
    )
    return types.CallToolResult(content=content, structured_content=structured.model_dump())


def failed(error: SidecarError) -> types.CallToolResult:
    """The result of a call that gave nothing: a sentence on what to change, and for programs the reason as a word."""
    return types.CallToolResult(
        content=[types.TextContent(text=error.message)], is_error=True, _meta={REASON_META: error.reason}
    )


def failed_generation(error: SidecarError) -> types.CallToolResult:
    """The same for tools whose result is a generation."""
    if isinstance(error, GenerationUnknown):
        return unknown_generation(error)
    structured = GenerationModel(
        status="failed",
        job_id=None,
        images=[],
        message=error.message,
        retry_after_seconds=None if error.retry_after is None else _whole_seconds(error.retry_after),
    )
    return failed(error).model_copy(update={"structured_content": structured.model_dump()})


def unknown_generation(error: GenerationUnknown, tool: str = "get_generation") -> types.CallToolResult:
    """A result that keeps the caller asking: no error, because the generation has not failed."""
    seconds = _whole_seconds(error.retry_after or 0)
    again = (
        f"Repeat the call with the same idempotency_key in about {seconds} s."
        if error.job_id is None
        else f"Call {tool} with this job_id again in about {seconds} s, and do not call generate_image again for it."
    )
    message = f"{error.message} {again}"
    structured = GenerationModel(
        status="working", job_id=error.job_id, images=[], message=message, retry_after_seconds=seconds
    )
    text = message if error.job_id is None else f"{message} job_id: {error.job_id}"
    return types.CallToolResult(
        content=[types.TextContent(text=text)], structured_content=structured.model_dump(), is_error=False
    )


def _whole_seconds(seconds: float) -> int:
    return max(1, math.ceil(seconds))


def _message(view: JobView) -> str:
    """For a job without an image to show."""
    if view.status == "completed":
        return (
            "The generation was completed, but its images have expired or been deleted. To make them anew, call "
            "generate_image again, with another idempotency_key if you use one."
        )
    if view.ended:
        again = " To try again, use another idempotency_key." if view.keyed else ""
        return f"{view.message or INTERNAL}{again}"
    return (
        f"The image is not ready yet ({where_it_stands(view)}). It goes on by itself: call get_generation with this "
        "job_id to wait for it, and do not call generate_image again for it."
    )


def _standing(view: JobView) -> dict[str, Any]:
    """The fields that say how far a job is. The pod that works on it knows; the store knows only when it began."""
    if view.ended:
        return {}
    progress = view.progress
    if progress is None:
        return {"elapsed_seconds": round(view.elapsed, 1)}
    return {
        "ahead": progress.ahead,
        "elapsed_seconds": round(progress.since_call, 1),
        "expected_seconds": None if progress.expected is None else round(progress.expected, 1),
    }


def where_it_stands(view: JobView) -> str:
    """A few words on a job that has not ended."""
    progress = view.progress
    estimate = progress.estimate if progress is not None else None
    if view.status == "queued":
        ahead = f", {progress.ahead} ahead" if progress is not None else ""
        return f"queued{ahead}" if estimate is None else f"queued{ahead}, about {estimate:.0f} s to go"
    about = f" of about {estimate:.0f} s" if estimate is not None else " s"
    done = f", {progress.finished} of {progress.total} done" if progress and progress.total > 1 else ""
    return f"generating, {view.elapsed:.0f}{about}{done}"


def image_model(base_url: str, record: ImageRecord) -> ImageModel:
    return ImageModel(
        image_id=record.image_id.text,
        url=image_url(base_url, record),
        thumbnail_url=f"{base_url}/images/{record.image_id}/thumbnail",
        media_type=record.picture.media_type,
        width=record.picture.width,
        height=record.picture.height,
        size_bytes=record.size_bytes,
        sha256=record.sha256,
        model=record.request.model,
        seed=record.request.seed,
        seed_applied=record.seed_applied,
        created_at=rfc3339(record.created),
        expires_at=rfc3339(record.expires) if record.expires else None,
    )


def _headline(images: Sequence[StoredImage]) -> str:
    model = images[0].record.request.model
    return f"Made {len(images)} image{'s' if len(images) > 1 else ''} with {model}."


def _line(base_url: str, record: ImageRecord) -> str:
    until = f", available until {rfc3339(record.expires)}" if record.expires else ""
    size = f"{record.picture.width}×{record.picture.height}"
    return f"{image_url(base_url, record)} ({size}, seed {record.request.seed}{until})"


def _notes(view: JobView) -> list[str]:
    record = view.images[0].record
    notes = [f"Image {gap.number} of {view.total} (seed {gap.seed}) is missing: {gap.message}" for gap in view.missing]
    if view.gone:
        notes.append(f"{view.gone} of {view.total} images have expired or been deleted.")
    if any(stored.held for stored in view.images):
        notes.append(
            "The image store is away, so the image is held on one pod until the store is back: its link works where "
            "that pod answers."
        )
    notes += [
        f"The picture with seed {stored.record.request.seed} is all black: the model's safety checker may have "
        "replaced it. Another prompt or another seed may help."
        for stored in view.images
        if stored.record.black
    ]
    if record.dropped_parameters:
        notes.append(f"The runtime does not take {', '.join(record.dropped_parameters)}; the image was made without.")
    asked = (record.request.width, record.request.height)
    actual = (record.picture.width, record.picture.height)
    if any(side is not None and side != got for side, got in zip(asked, actual, strict=True)):
        wanted = "×".join(str(side or "any") for side in asked)
        notes.append(f"The runtime made {actual[0]}×{actual[1]} pixels instead of {wanted}.")
    return notes


def _link(base_url: str, record: ImageRecord) -> types.ResourceLink:
    return types.ResourceLink(
        uri=image_url(base_url, record),
        name=f"{record.image_id}.{record.picture.extension}",
        title=f"Generated image, seed {record.request.seed}",
        mime_type=record.picture.media_type,
        size=record.size_bytes,
        annotations=types.Annotations(audience=["user"]),
    )


async def _image_blocks(
    call: Call, images: Sequence[StoredImage], mode: ResultMode
) -> tuple[list[types.ContentBlock], list[str]]:
    """One block for each image that can be shown, and notes on those that cannot."""
    if mode == "link":
        return [], []
    budget = THUMBNAIL_BYTES // len(images)
    shown = await asyncio.gather(*(_image_block(call, stored, mode, budget) for stored in images))
    blocks: list[types.ContentBlock] = [block for block, _ in shown if block is not None]
    return blocks, list(dict.fromkeys(note for _, note in shown if note is not None))


async def _image_block(
    call: Call, stored: StoredImage, mode: ResultMode, budget: int
) -> tuple[types.ImageContent | None, str | None]:
    """One image of at most `budget` bytes, or a note on why there is none; a slow store is not waited for long."""
    whole = mode == "full" and stored.record.size_bytes <= budget
    try:
        async with asyncio.timeout(_preview_seconds(call)):
            if whole:
                data, media_type = await call.service.read(stored), stored.record.picture.media_type
            else:
                data, media_type = await call.service.thumbnail(stored.record.image_id, budget), "image/webp"
    except UndecodablePicture as error:
        return None, (
            f"The picture with seed {stored.record.request.seed} cannot be decoded; "
            f"the runtime sent a damaged one: {error.message}."
        )
    except NoPreview as error:
        return None, f"The picture with seed {stored.record.request.seed} has no preview: {error.why}; {_LINK_HAS_IT}."
    except (SidecarError, OSError):  # a time-out is an OSError
        return None, f"No preview could be made; {_LINK_HAS_IT}."
    note = "The whole image is too large for a message, so a preview is shown; the link has all of it."
    block = types.ImageContent(data=pybase64.b64encode(data).decode(), mime_type=media_type)
    return block, note if mode == "full" and not whole else None


def _preview_seconds(call: Call) -> float:
    """Less for a host that gives up a call early: its budget has been used for the generation."""
    budget = call.presentation.budget
    return PREVIEW_SECONDS if budget is None else min(PREVIEW_SECONDS, budget / 8)


def rfc3339(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
