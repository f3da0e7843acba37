"""The tools `get_generation` and `cancel_generation`."""

from __future__ import annotations

from typing import Annotated, ClassVar

import mcp_types as types
from pydantic import Field

from sidecar.domain import JobId
from sidecar.edge.tools.results import GenerationModel, failed_generation, generation_result, unknown_generation
from sidecar.edge.tools.schemas import input_schema, output_schema
from sidecar.edge.tools.tool import Arguments, Call, Tool
from sidecar.edge.tools.waiting import Waiting
from sidecar.errors import GenerationUnknown, SidecarError

_JOB_ID = "the job_id of a generate_image result"


class GetGenerationArguments(Arguments):
    """Which generation, and how long to wait for it."""

    job_id: Annotated[str, Field(max_length=200, description="The job_id from a generate_image result.")]
    wait_seconds: Annotated[
        float | None,
        Field(
            ge=0,
            le=3600,
            description="How long to wait for the image. Leave out to wait as long as this server lets a call wait, "
            "which more is cut to; 0 looks only.",
        ),
    ] = None

    allowed: ClassVar[dict[str, str]] = {"job_id": _JOB_ID, "wait_seconds": "0 to 3600"}


class CancelGenerationArguments(Arguments):
    """Which generation."""

    job_id: Annotated[str, Field(max_length=200, description="The job_id from a generate_image result.")]

    allowed: ClassVar[dict[str, str]] = {"job_id": _JOB_ID}


async def get_generation(call: Call, arguments: GetGenerationArguments) -> types.CallToolResult:
    """The same result that generate_image would have given."""
    waiting = Waiting(call, arguments.wait_seconds)
    view = await waiting.for_job(JobId.parse(arguments.job_id))
    return await generation_result(call, view)


async def cancel_generation(call: Call, arguments: CancelGenerationArguments) -> types.CallToolResult:
    """Honest about what cannot be stopped."""
    view = await call.jobs.cancel(JobId.parse(arguments.job_id), call.owner)
    result = await generation_result(call, view)
    if view.ended:
        return result
    text = (
        "The generation is at the model's runtime, which cannot be interrupted; the image will be stored. "
        "get_generation waits for it."
        if view.status == "working"
        else "The generation could not be taken out of the queue at the moment. Try again."
    )
    structured = {**result.structured_content, "message": text}
    return types.CallToolResult(
        content=[types.TextContent(text=f"{text} job_id: {view.job_id}")], structured_content=structured
    )


def _not_cancelled(error: SidecarError) -> types.CallToolResult:
    if isinstance(error, GenerationUnknown):
        return unknown_generation(error, tool="cancel_generation")
    return failed_generation(error)


_OUTPUT = output_schema(GenerationModel)

GET_GENERATION = Tool(
    definition=types.Tool(
        name="get_generation",
        title="Get a generation",
        description="Wait for the images of an earlier generate_image call whose status was queued or working, or look "
        "at how it stands. Works after a lost connection, too. Call it again while the status is queued or working.",
        input_schema=input_schema(GetGenerationArguments),
        output_schema=_OUTPUT,
        annotations=types.ToolAnnotations(
            title="Get a generation", read_only_hint=True, idempotent_hint=True, open_world_hint=False
        ),
    ),
    arguments=GetGenerationArguments,
    function=get_generation,
    failed=failed_generation,
)

CANCEL_GENERATION = Tool(
    definition=types.Tool(
        name="cancel_generation",
        title="Cancel a generation",
        description="Take a generation that still waits in the queue out of it, when the user no longer wants it. What "
        "the model has begun cannot be stopped and is stored.",
        input_schema=input_schema(CancelGenerationArguments),
        output_schema=_OUTPUT,
        annotations=types.ToolAnnotations(
            title="Cancel a generation",
            read_only_hint=False,
            destructive_hint=True,
            idempotent_hint=True,
            open_world_hint=False,
        ),
    ),
    arguments=CancelGenerationArguments,
    function=cancel_generation,
    failed=_not_cancelled,
)
