"""One turn of a conversation, whatever the dialect: what is asked for, and the parts of the reply as they come."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from braid.core.constraint import Constraint
from braid.core.request import NO_SLO, Slo
from braid.core.sampling import SamplingParams
from braid.server.decode import ChoiceDelta, Token
from braid.server.generate import Generation
from braid.text.reply import CallArguments, CallEnd, CallStart, Content, Reasoning, ReplyPart, ReplyReader
from braid.text.tools import Tool, ToolChoice

Message = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnRequest:
    """A checked request of any chat dialect.

    Args:
        model: as the client named it; None takes the served one.
        messages: OpenAI's form, with what the dialect adds converted into it.
        params: its ``max_tokens`` is what the client asked for, None where it set no limit.
        default_max_tokens: output limit where ``params`` sets none, cut to what the context leaves.
        constraint: what the text of the answer must look like; tool calls are not held to it.
        max_calls: most tool calls of the reply; None for any number.
        template: further variables of the chat template.
        breakpoints: how many leading messages the client marked as a reusable prefix, rising.
        size: bytes of the request body, which decide where the work is done.
        id_prefix: of the answer's id.
        param: the field that holds the conversation, for errors.
    """

    model: str | None = None
    messages: Sequence[Message]
    params: SamplingParams
    default_max_tokens: int | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    max_calls: int | None = None
    constraint: Constraint | None = None
    template: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    return_token_ids: bool = False
    cache_salt: str = ""
    priority: int = 0
    slo: Slo = NO_SLO
    breakpoints: tuple[int, ...] = ()
    size: int = 0
    id_prefix: str = "chatcmpl-"
    param: str = "messages"


class TurnDelta(NamedTuple):
    """What came of one choice at once; the last one has a ``finish_reason``: stop, length or tool_calls.

    ``tokens`` are kept only where log-probabilities or token ids were asked for.
    """

    number: int
    parts: Sequence[ReplyPart]
    tokens: Sequence[Token]
    finish_reason: str | None
    stop_reason: int | str | None


@dataclass(slots=True)
class Call:
    """A tool call that a reply makes."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Reply:
    """One choice as a whole."""

    reasoning: str = ""
    content: str = ""
    calls: list[Call] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def add(self, delta: TurnDelta) -> None:
        for part in delta.parts:
            self._add(part)
        self.tokens.extend(delta.tokens)
        self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason

    def _add(self, part: ReplyPart) -> None:
        match part:
            case Content(text):
                self.content += text
            case Reasoning(text):
                self.reasoning += text
            case CallStart(_, id, name):
                self.calls.append(Call(id, name))
            case CallArguments(number, text):
                self.calls[number].arguments += text


class Turn:
    """A turn on its way: iterate over ``deltas()`` once (or ``replies()``), then read ``usage``."""

    def __init__(self, generation: Generation, readers: Sequence[ReplyReader], max_calls: int | None) -> None:
        self.generation = generation
        self._readers = readers
        self._max_calls = max_calls
        self._done: set[int] = set()

    async def replies(self) -> list[Reply]:
        """All choices as wholes; the same parts that ``deltas`` gives."""
        replies = [Reply() for _ in self._readers]
        async with aclosing(self.deltas()) as deltas:
            async for delta in deltas:
                replies[delta.number].add(delta)
        return replies

    async def deltas(self) -> AsyncGenerator[TurnDelta, None]:
        """The parts of all choices as they come. Closing the generator ends the engine's work on them."""
        async with aclosing(self.generation.choices()) as choices:
            async for choice in choices:
                if choice.number in self._done:
                    continue
                delta = self._read(choice)
                if delta.finish_reason is not None:
                    self._done.add(choice.number)
                if delta.parts or delta.tokens or delta.finish_reason is not None:
                    yield delta

    def _read(self, choice: ChoiceDelta) -> TurnDelta:
        reader = self._readers[choice.number]
        parts = reader.feed(choice.text)
        if reader.in_reasoning:
            self.generation.num_reasoning_tokens += choice.num_tokens
        reason = choice.finish_reason
        if reason is not None:
            parts = [*parts, *reader.finish()]
        kept = self._within_limit(parts)
        if reader.num_calls:
            names = [part.name for part in kept if isinstance(part, CallStart)]
            self.generation.report.call_names.extend(names)
        if len(kept) < len(parts) or (reason is None and self._is_full(kept)):
            self.generation.end(choice.number)
            reason = "tool_calls"
        elif reason == "stop" and reader.num_calls:
            reason = "tool_calls"
        ending = self.generation.endings[choice.number]
        ending.add(kept)
        if reason is not None:
            self.generation.report.finish_reasons[choice.number] = reason
            ending.end(reason, choice.stop_reason)
        return TurnDelta(choice.number, kept, choice.tokens, reason, choice.stop_reason)

    def _within_limit(self, parts: Sequence[ReplyPart]) -> Sequence[ReplyPart]:
        """The parts up to the end of the last call that is allowed."""
        if self._max_calls is None:
            return parts
        for at, part in enumerate(parts):
            if isinstance(part, CallEnd) and part.number + 1 >= self._max_calls:
                return parts[: at + 1]
        return parts

    def _is_full(self, parts: Sequence[ReplyPart]) -> bool:
        return self._max_calls is not None and any(
            isinstance(part, CallEnd) and part.number + 1 >= self._max_calls for part in parts
        )
