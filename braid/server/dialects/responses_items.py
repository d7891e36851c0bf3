"""Output items of a response as they grow, and the events of their lives.

An item begins with ``output_item.added`` and ends with ``output_item.done``; in between come its parts, each with
deltas and an end that repeats them as a whole. Only one item is open at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from braid.server.decode import Token
from braid.server.dialects.responses_input import seal_reasoning
from braid.server.dialects.responses_tools import InputText
from braid.text.reply import CallArguments, CallEnd, CallStart, Content, Reasoning, ReplyPart

Event = dict[str, Any]
Logprobs = Callable[[Sequence[Token]], list[dict[str, Any]]]


class OutputItem(Protocol):
    """An item of one kind. ``value`` is what it looks like now, with a status of the API."""

    def begin(self) -> list[Event]:
        """The events that open it."""
        ...

    def add(self, text: str) -> list[Event]:
        """More of its text."""
        ...

    def end(self) -> list[Event]:
        """The events that close what is in it; text held back may come first."""
        ...

    def value(self, status: str) -> dict[str, Any]: ...


class MessageItem:
    """The answer's text, with log-probabilities where they were asked for."""

    def __init__(self, id: str, place: Event) -> None:
        self._id = id
        self._at = {**place, "item_id": id, "content_index": 0}
        self._texts: list[str] = []
        self.logprobs: list[dict[str, Any]] = []

    def begin(self) -> list[Event]:
        return [{"type": "response.content_part.added", **self._at, "part": self._part()}]

    def add(self, text: str, logprobs: Sequence[dict[str, Any]] = ()) -> list[Event]:
        self._texts.append(text)
        self.logprobs.extend(logprobs)
        return [{"type": "response.output_text.delta", **self._at, "delta": text, "logprobs": list(logprobs)}]

    def end(self) -> list[Event]:
        part = self._part()
        done = {"type": "response.output_text.done", **self._at}
        return [
            {**done, "text": part["text"], "logprobs": part["logprobs"]},
            {"type": "response.content_part.done", **self._at, "part": part},
        ]

    def _part(self) -> dict[str, Any]:
        return {
            "type": "output_text",
            "text": "".join(self._texts),
            "annotations": [],
            "logprobs": list(self.logprobs),
        }

    def value(self, status: str) -> dict[str, Any]:
        content = [] if status == "in_progress" else [self._part()]
        return {
            "id": self._id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }


class ReasoningItem:
    """The model's thinking; ``sealed`` adds it as opaque text for clients that carry only that back."""

    def __init__(self, id: str, place: Event, *, sealed: bool) -> None:
        self._id = id
        self._at = {**place, "item_id": id, "content_index": 0}
        self._sealed = sealed
        self._texts: list[str] = []

    def begin(self) -> list[Event]:
        return [{"type": "response.content_part.added", **self._at, "part": self._part()}]

    def add(self, text: str) -> list[Event]:
        self._texts.append(text)
        return [{"type": "response.reasoning_text.delta", **self._at, "delta": text}]

    def end(self) -> list[Event]:
        part = self._part()
        return [
            {"type": "response.reasoning_text.done", **self._at, "text": part["text"]},
            {"type": "response.content_part.done", **self._at, "part": part},
        ]

    def _part(self) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": "".join(self._texts)}

    def value(self, status: str) -> dict[str, Any]:
        begun = status == "in_progress"
        part = self._part()
        sealed = seal_reasoning(part["text"]) if self._sealed and not begun else None
        return {
            "id": self._id,
            "type": "reasoning",
            "status": status,
            "summary": [],
            "content": [] if begun else [part],
            "encrypted_content": sealed,
        }


class FunctionCallItem:
    """A call of a function; its text is the arguments."""

    def __init__(self, id: str, place: Event, call: CallStart) -> None:
        self._id = id
        self._at = {**place, "item_id": id}
        self._call = call
        self._texts: list[str] = []

    def begin(self) -> list[Event]:
        return []

    def add(self, text: str) -> list[Event]:
        self._texts.append(text)
        return [{"type": "response.function_call_arguments.delta", **self._at, "delta": text}]

    def end(self) -> list[Event]:
        done = {"type": "response.function_call_arguments.done", **self._at}
        return [{**done, "name": self._call.name, "arguments": "".join(self._texts)}]

    def value(self, status: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "function_call",
            "status": status,
            "call_id": self._call.id,
            "name": self._call.name,
            "arguments": "".join(self._texts),
        }


class CustomCallItem:
    """A call of a custom tool; its text is the arguments, of which the client sees the input that they wrap."""

    def __init__(self, id: str, place: Event, call: CallStart) -> None:
        self._id = id
        self._at = {**place, "item_id": id}
        self._call = call
        self._input = InputText()
        self._texts: list[str] = []

    def begin(self) -> list[Event]:
        return []

    def add(self, text: str) -> list[Event]:
        return self._delta(self._input.feed(text))

    def _delta(self, text: str) -> list[Event]:
        if not text:
            return []
        self._texts.append(text)
        return [{"type": "response.custom_tool_call_input.delta", **self._at, "delta": text}]

    def end(self) -> list[Event]:
        rest = self._delta(self._input.finish())
        done = {"type": "response.custom_tool_call_input.done", **self._at}
        return [*rest, {**done, "input": "".join(self._texts)}]

    def value(self, status: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "custom_tool_call",
            "status": status,
            "call_id": self._call.id,
            "name": self._call.name,
            "input": "".join(self._texts),
        }


class OutputItems:
    """All items of one response, in their order.

    Args:
        suffix: makes the items' ids unique.
        custom: names of custom tools.
        sealed: reasoning items carry their text as ``encrypted_content`` too.
        logprobs: of the tokens that a text came from.
    """

    def __init__(self, suffix: str, custom: frozenset[str], *, sealed: bool, logprobs: Logprobs) -> None:
        self._suffix = suffix
        self._custom = custom
        self._sealed = sealed
        self._logprobs = logprobs
        self._done: list[dict[str, Any]] = []
        self._open: OutputItem | None = None
        self._tokens: list[Token] = []

    def feed(self, parts: Sequence[ReplyPart], tokens: Sequence[Token]) -> list[Event]:
        """More of the reply; ``tokens`` without any text wait for the text that comes of them."""
        self._tokens.extend(tokens)
        events = [event for part in parts for event in self._part(part)]
        if parts:
            self._tokens.clear()
        return events

    def _part(self, part: ReplyPart) -> list[Event]:
        match part:
            case Content(text):
                opened = [] if isinstance(self._open, MessageItem) else self._begin("msg")
                assert isinstance(self._open, MessageItem)
                logprobs, self._tokens = self._logprobs(self._tokens), []
                return opened + self._open.add(text, logprobs)
            case Reasoning(text):
                opened = [] if isinstance(self._open, ReasoningItem) else self._begin("rs")
                return opened + self._add(text)
            case CallStart():
                return self._begin("ctc" if part.name in self._custom else "fc", part)
            case CallArguments(_, text):
                return self._add(text)
            case CallEnd():
                return self._end("completed")

    def finish(self, status: str) -> list[Event]:
        """The reply is over. What is open ends with ``status``; a whole reply has a message or a call."""
        events = self._end(status)
        if status == "completed" and all(item["type"] == "reasoning" for item in self._done):
            events += self._begin("msg") + self._end(status)
        return events

    def values(self) -> list[dict[str, Any]]:
        """The items so far; one that is open is incomplete."""
        return self._done if self._open is None else [*self._done, self._open.value("incomplete")]

    def _add(self, text: str) -> list[Event]:
        assert self._open is not None
        return self._open.add(text)

    def _begin(self, kind: str, call: CallStart | None = None) -> list[Event]:
        events = self._end("completed")
        place = {"output_index": len(self._done)}
        item = self._make(kind, f"{kind}_{self._suffix}{len(self._done):04x}", place, call)
        self._open = item
        added = {"type": "response.output_item.added", **place, "item": item.value("in_progress")}
        return [*events, added, *item.begin()]

    def _make(self, kind: str, id: str, place: Event, call: CallStart | None) -> OutputItem:
        if kind == "msg":
            return MessageItem(id, place)
        if kind == "rs":
            return ReasoningItem(id, place, sealed=self._sealed)
        assert call is not None
        return CustomCallItem(id, place, call) if kind == "ctc" else FunctionCallItem(id, place, call)

    def _end(self, status: str) -> list[Event]:
        item, self._open = self._open, None
        if item is None:
            return []
        ended = item.end()
        value = item.value(status)
        place = {"output_index": len(self._done)}
        self._done.append(value)
        return [*ended, {"type": "response.output_item.done", **place, "item": value}]
