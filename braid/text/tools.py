"""Tools as a model is told of them, and what a client lets it do with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple


@dataclass(frozen=True, kw_only=True, slots=True)
class Tool:
    """A function that a model may call.

    Args:
        name: what the model writes.
        description: what the model is told.
        parameters: JSON schema of the arguments object; None takes any object.
        strict: arguments must follow the schema even where the model is free not to call.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = field(default=None, hash=False)
    strict: bool = False

    def as_openai(self) -> dict[str, Any]:
        """In the form that chat templates are written for."""
        parameters = self.parameters or {"type": "object", "properties": {}}
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}


class ToolChoice(NamedTuple):
    """Whether the model calls.

    ``names`` limits it to these tools (empty: any). ``required`` with one name is a named call.
    """

    mode: Literal["none", "auto", "required"] = "auto"
    names: tuple[str, ...] = ()
