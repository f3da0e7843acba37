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
from sidecar.errors import InvalidRequest, SidecarError, bounded

ToolResult = types.CallToolResult | dict[str, Any]
"""What a tool answers; a dict is a task in its wire shape."""


class Arguments(BaseModel):
    """The base of all arguments models: an unknown argument is an error, a null is as good as an absent one."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_strip_whitespace=True)
    allowed: ClassVar[dict[str, str]] = {}
    """What completes "allowed: …" for each argument."""


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
        try:
            return await self._run(call, arguments)
        except SidecarError as error:
            return self.failed(error)

    async def _run(self, call: Call, arguments: dict[str, Any]) -> ToolResult:
        given = {name: value for name, value in arguments.items() if value is not None}
        try:
            checked = self.arguments.model_validate(given)
        except ValidationError as error:
            raise InvalidRequest(self._explain(error)) from None
        return await self.function(call, checked)

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
        if kind == "extra_forbidden":
            takes = ", ".join(self.arguments.model_fields) or "no arguments"
            return f"unknown argument {name!r}; {self.definition.name} takes {takes}"
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


def input_schema(arguments: type[Arguments]) -> dict[str, Any]:
    """The arguments model as the plain JSON schema that models read best: no titles, no null alternatives."""
    schema = arguments.model_json_schema()
    properties = {name: _plain(dict(field)) for name, field in schema["properties"].items()}
    return {
        "type": "object",
        "properties": properties,
        "required": schema.get("required", []),
        "additionalProperties": False,
    }


def _plain(field: dict[str, Any]) -> dict[str, Any]:
    alternatives = [choice for choice in field.pop("anyOf", []) if choice != {"type": "null"}]
    if len(alternatives) == 1:
        field.update(alternatives[0])
    if field.get("default", 0) is None:
        del field["default"]
    field.pop("title", None)
    return field
