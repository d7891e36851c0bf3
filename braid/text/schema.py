"""JSON schemas of tools, as grammars and readers of single arguments need them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from braid.core.constraint import JSON_BLANKS
from braid.text.tools import Tool

_DEFINITIONS = ("$defs", "definitions")
# Words of JSON schema that the grammar does not know are left out of it rather than refused.
_LENIENT = {"x-guidance": {"lenient": True, "whitespace_pattern": JSON_BLANKS}}
_MAX_HOPS = 16
_MAX_REFERENCE = 1024
_MAX_REPEAT = 4096


def tool_schema(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments object."""
    return {"type": "object", **(tool.parameters or {}), **_LENIENT}


def call_schema(tool: Tool, name: str, arguments: str) -> dict[str, Any]:
    """The schema of an object that holds a tool's name and its arguments under these keys."""
    inside = _moved(tool_schema(tool), f"#/properties/{arguments}")
    properties = {name: {"const": tool.name}, arguments: inside}
    return {
        "type": "object",
        "properties": properties,
        "required": [name, arguments],
        "additionalProperties": False,
    }


def _moved(schema: Any, root: str) -> Any:
    """A schema whose references find their definitions below ``root``."""
    if isinstance(schema, Mapping):
        return {
            key: root + value[1:]
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _moved(value, root)
            for key, value in schema.items()
        }
    return [_moved(item, root) for item in schema] if isinstance(schema, list) else schema


def property_schemas(tool: Tool) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    """Each argument's name, its schema with the definitions it may refer to, and whether it must be there."""
    parameters = tool.parameters or {}
    properties = parameters.get("properties")
    required = parameters.get("required")
    required = required if isinstance(required, list) else []
    shared = {key: parameters[key] for key in _DEFINITIONS if key in parameters}
    for name, schema in (properties if isinstance(properties, Mapping) else {}).items():
        resolved = resolve(schema, parameters)
        yield name, {**resolved, **shared, **_LENIENT}, name in required


def resolve(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema that a property is given by, where it only refers to a definition."""
    for _ in range(_MAX_HOPS):
        if not isinstance(schema, Mapping):
            return {}
        reference = schema.get("$ref")
        inner = schema.get("allOf")
        if isinstance(inner, list) and len(inner) == 1 and "type" not in schema:
            schema = inner[0]
        elif isinstance(reference, str) and reference.startswith("#/"):
            schema = _follow(root, reference)
        else:
            return schema
    return {}


def _follow(root: Any, reference: str) -> Any:
    if len(reference) > _MAX_REFERENCE:  # it is split anew for every property that refers to it
        return None
    for key in reference[2:].split("/"):
        key = key.replace("~1", "/").replace("~0", "~")
        root = root.get(key) if isinstance(root, Mapping) else None
    return root


def typed(tool: Tool) -> dict[str, Any]:
    """A tool in OpenAI's form whose properties say their types themselves, as the parser looks for them."""
    described = tool.as_openai()
    parameters = described["function"]["parameters"]
    properties = parameters.get("properties")
    if isinstance(properties, Mapping):
        resolved = {name: resolve(schema, parameters) for name, schema in properties.items()}
        described["function"]["parameters"] = {**parameters, "properties": resolved}
    return described


def text_bounds(schema: Mapping[str, Any]) -> tuple[int, int | None]:
    """Least and most characters of a text; bounds that would make too large a grammar are left out."""
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    least = least if type(least) is int and 0 <= least <= _MAX_REPEAT else 0
    return least, most if type(most) is int and least <= most <= _MAX_REPEAT else None


def is_text(schema: Mapping[str, Any]) -> bool:
    """Whether a value is written as plain text, without quotes."""
    declared = schema.get("type")
    types = [declared] if isinstance(declared, str) else declared if isinstance(declared, list) else []
    given = [schema.get(key) for key in ("anyOf", "oneOf")]
    options = [option for entries in given if isinstance(entries, list) for option in entries]
    if not types and not options:
        return "enum" not in schema and "const" not in schema
    return "string" in types or any(isinstance(option, Mapping) and is_text(option) for option in options)
