"""Tool calls as chat answers spell them: function calls, custom calls, and the older single function call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from braid.server.dialects.tools import custom_input
from braid.server.turn import Call
from braid.text.reply import CallArguments, CallEnd, CallStart, ReplyPart


@dataclass(frozen=True, kw_only=True, slots=True)
class CallSpelling:
    """How a client wants calls told.

    Args:
        customs: names of tools whose one argument is told as free text.
        older: tell one ``function_call`` instead of ``tool_calls``.
    """

    customs: frozenset[str] = frozenset()
    older: bool = False

    def whole(self, calls: Sequence[Call]) -> dict[str, Any]:
        """The field of a message that has the calls; empty without any."""
        if not calls:
            return {}
        if self.older:
            return {"function_call": {"name": calls[0].name, "arguments": calls[0].arguments}}
        return {"tool_calls": [self._call(call) for call in calls]}

    def finish_reason(self, reason: str | None) -> str | None:
        return "function_call" if self.older and reason == "tool_calls" else reason

    def _call(self, call: Call) -> dict[str, Any]:
        if call.name in self.customs:
            custom = {"name": call.name, "input": custom_input(call.arguments)}
            return {"id": call.id, "type": "custom", "custom": custom}
        function = {"name": call.name, "arguments": call.arguments}
        return {"id": call.id, "type": "function", "function": function}


class CallStream:
    """The calls of one choice as they come.

    A custom tool's text is known when its call has ended, and told at once. Its delta has no ``type``: clients take
    no other than ``function`` in a stream.
    """

    def __init__(self, spelling: CallSpelling) -> None:
        self._spelling = spelling
        self._held: dict[int, str] = {}

    def spell(self, part: ReplyPart) -> dict[str, Any] | None:
        """The delta that tells this part; None for nothing."""
        match part:
            case CallStart(number, id, name):
                return self._start(number, id, name)
            case CallArguments(number, text) if number in self._held:
                self._held[number] += text
                return None
            case CallArguments(number, text):
                more = {"arguments": text}
                return {"function_call": more} if self._spelling.older else _call(number, function=more)
            case CallEnd(number) if number in self._held:
                return self._release(number)
            case _:
                return None

    def finish(self) -> Iterator[dict[str, Any]]:
        """What is left of calls that the reply did not end."""
        for number in tuple(self._held):
            yield self._release(number)

    def _start(self, number: int, id: str, name: str) -> dict[str, Any]:
        if name in self._spelling.customs:
            self._held[number] = ""
            return _call(number, id=id, custom={"name": name, "input": ""})
        function = {"name": name, "arguments": ""}
        if self._spelling.older:
            return {"function_call": function}
        return _call(number, id=id, type="function", function=function)

    def _release(self, number: int) -> dict[str, Any]:
        return _call(number, custom={"input": custom_input(self._held.pop(number))})


def _call(number: int, **fields: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": number, **fields}]}
