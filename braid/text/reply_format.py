"""How a model writes reasoning and tool calls, as data: which readers, which constraints, which special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from braid.core.constraint import Constraint
from braid.text.reply import PlainReader, ReplyReader
from braid.text.tools import Tool, ToolChoice


class ReplyFormat(Protocol):
    """The way one family of models answers. Shared by all requests; safe to use from several threads."""

    @property
    def name(self) -> str:
        """Such as ``hermes``; what ``--tool-call-parser`` takes."""
        ...

    @property
    def special_tokens(self) -> frozenset[str]:
        """Special tokens that mark parts of a reply: their text must reach the reader."""
        ...

    def reader(self, *, prompt: str, tools: Sequence[Tool]) -> ReplyReader:
        """A reader for the output that follows ``prompt``, whose end may have opened a part already."""
        ...

    def constraint(
        self,
        *,
        tools: Sequence[Tool],
        choice: ToolChoice,
        parallel: bool,
        answer: Constraint | None,
        prompt: str,
    ) -> Constraint | None:
        """The grammar of the whole output: calls where ``choice`` demands them, ``answer`` where text is to follow it.

        None where everything is allowed.
        """
        ...


class PlainFormat:
    """A model that writes nothing but content."""

    name = "none"
    special_tokens: frozenset[str] = frozenset()

    def reader(self, *, prompt: str, tools: Sequence[Tool]) -> ReplyReader:
        return PlainReader()

    def constraint(
        self,
        *,
        tools: Sequence[Tool],
        choice: ToolChoice,
        parallel: bool,
        answer: Constraint | None,
        prompt: str,
    ) -> Constraint | None:
        return answer
