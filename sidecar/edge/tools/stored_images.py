"""The tools `list_generated_images`, `get_image_metadata` and `delete_image`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import mcp_types as types
from pydantic import BaseModel, Field

from sidecar.domain import ImageRecord
from sidecar.edge.mcp_app.app import TOOL_META
from sidecar.edge.tools.image_ids import image_id_of
from sidecar.edge.tools.results import ImageModel, failed, image_model
from sidecar.edge.tools.schemas import input_schema, output_schema
from sidecar.edge.tools.tool import Arguments, Call, Tool
from sidecar.errors import ImageNotFound, bounded

DEFAULT_LIMIT, LARGEST_LIMIT = 10, 50
_LISTED_PROMPT = 200
_IMAGE_ID = "the image_id of a result or of list_generated_images"


class ListedImage(ImageModel):
    """An image of a list, with the beginning of its prompt."""

    prompt: str


class ImageListModel(BaseModel):
    """A page of images, newest first."""

    images: list[ListedImage]
    next_cursor: str | None = Field(description="Pass it as cursor for the next page; null when there is no more.")
    message: str | None = None


class ImageMetadataModel(ImageModel):
    """Everything needed to make an image again."""

    prompt: str
    negative_prompt: str | None
    num_inference_steps: int | None = Field(description="null: the model's own default.")
    guidance_scale: float | None = Field(description="null: the model's own default.")
    model_revision: str | None = Field(description="null where the runtime does not tell it.")
    dropped_parameters: list[str] = Field(description="What was asked for and the runtime does not take.")
    queue_seconds: float
    runtime_seconds: float
    arguments: dict[str, Any] = Field(description="For generate_image, to make the image again.")
    message: str | None = None


class DeletedModel(BaseModel):
    """What a delete did."""

    image_id: str
    deleted: bool = Field(description="false where it had been deleted or had expired before.")
    message: str


class ListArguments(Arguments):
    """Which images, and how many."""

    limit: Annotated[int, Field(ge=1, le=LARGEST_LIMIT, description=f"How many images, 1 to {LARGEST_LIMIT}.")] = (
        DEFAULT_LIMIT
    )
    cursor: Annotated[str | None, Field(max_length=200, description="next_cursor of the page before.")] = None
    model: Annotated[str | None, Field(max_length=63, description="Only images of this model.")] = None
    prompt_contains: Annotated[
        str | None, Field(max_length=200, description="Only images whose prompt contains this text, in any case.")
    ] = None

    allowed: ClassVar[dict[str, str]] = {
        "limit": f"1 to {LARGEST_LIMIT}",
        "cursor": "the next_cursor of a page before",
        "model": "the name of a model",
        "prompt_contains": "a text of at most 200 characters",
    }


class ImageArguments(Arguments):
    """Which image."""

    image_id: Annotated[
        str, Field(max_length=2000, description="The image_id from a result or a list. Its link works as well.")
    ]

    allowed: ClassVar[dict[str, str]] = {"image_id": _IMAGE_ID}
    aliases: ClassVar[dict[str, str]] = dict.fromkeys(("id", "image", "url", "imageurl"), "image_id")


async def list_generated_images(call: Call, arguments: ListArguments) -> types.CallToolResult:
    """Newest first. A short page may still have a cursor."""
    page = await call.service.list_images(
        limit=arguments.limit,
        cursor=arguments.cursor,
        model=arguments.model,
        prompt_contains=arguments.prompt_contains,
        owner=call.owner,
    )
    images = [_listed(call, record) for record in page.records]
    message = _list_message(len(images), page.cursor is not None)
    structured = ImageListModel(images=images, next_cursor=page.cursor, message=message)
    lines = [f"{image.url} ({image.width}×{image.height}, {image.created_at}): {image.prompt}" for image in images]
    return _result("\n".join([message, *lines]), structured)


def _listed(call: Call, record: ImageRecord) -> ListedImage:
    image = image_model(call.base_url, record)
    return ListedImage(**image.model_dump(), prompt=bounded(record.request.prompt, _LISTED_PROMPT))


def _list_message(count: int, more: bool) -> str:
    if not count:
        return "None found so far; older images follow with next_cursor." if more else "There are no such images."
    some = f"{count} image{'s' if count > 1 else ''}, newest first"
    return f"{some}; older ones follow with next_cursor." if more else f"{some}."


async def get_image_metadata(call: Call, arguments: ImageArguments) -> types.CallToolResult:
    """Of one image of this caller's."""
    record = (await call.service.get(image_id_of(arguments.image_id, call.base_url))).record
    if record.owner != call.owner:
        raise ImageNotFound
    request = record.request
    metadata = ImageMetadataModel(
        **image_model(call.base_url, record).model_dump(),
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        model_revision=None,
        dropped_parameters=list(record.dropped_parameters),
        queue_seconds=round(record.queue_seconds, 3),
        runtime_seconds=round(record.runtime_seconds, 3),
        arguments=_arguments(record),
    )
    text = (
        f"{metadata.url} ({metadata.width}×{metadata.height}, seed {request.seed}, {request.model}): {request.prompt}"
    )
    return _result(text, metadata)


def _arguments(record: ImageRecord) -> dict[str, Any]:
    request = record.request
    every = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "width": request.width,
        "height": request.height,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "seed": request.seed,
        "model": request.model,
    }
    return {name: value for name, value in every.items() if value is not None}


async def delete_image(call: Call, arguments: ImageArguments) -> types.CallToolResult:
    """Deleting what is gone is no error."""
    image_id = image_id_of(arguments.image_id, call.base_url)
    deleted = await call.service.delete(image_id, call.owner)
    message = "The image was deleted." if deleted else "There was no image with this id any more."
    return _result(message, DeletedModel(image_id=image_id.text, deleted=deleted, message=message))


def _result(text: str, structured: BaseModel) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(text=text)], structured_content=structured.model_dump())


LIST_GENERATED_IMAGES = Tool(
    definition=types.Tool(
        name="list_generated_images",
        title="List generated images",
        description="List the images made on this server that are still stored, newest first, with their links and the "
        "beginnings of their prompts. Use it to find an image made earlier. A page may be short and still have a "
        "next_cursor.",
        input_schema=input_schema(ListArguments),
        output_schema=output_schema(ImageListModel),
        annotations=types.ToolAnnotations(
            title="List generated images", read_only_hint=True, idempotent_hint=True, open_world_hint=False
        ),
        _meta=TOOL_META,
    ),
    arguments=ListArguments,
    function=list_generated_images,
    failed=failed,
)

GET_IMAGE_METADATA = Tool(
    definition=types.Tool(
        name="get_image_metadata",
        title="Get an image's metadata",
        description="Everything about one stored image: prompt, all parameters, model, seed and whether it was "
        "applied, timings, digest, and the arguments that make it again. Use it before varying an image made earlier.",
        input_schema=input_schema(ImageArguments),
        output_schema=output_schema(ImageMetadataModel),
        annotations=types.ToolAnnotations(
            title="Get an image's metadata", read_only_hint=True, idempotent_hint=True, open_world_hint=False
        ),
    ),
    arguments=ImageArguments,
    function=get_image_metadata,
    failed=failed,
)

DELETE_IMAGE = Tool(
    definition=types.Tool(
        name="delete_image",
        title="Delete an image",
        description="Delete one stored image with its thumbnail and record, for good. Only when the user asks for it.",
        input_schema=input_schema(ImageArguments),
        output_schema=output_schema(DeletedModel),
        annotations=types.ToolAnnotations(
            title="Delete an image",
            read_only_hint=False,
            destructive_hint=True,
            idempotent_hint=True,
            open_world_hint=False,
        ),
    ),
    arguments=ImageArguments,
    function=delete_image,
    failed=failed,
)
