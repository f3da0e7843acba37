"""Tool schemas in the small part of JSON Schema that every host understands.

The TypeScript SDK 1.22 lists no tool whose output schema has `$defs` or `$ref`; Gemini refuses `exclusiveMaximum` and
`multipleOf` in input schemas, and others trip over `anyOf` and `additionalProperties` (issue 14). What a schema leaves
out is still checked, and the message of the check names it.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

_NOT_IN_INPUTS = frozenset({"exclusiveMaximum", "exclusiveMinimum", "multipleOf", "anyOf", "title"})


def input_schema(arguments: type[BaseModel]) -> dict[str, Any]:
    """An arguments model as a flat object schema: no titles, no null alternatives, no default of null."""
    schema = _inlined(arguments.model_json_schema())
    properties = {name: _plain(field) for name, field in schema["properties"].items()}
    required = {"required": schema["required"]} if "required" in schema else {}
    return {"type": "object", "properties": properties, **required}


def output_schema(result: type[BaseModel]) -> dict[str, Any]:
    """A result model as one schema without `$defs` and `$ref`."""
    return _inlined(result.model_json_schema(mode="serialization"))


def _plain(field: dict[str, Any]) -> dict[str, Any]:
    alternatives = [choice for choice in field.get("anyOf", []) if choice != {"type": "null"}]
    merged = {**field, **alternatives[0]} if len(alternatives) == 1 else field
    if merged.get("default", 0) is None:
        del merged["default"]
    return {keyword: value for keyword, value in merged.items() if keyword not in _NOT_IN_INPUTS}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """Each `$ref` replaced by what it refers to. The models of this package do not refer to themselves."""
    definitions: dict[str, Any] = schema.pop("$defs", {})

    def resolve(part: Any) -> Any:
        if isinstance(part, list):
            return [resolve(item) for item in part]
        if not isinstance(part, dict):
            return part
        referred = definitions[part["$ref"].removeprefix("#/$defs/")] if "$ref" in part else {}
        return {key: resolve(value) for key, value in {**referred, **part}.items() if key != "$ref"}

    inlined: dict[str, Any] = resolve(schema)
    return inlined
