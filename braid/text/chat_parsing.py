"""The only door to transformers: its parser of chat replies. Imported on first use (1 to 3 s, 50 MB; no torch)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from braid.core.errors import BraidError, CheckpointError

_LITERAL = re.compile(r"[\w<>=/-]*")
_MAX_TAG_STEPS = 1_000_000_000
"""Tags squared times characters: patterns look for the end of each tag anew, and for that of its value. A call of 30
arguments may have a million characters."""


@lru_cache(maxsize=1)
def library() -> Any:
    """``transformers.utils.chat_parsing.response_parser``.

    Raises:
        BraidError: it is not installed.
    """
    try:
        from transformers.utils.chat_parsing import response_parser
    except ImportError as error:
        raise BraidError(
            f"reading tool calls needs transformers>=5.13: pip install 'braid[engine]' ({error})"
        ) from error
    return response_parser


class ChatParser:
    """Reads whole calls by one response template. Safe to use from several threads.

    Args:
        template: as JSON says it.
        where: it comes from, for errors.
    """

    def __init__(self, template: Mapping[str, Any], where: str) -> None:
        self._template = template
        self._where = where
        self._compiled: Any = None
        self._tags: list[str] = []
        """How the tags begin that patterns find in a region."""

    def load(self) -> None:
        """Import the library and compile the template.

        Raises:
            BraidError: transformers is not installed.
            CheckpointError: the template is not valid, and why.
        """
        module = library()
        try:
            self._compiled = module.load_response_template(self._template)
        except Exception as error:  # its checks raise ValueError, what they do not foresee raises anything
            message = f"{self._where}: is not a response template: {str(error)[:200]}"
            raise CheckpointError(message) from error
        self._tags = _tags(self._template)

    def calls(self, text: str, tools: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
        """The names and arguments (JSON text) of the calls that one region makes; none where the text is no call."""
        if self._compiled is None:
            self.load()
        if any(text.count(tag) ** 2 * len(text) > _MAX_TAG_STEPS for tag in self._tags):
            return []
        try:
            message = library().parse_response(text, self._compiled, prefix="", tools=list(tools))
            return [_call(call["function"]) for call in message.get("tool_calls", ())]
        except Exception:  # whatever it makes of a model's text: it is no call then
            return []


def _tags(template: Mapping[str, Any]) -> list[str]:
    """The literal beginnings of patterns for tags; of those that begin otherwise nothing is known."""
    fields = [field for field in template["fields"].values() if isinstance(field, Mapping)]
    patterns = [(field.get("content_args") or {}).get("tag_pattern", "") for field in fields]
    return [begin for pattern in patterns if (begin := _LITERAL.match(pattern)[0])]  # type: ignore[index]


def _call(function: Mapping[str, Any]) -> tuple[str, str]:
    name, arguments = function["name"], function["arguments"]
    if not (isinstance(name, str) and name and isinstance(arguments, dict)):
        raise TypeError("not a call")
    return name, json.dumps(arguments, ensure_ascii=False, allow_nan=False)
