"""The tool `list_models`."""

from __future__ import annotations

import mcp_types as types
from pydantic import BaseModel, Field

from sidecar.core.generation import Lane
from sidecar.edge.tools.results import failed
from sidecar.edge.tools.schemas import input_schema, output_schema
from sidecar.edge.tools.tool import Arguments, Call, Tool
from sidecar.runtimes.profiles import PROFILES


class ModelModel(BaseModel):
    """One model that generate_image can use."""

    name: str
    default: bool
    default_width: int
    default_height: int
    takes_seed: bool = Field(description="Whether a seed makes its images repeatable.")
    waiting: int = Field(description="Generations in its queue.")
    estimate_seconds: float | None = Field(description="What an image has taken lately; null before the first.")


class ModelsModel(BaseModel):
    """The models, the default one first."""

    models: list[ModelModel]
    message: str | None = None


class NoArguments(Arguments):
    """Nothing to say."""


async def list_models(call: Call, _arguments: NoArguments) -> types.CallToolResult:
    models = [_model(lane, number == 0) for number, lane in enumerate(call.service.lanes.values())]
    names = ", ".join(f"{model.name} (default)" if model.default else model.name for model in models)
    structured = ModelsModel(models=models)
    return types.CallToolResult(
        content=[types.TextContent(text=f"Models: {names}.")], structured_content=structured.model_dump()
    )


def _model(lane: Lane, default: bool) -> ModelModel:
    width, height = lane.settings.default_size
    return ModelModel(
        name=lane.settings.name,
        default=default,
        default_width=width,
        default_height=height,
        takes_seed=PROFILES[lane.settings.profile].takes_seed,
        waiting=lane.queue.waiting,
        estimate_seconds=None if lane.estimate is None else round(lane.estimate, 1),
    )


LIST_MODELS = Tool(
    definition=types.Tool(
        name="list_models",
        title="List models",
        description="The diffusion models this server paints with, their default sizes, and how busy they are. Needed "
        "only when the user wants a certain model.",
        input_schema=input_schema(NoArguments),
        output_schema=output_schema(ModelsModel),
        annotations=types.ToolAnnotations(
            title="List models", read_only_hint=True, idempotent_hint=True, open_world_hint=False
        ),
    ),
    arguments=NoArguments,
    function=list_models,
    failed=failed,
)
