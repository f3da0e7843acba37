"""What a tool is: a definition for the model, an arguments model, and one function."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import mcp_types as types
from pydantic import BaseModel, ConfigDict, ValidationError

from sidecar.config import Settings
from sidecar.core.job import JobView
from sidecar.core.jobs import JobService
from sidecar.core.service import ImageService
from sidecar.domain import ANONYMOUS
from sidecar.edge.tools.presentation import Presentation
from sidecar.edge.tools.unknown_arguments import MAX_LOOKED_AT, ignored_note, intended
from sidecar.errors import InvalidRequest, SidecarError, bounded

ToolResult = types.CallToolResult | dict[str, Any]
"""What a tool answers; a dict is a task in its wire shape."""


class Arguments(BaseModel):
    """The base of all arguments models."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, str_strip_whitespace=True)
    allowed: ClassVar[dict[str, str]] = {}
    """What completes "allowed: …" for each argument."""
    aliases: ClassVar[dict[str, str]] = {}
    """Names that other servers use, lower case without separators, and what this tool calls them."""
    absent: ClassVar[dict[str, tuple[object, ...]]] = {}
    """Values by which clients say that they leave an argument out, besides null and an empty text."""


A = TypeVar("A", bound=Arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a tool function may use: the parts, where images are reached from outside, and a way to tell of progress."""

    service: ImageService
    jobs: JobService
    settings: Settings
    base_url: str
    presentation: Presentation
    takes_tasks: bool
    report: Callable[[JobView], Awaitable[None]]
    owner: str = ANONYMOUS


@dataclass(frozen=True, slots=True)
class Tool(Generic[A]):
    definition: types.Tool
    arguments: type[A]
    function: Callable[[Call, A], Awaitable[ToolResult]]
    failed: Callable[[SidecarError], types.CallToolResult]
    """The result that tells of an error, in the shape of this tool's results."""

    async def call(self, call: Call, arguments: dict[str, Any]) -> ToolResult:
        """Check the arguments and run. An argument that is wrong is named with what is allowed."""
        ignored: list[str] = []
        try:
            ignored = self._unknown(arguments)
            result = await self._run(call, arguments)
        except SidecarError as error:
            result = self.failed(error)
        return _with_note(result, ignored_note(ignored)) if ignored else result

    async def _run(self, call: Call, arguments: dict[str, Any]) -> ToolResult:
        try:
            checked = self.arguments.model_validate(self._given(arguments))
        except ValidationError as error:
            raise InvalidRequest(self._explain(error)) from None
        return await self.function(call, checked)

    def _given(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The known arguments that say something."""
        fields = self.arguments.model_fields
        return {
            name: value
            for name, value in arguments.items()
            if name in fields and not self._is_absent(name, value, required=fields[name].is_required())
        }

    def _is_absent(self, name: str, value: Any, *, required: bool) -> bool:
        if value is None:
            return True
        if required:
            return False
        empty = isinstance(value, str) and not value.strip()
        return empty or (type(value) in (int, str) and value in self.arguments.absent.get(name, ()))

    def _unknown(self, arguments: dict[str, Any]) -> list[str]:
        """The arguments to ignore, by name. Raises InvalidRequest for those that were meant to be another one."""
        known = self.arguments.model_fields
        unknown = [name for name in arguments if name not in known]
        looked_at = unknown[:MAX_LOOKED_AT]
        meant = [(name, right) for name in looked_at if (right := intended(name, known, self.arguments.aliases))]
        if meant:
            problems = [f"unknown argument {bounded(name, 60)!r}; use {right}" for name, right in meant[:8]]
            takes = ", ".join(known)
            raise InvalidRequest(f"{'; '.join(problems)}. {self.definition.name} takes {takes}.")
        return unknown

    def _explain(self, error: ValidationError) -> str:
        problems = [
            self._problem(detail["type"], detail["loc"], detail.get("input"), detail["msg"])
            for detail in error.errors()
        ]
        return "; ".join(dict.fromkeys(problems[:8])) + "."

    def _problem(self, kind: str, location: tuple[int | str, ...], given: Any, message: str) -> str:
        if not location:
            return message.removeprefix("Value error, ")
        name = bounded(str(location[0]), 60)
        allowed = self.arguments.allowed[name]
        if kind == "missing":
            return f"{name} is required: {allowed}"
        return f"{name}: {_shown(given)} was given; allowed: {allowed}"


def _shown(given: Any) -> str:
    if isinstance(given, str) and not given.strip():
        return "an empty text"
    if isinstance(given, str) and len(given) > 60:
        return f"a text of {len(given)} characters"
    return bounded(ascii(given), 60)


def _with_note(result: ToolResult, note: str) -> ToolResult:
    """The result with one sentence more in its text and its `message`."""
    if isinstance(result, dict):
        return {**result, "statusMessage": _joined(result.get("statusMessage"), note)}
    structured = result.structured_content
    if structured is not None:
        structured = {**structured, "message": _joined(structured.get("message"), note)}
    content = list(result.content)
    for place, block in enumerate(content):
        if isinstance(block, types.TextContent):
            content[place] = block.model_copy(update={"text": f"{block.text}\n{note}"})
            break
    return result.model_copy(update={"content": content, "structured_content": structured})


def _joined(message: str | None, note: str) -> str:
    return f"{message} {note}" if message else note
