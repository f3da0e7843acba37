"""Stored images as an MCP result.

`structuredContent` is self-sufficient, because hosts show it instead of the blocks, and never holds base64. The text
block stands alone. The link is for the user, lest a host loads the full image into the model. All image blocks of one
result stay under 100,000 base64 characters together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Literal

import mcp_types as types
import pybase64
from pydantic import BaseModel, Field

from sidecar.config import ResultMode
from sidecar.core.generation import Missing
from sidecar.core.service import THUMBNAIL_BYTES
from sidecar.domain import ImageRecord, StoredImage
from sidecar.edge.tools.tool import Call
from sidecar.errors import SidecarError, UndecodablePicture
from sidecar.storages.keys import extension

IMAGE_BLOCK_CHARACTERS = 100_000


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
    """The outcome of a generation."""

    status: Literal["queued", "working", "completed", "failed", "cancelled"]
    images: list[ImageModel]
    message: str | None = Field(
        description="What the user should know besides: parameters not applied, images missing, what went wrong."
    )


def image_url(base_url: str, record: ImageRecord) -> str:
    return f"{base_url}/images/{record.image_id}.{extension(record.picture.media_type)}"


async def completed(
    call: Call, images: Sequence[StoredImage], missing: Sequence[Missing], mode: ResultMode, total: int
) -> types.CallToolResult:
    """The result of a generation that gave at least one image."""
    blocks, notes = await _image_blocks(call, images, mode)
    notes = [*_notes(images, missing, total), *notes]
    models = [_image_model(call.base_url, stored.record) for stored in images]
    message = " ".join(notes) or None
    text = "\n".join([_headline(images), *(_line(call.base_url, stored.record) for stored in images), *notes])
    links = [_link(call.base_url, stored.record) for stored in images]
    content: list[types.ContentBlock] = [types.TextContent(text=text), *links, *blocks]
    structured = GenerationModel(status="completed", images=models, message=message)
    return types.CallToolResult(content=content, structured_content=structured.model_dump())


def failed(error: SidecarError) -> types.CallToolResult:
    """The result of a call that gave nothing: one sentence on what to change."""
    structured = GenerationModel(status="failed", images=[], message=error.message)
    return types.CallToolResult(
        content=[types.TextContent(text=error.message)], structured_content=structured.model_dump(), is_error=True
    )


def _image_model(base_url: str, record: ImageRecord) -> ImageModel:
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
        created_at=_rfc3339(record.created),
        expires_at=_rfc3339(record.expires) if record.expires else None,
    )


def _headline(images: Sequence[StoredImage]) -> str:
    model = images[0].record.request.model
    return f"Made {len(images)} image{'s' if len(images) > 1 else ''} with {model}."


def _line(base_url: str, record: ImageRecord) -> str:
    until = f", available until {_rfc3339(record.expires)}" if record.expires else ""
    size = f"{record.picture.width}×{record.picture.height}"
    return f"{image_url(base_url, record)} ({size}, seed {record.request.seed}{until})"


def _notes(images: Sequence[StoredImage], missing: Sequence[Missing], total: int) -> list[str]:
    record = images[0].record
    notes = [f"Image {gap.number} of {total} (seed {gap.seed}) is missing: {gap.error.message}" for gap in missing]
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
        name=f"{record.image_id}.{extension(record.picture.media_type)}",
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
    blocks: list[types.ContentBlock] = []
    notes: list[str] = []
    for stored in images:
        whole = mode == "full" and stored.record.size_bytes <= budget
        try:
            if whole:
                data, media_type = await asyncio.to_thread(stored.path.read_bytes), stored.record.picture.media_type
            else:
                data, media_type = await call.service.thumbnail(stored.record.image_id, budget), "image/webp"
            blocks.append(types.ImageContent(data=pybase64.b64encode(data).decode(), mime_type=media_type))
        except UndecodablePicture as error:
            notes.append(
                f"The picture with seed {stored.record.request.seed} cannot be decoded; "
                f"the runtime sent a damaged one: {error.message}."
            )
        except (SidecarError, OSError):
            notes.append("No preview could be made; the link has the image.")
        if mode == "full" and not whole:
            notes.append("The whole image is too large for a message, so a preview is shown; the link has all of it.")
    return blocks, list(dict.fromkeys(notes))


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
