"""The tool `generate_image`."""

from __future__ import annotations

import asyncio
import math
import secrets
from typing import Annotated, ClassVar, Literal

import mcp_types as types
from pydantic import Field, field_validator, model_validator

from sidecar.core.generation import Lane
from sidecar.domain import MOST_IMAGES, SEED_LIMIT, GenerationRequest, JobId
from sidecar.edge.mcp_app.app import TOOL_META
from sidecar.edge.tools.results import GenerationModel, failed_generation, generation_result
from sidecar.edge.tools.schemas import input_schema, output_schema
from sidecar.edge.tools.task_result import created
from sidecar.edge.tools.tool import Arguments, Call, Tool, ToolResult
from sidecar.edge.tools.waiting import Waiting
from sidecar.errors import GenerationUnknown

SMALLEST_SIDE, LARGEST_SIDE, SIDE_STEP = 64, 2048, 8

AspectRatio = Literal["1:1", "3:2", "2:3", "4:3", "3:4", "16:9", "9:16", "21:9"]
Side = Annotated[int, Field(ge=SMALLEST_SIDE, le=LARGEST_SIDE, multiple_of=SIDE_STEP)]


class GenerateImageArguments(Arguments):
    """What a caller may ask for. Everything but the prompt may be left to the model's runtime."""

    prompt: Annotated[
        str,
        Field(
            min_length=1,
            max_length=2000,
            description="What to paint, 1 to 2000 characters: subject, style, light, composition.",
        ),
    ]
    negative_prompt: Annotated[str | None, Field(max_length=2000, description="What to keep out of the picture.")] = (
        None
    )
    width: Annotated[
        Side | None, Field(description="Pixels, 64 to 2048 in multiples of 8. Leave out for the model's own size.")
    ] = None
    height: Annotated[
        Side | None, Field(description="Pixels, 64 to 2048 in multiples of 8. Leave out for the model's own size.")
    ] = None
    aspect_ratio: Annotated[
        AspectRatio | None, Field(description="Instead of width and height: the shape, at the model's own pixel area.")
    ] = None
    num_inference_steps: Annotated[
        int | None,
        Field(
            ge=1, le=150, description="Denoising steps, 1 to 150. More take longer; leave out for the model's default."
        ),
    ] = None
    guidance_scale: Annotated[
        float | None, Field(ge=0, le=30, description="How closely to follow the prompt, 0 to 30.")
    ] = None
    seed: Annotated[
        int | None,
        Field(
            ge=0,
            le=SEED_LIMIT - 1,
            description="0 to 4294967295. Repeats an image where seed_applied is true. Leave out for a new one.",
        ),
    ] = None
    num_images: Annotated[
        int,
        Field(
            ge=1,
            le=MOST_IMAGES,
            description="How many images, 1 to 4, with seeds seed, seed+1, … Each takes its own time.",
        ),
    ] = 1
    model: Annotated[
        str | None, Field(max_length=63, description="Which model, where there are several. Leave out for the default.")
    ] = None
    idempotency_key: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=200,
            description="Any text of yours, 1 to 200 characters. Repeating a call with the same key and arguments "
            "gives the same images instead of new ones, also after a lost connection.",
        ),
    ] = None
    result: Annotated[
        Literal["link", "thumbnail", "full"] | None,
        Field(description="What comes besides text and link: nothing, a preview, or the whole image if it fits."),
    ] = None

    allowed: ClassVar[dict[str, str]] = {
        "prompt": "a text of 1 to 2000 characters",
        "negative_prompt": "a text of at most 2000 characters",
        "width": "64 to 2048 in multiples of 8",
        "height": "64 to 2048 in multiples of 8",
        "aspect_ratio": "1:1, 3:2, 2:3, 4:3, 3:4, 16:9, 9:16, 21:9",
        "num_inference_steps": "1 to 150",
        "guidance_scale": "0 to 30",
        "seed": "0 to 4294967295",
        "num_images": "1 to 4",
        "model": "the name of a model this server has",
        "result": "link, thumbnail, full",
        "idempotency_key": "a text of 1 to 200 characters",
    }
    aliases: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("steps", "numsteps", "inferencesteps", "samplingsteps"), "num_inference_steps"),
        **dict.fromkeys(("cfg", "cfgscale", "guidance"), "guidance_scale"),
        **dict.fromkeys(("size", "imagesize", "resolution", "dimensions"), "width and height"),
        **dict.fromkeys(("aspect", "ratio"), "aspect_ratio"),
        **dict.fromkeys(("n", "count", "numoutputs", "batchsize", "numimagesperprompt"), "num_images"),
        **dict.fromkeys(("negative", "negprompt"), "negative_prompt"),
        **dict.fromkeys(("modelid", "modelname", "checkpoint"), "model"),
    }
    absent: ClassVar[dict[str, tuple[object, ...]]] = {"seed": (-1, "-1")}

    @field_validator("width", "height", "num_inference_steps", "guidance_scale", "seed", "num_images", mode="before")
    @classmethod
    def _not_a_truth_value(cls, given: object) -> object:
        if isinstance(given, bool):
            raise ValueError(f"{given} is not a number")  # noqa: TRY004 - pydantic reports ValueErrors
        return given

    @model_validator(mode="after")
    def _one_way_to_say_the_size(self) -> GenerateImageArguments:
        if self.aspect_ratio and (self.width or self.height):
            raise ValueError("give either aspect_ratio or width and height, not both")
        return self


def sides(aspect_ratio: AspectRatio, default_size: tuple[int, int]) -> tuple[int, int]:
    """Width and height of this shape with about the pixel area of `default_size`, in multiples of 8."""
    across, down = (int(part) for part in aspect_ratio.split(":"))
    area = default_size[0] * default_size[1]
    return _side(math.sqrt(area * across / down)), _side(math.sqrt(area * down / across))


def _side(length: float) -> int:
    return min(LARGEST_SIDE, max(SMALLEST_SIDE, round(length / SIDE_STEP) * SIDE_STEP))


async def generate_image(call: Call, arguments: GenerateImageArguments) -> ToolResult:
    """Take the generation on and wait for it, telling of progress; past RESPONSE_BUDGET answer with its handle.

    The handle is a task for clients that take tasks. When a caller disconnects before that, what is still
    queued is cancelled, unless the call has an idempotency key, with which it can be repeated.
    """
    waiting = Waiting(call)
    requests = _requests(arguments, call.service.lane(arguments.model))
    job_id = await _submitted(call, arguments, requests, waiting.left)
    try:
        view = await waiting.for_job(job_id)
        if not view.ended:
            view = await call.jobs.handle(job_id, call.owner)
    except asyncio.CancelledError:
        call.jobs.leave(job_id)
        raise
    if call.takes_tasks and not view.ended:
        return created(view, call.settings.jobs.ttl)
    return await generation_result(call, view, arguments.result)


async def _submitted(
    call: Call, arguments: GenerateImageArguments, requests: list[GenerationRequest], seconds: float
) -> JobId:
    """Only a call with a key waits for the store before it begins, and such a call can be repeated."""
    try:
        async with asyncio.timeout(seconds):
            return await call.jobs.submit(
                requests,
                owner=call.owner,
                key=arguments.idempotency_key,
                arguments=arguments.model_dump_json(exclude={"result", "idempotency_key"}, exclude_defaults=True),
                result_mode=arguments.result,
            )
    except TimeoutError:
        raise GenerationUnknown(
            "The image store is slow at the moment, so it is not known whether a generation with this idempotency_key "
            "exists.",
            job_id=None,
            retry_after=5,
        ) from None


def _requests(arguments: GenerateImageArguments, lane: Lane) -> list[GenerationRequest]:
    """One request per image, the seed and the size resolved."""
    width, height = arguments.width, arguments.height
    if arguments.aspect_ratio:
        width, height = sides(arguments.aspect_ratio, lane.settings.default_size)
    seed = secrets.randbelow(SEED_LIMIT) if arguments.seed is None else arguments.seed
    return [
        GenerationRequest(
            model=lane.settings.name,
            prompt=arguments.prompt,
            negative_prompt=arguments.negative_prompt or None,
            width=width,
            height=height,
            num_inference_steps=arguments.num_inference_steps,
            guidance_scale=arguments.guidance_scale,
            seed=(seed + number) % SEED_LIMIT,
        )
        for number in range(arguments.num_images)
    ]


DESCRIPTION = """\
Paint a new image from a text prompt with this server's own diffusion model, and store it at a link.

Use it whenever the user asks for a picture, illustration, photo, logo draft or variation to be made. Write the prompt
in English unless the model is known to take other languages: subject first, then style, light, composition. Leave out
every parameter that the user did not ask for; the model's own defaults are good. It takes seconds to minutes. When the
result's status is queued or working, the image is still to come: call get_generation with the job_id, and do not call
generate_image again. Show the user the link from the result. To vary an image, call again with another seed; to repeat
it, use the same seed and parameters."""

TOOL = Tool(
    definition=types.Tool(
        name="generate_image",
        title="Generate an image",
        description=DESCRIPTION,
        input_schema=input_schema(GenerateImageArguments),
        output_schema=output_schema(GenerationModel),
        annotations=types.ToolAnnotations(
            title="Generate an image",
            read_only_hint=False,
            destructive_hint=False,
            idempotent_hint=False,
            open_world_hint=False,
        ),
        _meta=TOOL_META,
    ),
    arguments=GenerateImageArguments,
    function=generate_image,
    failed=failed_generation,
)
