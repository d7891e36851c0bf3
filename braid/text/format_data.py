"""The formats that come with Braid, and which one a model writes.

A file holds: ``template``, a response template as transformers reads it; ``wire``, the same syntax for writing (see
``braid.text.wire``); ``aliases``, other names; ``in_template``, alternatives of strings that a chat template of such a
model holds; ``tokens``, which all are in its vocabulary; ``call_id``, the shape of call ids;
``shell``, the name and the argument that the template gives a call of the one tool that runs commands;
``always_reasons``, where the syntax itself has a place for thinking.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from braid.core.errors import InvalidParameterError
from braid.text.tool_prompt import shows_calls, tells_tools

ORDER = (
    "harmony",
    "qwen3_coder",
    "glm45",
    "gemma",
    "deepseek_v31",
    "deepseek_v3",
    "mistral",
    "mistral_list",
    "hermes",
    "llama3_json",
    "bash",
    "reasoning",
)
"""All formats; of several that fit a model the first is taken."""
NONE = "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class FormatData:
    """One file."""

    name: str
    template: Mapping[str, Any]
    wire: Mapping[str, Any] | None = None
    aliases: tuple[str, ...] = ()
    in_template: tuple[tuple[str, ...], ...] = ()
    tokens: tuple[str, ...] = ()
    call_id: str = "long"
    shell: tuple[str, str] | None = None
    always_reasons: bool = False


@lru_cache(maxsize=1)
def formats() -> dict[str, FormatData]:
    """All formats by name, in the order in which they are tried."""
    return {name: _load(name) for name in ORDER}


def _load(name: str) -> FormatData:
    text = (files("braid.text") / "formats" / f"{name}.json").read_text("utf-8")
    data = json.loads(text)
    return FormatData(
        name=name,
        template=data["template"],
        wire=data.get("wire"),
        aliases=tuple(data.get("aliases", ())),
        in_template=tuple(tuple(strings) for strings in data.get("in_template", ())),
        tokens=tuple(data.get("tokens", ())),
        call_id=data.get("call_id", "long"),
        shell=(data["shell"][0], data["shell"][1]) if "shell" in data else None,
        always_reasons=data.get("always_reasons", False),
    )


def by_name(name: str) -> FormatData:
    """The format of that name or alias; case and hyphens do not matter.

    Raises:
        InvalidParameterError: listing the names.
    """
    wanted = name.strip().lower().replace("-", "_")
    for data in formats().values():
        if wanted == data.name or wanted in data.aliases:
            return data
    names = ", ".join(sorted({NONE, *formats(), *(a for data in formats().values() for a in data.aliases)}))
    raise InvalidParameterError(
        f"tool_call_parser {name!r} is not known; known: {names}", param="tool_call_parser"
    )


def shown_in(chat_template: str) -> FormatData | None:
    """The format whose calls a chat template writes."""
    for data in formats().values():
        if any(all(string in chat_template for string in strings) for strings in data.in_template):
            return data
    return None


def guess(chat_template: str | None, has_token: Callable[[str], bool]) -> FormatData | None:
    """The format that a model's chat template shows, else its vocabulary; None where neither says anything.

    A template that shows neither tools nor calls gets them written in by ``braid.text.tool_prompt``, as ``hermes``
    reads them. One that shows tools in a way that is not known here is read for thinking only.
    """
    known = formats()
    if chat_template is None:
        found = (data for data in known.values() if data.tokens and all(map(has_token, data.tokens)))
        return next(found, None)
    if not tells_tools(chat_template) and not shows_calls(chat_template):
        return known["hermes"]
    shown = shown_in(chat_template)
    return shown or known["reasoning" if tells_tools(chat_template) else "hermes"]
