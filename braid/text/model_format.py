"""The format of one model: how its replies are read, and the grammar they can be held to."""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

from braid.core.constraint import Constraint
from braid.text.chat_parsing import ChatParser
from braid.text.markers import Marker, compile_pattern
from braid.text.regions import Kind, Region, regions_of
from braid.text.reply import ReplyReader
from braid.text.reply_reader import Grammar, RegionReader
from braid.text.schema import typed
from braid.text.shell import ShellCalls, shell_tool
from braid.text.tools import Tool, ToolChoice
from braid.text.wire import Wire, WireTokens, write_grammar

_TAIL = 1 << 16
_ALPHANUMERIC = string.ascii_letters + string.digits


class SpecialTokens(Protocol):
    """What a format needs of a tokenizer."""

    special_token_ids: frozenset[int]
    eos_token_ids: frozenset[int]

    def token_id(self, token: str, /) -> int | None: ...

    def token_text(self, id: int, /) -> str: ...


class TemplateFormat:
    """A ``ReplyFormat`` by a response template.

    Args:
        name: what ``--tool-call-parser`` takes.
        template: as transformers reads it.
        wire: how calls are written, for grammars; None where only reading is known.
        tokenizer: says which markers are special tokens.
        reasons: whether the model thinks, so that a grammar lets it.
        call_id: ``long`` for OpenAI's shape, ``short`` for nine letters and digits.
        shell: the names of tool and argument in the template, where calls can only be of a tool that runs commands.
        where: the template comes from, for errors.
    """

    def __init__(
        self,
        name: str,
        template: Mapping[str, Any],
        wire: Wire | None,
        tokenizer: SpecialTokens,
        *,
        reasons: bool,
        call_id: str = "long",
        shell: tuple[str, str] | None = None,
        where: str = "response template",
    ) -> None:
        self.name = name
        self._parser = ChatParser(template, where)
        self._anchor = _anchor(template)
        self._regions = regions_of(template)
        self._wire = wire
        self._reasons = reasons
        self._shell = shell
        self._make_id = _short_id if call_id == "short" else _long_id
        special = {tokenizer.token_text(id): id for id in tokenizer.special_token_ids}
        known = _marker_text(template) + ("" if wire is None else wire.text)
        ids = {text: id for text, id in special.items() if text and text in known}
        self._tokens = WireTokens(ids, frozenset(t for t, id in ids.items() if id in tokenizer.eos_token_ids))
        self.special_tokens = frozenset(self._tokens.ids)

    def __repr__(self) -> str:
        return f"TemplateFormat({self.name!r})"

    def warm_up(self) -> None:
        """Import what reading a call needs (seconds), so that no request waits for it. Calls in JSON need nothing.

        Raises:
            BraidError: transformers is not installed.
        """
        if any(region.kind is Kind.WHOLE for region in self._regions):
            self._parser.load()

    def reader(self, *, prompt: str, tools: Sequence[Tool]) -> ReplyReader:
        shell = None if self._shell is None else shell_tool(tools)
        callable_ = bool(tools) and (self._shell is None or shell is not None)
        grammar = Grammar(
            regions=self._regions if callable_ else self._quiet_regions,
            parser=self._parser if shell is None else ShellCalls(self._parser, shell),
            tools=[typed(tool) for tool in tools],
            names=frozenset(tool.name for tool in tools),
            make_id=self._make_id,
        )
        opened, before = self._begun(prompt)
        return RegionReader(grammar, opened=opened, before=before)

    def constraint(
        self,
        *,
        tools: Sequence[Tool],
        choice: ToolChoice,
        parallel: bool,
        answer: Constraint | None,
        prompt: str,
    ) -> Constraint | None:
        if self._shell is not None:
            tools = [tool for tool in tools if shell_tool([tool]) is not None]
        opened, before = self._begun(prompt)
        thinks = opened is not None and opened.kind is Kind.REASONING
        return write_grammar(
            self._wire,
            self._tokens,
            tools=tools,
            choice=choice,
            parallel=parallel,
            answer=answer,
            thinking="open" if thinks else "maybe" if self._reasons and not before else "no",
        )

    @cached_property
    def _quiet_regions(self) -> tuple[Region, ...]:
        """All but those of calls."""
        return tuple(region for region in self._regions if region.kind not in (Kind.JSON, Kind.WHOLE))

    def _begun(self, prompt: str) -> tuple[Region | None, str]:
        """The region that the prompt leaves open, and what it holds of the reply."""
        tail = self._reply_tail(prompt[-_TAIL:])
        if not tail.strip():
            return None, ""
        reader = RegionReader(Grammar(regions=self._quiet_regions, parser=self._parser))
        reader.feed(tail)
        return reader.region, tail

    def _reply_tail(self, prompt: str) -> str:
        """The reply's part of a prompt: after the header of the last turn, else the opening of thinking at its end."""
        ends = [match.end() for match in self._anchor.finditer(prompt)]
        if ends:
            return prompt[ends[-1] :]
        openings = [region.open for region in self._regions if region.kind is Kind.REASONING]
        for begin in range(max(len(prompt) - 64, 0), len(prompt)):
            if any(_is_all(marker, prompt[begin:]) for marker in openings):
                return prompt[begin:]
        return ""


def _is_all(marker: Marker, text: str) -> bool:
    span = marker.last(text, 0)
    return span is not None and not text[span.end :].strip() and bool(text[: span.end].strip())


def _anchor(template: Mapping[str, Any]) -> Any:
    pattern = template.get("start_anchor_pattern")
    if pattern is None:
        literals = template.get("start_anchor", [])
        literals = [literals] if isinstance(literals, str) else literals
        pattern = "|".join(re.escape(literal) for literal in literals) or r"(?!)"
    return compile_pattern(pattern)


def _marker_text(template: Mapping[str, Any]) -> str:
    """All that a template says of markers, without the escapes of its patterns."""
    texts = []
    for field in template["fields"].values():
        for key in ("open", "close", "open_pattern", "close_pattern"):
            value = field.get(key, "")
            texts += value if isinstance(value, list) else [value]
    return "\n".join(texts).replace("\\", "")


def _long_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def _short_id() -> str:
    return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))
