"""A prompt that helps to compose a good image prompt, and completions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import mcp_types as types

from sidecar.edge.tools.tool import Call
from sidecar.errors import InvalidRequest, bounded

_MOST_COMPLETIONS = 100  # what the protocol allows
_LONGEST_ARGUMENT = 500

_ARGUMENTS = (
    types.PromptArgument(name="subject", description="What the picture is to show.", required=True),
    types.PromptArgument(name="style", description="A style or medium, such as watercolour.", required=False),
    types.PromptArgument(name="model", description="Which model paints it; the default one without.", required=False),
)

COMPOSE = types.Prompt(
    name="compose_image_prompt",
    title="Compose an image prompt",
    description="Turns an idea into a good prompt for a diffusion model and has it painted.",
    arguments=list(_ARGUMENTS),
)


def listed() -> types.ListPromptsResult:
    return types.ListPromptsResult(prompts=[COMPOSE])


def rendered(call: Call, name: str, arguments: Mapping[str, str]) -> types.GetPromptResult:
    """The prompt's messages. Raises InvalidRequest."""
    if name != COMPOSE.name:
        raise InvalidRequest(f"Unknown prompt {bounded(name, 60)!r}; this server has {COMPOSE.name}.")
    _check(arguments)
    lane = call.service.lane(arguments.get("model") or None)
    width, height = lane.settings.default_size
    style = arguments.get("style", "").strip()
    text = f"""\
I want a picture of: {arguments["subject"].strip()}
{f"Style: {style}" if style else "Choose a style that suits it."}

Write one English prompt for the diffusion model {lane.settings.name} ({width}×{height} pixels by default):
1. Begin with the subject and what it does, in concrete nouns.
2. Add setting, composition and point of view.
3. Add light, colours, medium and style.
4. Keep it under 60 words; leave out commands, negations and anything that cannot be seen.
What must not appear goes into negative_prompt. Choose an aspect_ratio where the subject asks for one.

Show me the prompt in one line, then call generate_image with it and the model {lane.settings.name!r}, and give me the \
link from its result."""
    message = types.PromptMessage(role="user", content=types.TextContent(text=text))
    return types.GetPromptResult(description=COMPOSE.description, messages=[message])


def _check(arguments: Mapping[str, str]) -> None:
    known = [argument.name for argument in _ARGUMENTS]
    for name, value in arguments.items():
        if name not in known:
            raise InvalidRequest(f"unknown argument {bounded(name, 60)!r}; {COMPOSE.name} takes {', '.join(known)}.")
        if len(value) > _LONGEST_ARGUMENT:
            raise InvalidRequest(f"{name}: {len(value)} characters were given; allowed: {_LONGEST_ARGUMENT}.")
    if not arguments.get("subject", "").strip():
        raise InvalidRequest("subject is required: what the picture is to show.")


async def completed(call: Call, params: types.CompleteRequestParams) -> types.CompleteResult:
    """Model names for the prompt's `model`, image ids for the resource template; nothing for what has no list."""
    begun, wanted = params.argument.value, (params.ref.type, params.argument.name)
    values: Iterable[str] = ()
    if wanted == ("ref/prompt", "model"):
        values = call.service.lanes
    elif wanted == ("ref/resource", "image_id"):
        page = await call.service.list_images(limit=_MOST_COMPLETIONS, owner=call.owner)
        values = (str(record.image_id) for record in page.records)
    found = [value for value in values if value.startswith(begun)]
    return types.CompleteResult(
        completion=types.Completion(
            values=found[:_MOST_COMPLETIONS], total=len(found), has_more=len(found) > _MOST_COMPLETIONS
        )
    )
