"""The regions of a reply, read from a response template (the data format of ``transformers.utils.chat_parsing``).

A field's name says what its text is: ``reasoning_content``, ``thinking`` and ``reasoning`` are thinking, ``tool_calls``
are calls, every other text is content. A field whose name begins with ``_`` marks the space between regions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from braid.text.json_calls import Keys, Shape
from braid.text.markers import Marker, Watch

REASONING_FIELDS = frozenset({"reasoning_content", "thinking", "reasoning"})
_PLACEHOLDER = re.compile(r"\{(?:(content)\.)?(\w+)\}")
_KEYS = Keys()
_DIALECT = ("string_delims", "unquoted_keys")


class Kind(Enum):
    """What a region holds."""

    CONTENT = auto()
    REASONING = auto()
    JSON = auto()
    """Calls in JSON, whose arguments pass through as they grow."""
    WHOLE = auto()
    """Calls in another syntax, which the parser reads when the region is closed."""
    MARK = auto()
    """Nothing: a marker between regions."""


@dataclass(frozen=True, slots=True)
class Region:
    """One field of a response template.

    Args:
        open: None for a region that marks a place only.
        close: watches the marker at its end; None where only the end of the text ends it.
        joint: text between several regions of this field.
        shape, keys: of a JSON region.
    """

    name: str
    kind: Kind
    open: Marker
    close: Watch | None
    joint: str
    shape: Shape = Shape.OBJECT
    keys: Keys = _KEYS


def regions_of(template: Mapping[str, Any]) -> tuple[Region, ...]:
    """The regions of a template that transformers accepts.

    Raises:
        CheckpointError: a pattern is not valid.
    """
    regions = []
    for name, field in template["fields"].items():
        opens = _marker(field, "open")
        close = _marker(field, "close")
        if opens is None:
            if close is not None:
                regions.append(Region(name, Kind.MARK, close, None, ""))
            continue
        kind, shape, keys = _kind(name, field)
        if kind is not None:
            watch = None if close is None else Watch([close])
            regions.append(Region(name, kind, opens, watch, field.get("join", ""), shape, keys))
    return tuple(regions)


def _marker(field: Mapping[str, Any], key: str) -> Marker | None:
    if key in field:
        literals = field[key] if isinstance(field[key], list) else [field[key]]
        return Marker(literals=literals)
    pattern = field.get(f"{key}_pattern")
    return None if pattern is None else Marker(pattern=pattern)


def _kind(name: str, field: Mapping[str, Any]) -> tuple[Kind | None, Shape, Keys]:
    content = field.get("content", "text")
    if name == "tool_calls":
        shape = _shape(field) if content == "json" else None
        return (Kind.WHOLE, Shape.OBJECT, _KEYS) if shape is None else (Kind.JSON, *shape)
    kinds = (
        Kind.MARK if name.startswith("_") else Kind.REASONING if name in REASONING_FIELDS else Kind.CONTENT
    )
    # What is neither text nor a call has no place in a reply: it stays content, as it is written.
    return (kinds if content == "text" else None), Shape.OBJECT, _KEYS


def _shape(field: Mapping[str, Any]) -> tuple[Shape, Keys] | None:
    """How a JSON field makes calls, read from its transform; None where the parser has to do it."""
    if any(field.get("content_args", {}).get(option) for option in _DIALECT):
        return None
    transform = field.get("transform")
    function = transform.get("function") if isinstance(transform, dict) else None
    if not isinstance(function, dict) or set(function) != {"name", "arguments"}:
        return None
    name, arguments = (_PLACEHOLDER.fullmatch(str(function[key])) for key in ("name", "arguments"))
    if name is None or arguments is None:
        return None
    if field.get("transform_each"):
        return None if name[1] or arguments[1] else (Shape.LIST, Keys(name[2], arguments[2]))
    if name[1] and arguments[1]:
        return Shape.OBJECT, Keys(name[2], arguments[2])
    if (name[1], name[2]) == (None, "name") and (arguments[1], arguments[2]) == (None, "content"):
        return (Shape.ARGUMENTS, _KEYS) if "(?P<name>" in field.get("open_pattern", "") else None
    return None
