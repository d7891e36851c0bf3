"""Anthropic's conversations in OpenAI's form.

Rules:
    1. Messages of one role in a row are one turn. A user's texts are lines; an assistant's texts go on where the last
       one ended, as the model wrote them.
    2. A user's turn becomes its tool results, a ``tool`` message each, and then its text.
    3. A conversation that ends with the assistant's text is to be continued from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import msgspec

from braid.core.errors import InvalidParameterError
from braid.server.dialects.messages_blocks import (
    Block,
    Placed,
    block_error,
    blocks_of,
    string_of,
    text_of,
    unknown,
)
from braid.server.guard.body import echo
from braid.server.programs.volatile import without_volatile_line
from braid.server.turn import Message

ID_PREFIX = "toolu_"
"""Of tool calls in this dialect. Templates see ids without it: as the model's reader made them."""
MAX_MARKS = 4
_TTLS = ("5m", "1h")
_ROLES = ("user", "assistant", "system")
_ASSISTANT_BLOCKS = "text, thinking, redacted_thinking, tool_use"


@dataclass(slots=True)
class Conversation:
    """What templates are written for.

    Args:
        messages: OpenAI's form.
        marks: of every prefix that the client wants kept the number of its messages.
        prefill: the last message is the beginning of the answer.
        num_stripped: billing lines left out.
    """

    messages: list[Message] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    prefill: bool = False
    num_stripped: int = 0

    @property
    def breakpoints(self) -> tuple[int, ...]:
        """Ends of the marked prefixes, in messages, rising."""
        return tuple(sorted(set(self.marks)))


def read_conversation(
    system: str | Sequence[Block] | None,
    messages: Sequence[Block],
    *,
    tools: Sequence[Block] = (),
    cache_control: object = None,
    strip_volatile_line: bool = True,
) -> Conversation:
    """The whole conversation.

    Raises:
        InvalidParameterError: naming the block at fault; a block of an unknown type, or one that is not text.
    """
    reader = _Reader(strip_volatile_line)
    if system is not None:
        reader.system(list(blocks_of(system, "system")))
    turns = [_checked(message, f"messages.{index}") for index, message in enumerate(messages)]
    for role, group in groupby(turns, key=lambda turn: turn[0]):
        blocks = [block for _, content in group for block in content]
        reader.turn(role, blocks)
    last = turns[-1][0] if turns else "user"
    return reader.finish(last, tools, cache_control)


class _Reader:
    """Appends turn after turn."""

    def __init__(self, strip: bool) -> None:
        self._strip = strip
        self._out = Conversation()
        self._names: dict[str, str] = {}
        self._num_marks = 0

    def finish(self, last_role: str, tools: Sequence[Block], cache_control: object) -> Conversation:
        out = self._out
        if last_role == "assistant":
            if "tool_calls" in out.messages[-1]:
                raise block_error(
                    "messages", "must not end with a tool_use block: its tool_result must follow"
                )
            out.prefill = True
        for index, tool in enumerate(tools):
            self._mark(Placed(f"tools.{index}", tool), at=1)
        self._mark(Placed("", {"cache_control": cache_control}))
        if self._num_marks > MAX_MARKS:
            message = f"at most {MAX_MARKS} blocks may have cache_control, got {self._num_marks}"
            raise InvalidParameterError(message, param="cache_control")
        return out

    def turn(self, role: str, blocks: list[Placed]) -> None:
        if role == "user":
            self._user(blocks)
        elif role == "assistant":
            self._assistant(blocks)
        else:
            self.system(blocks)

    def system(self, blocks: list[Placed]) -> None:
        texts = [kept for placed in blocks if (kept := self._system_text(placed))]
        messages = self._out.messages
        if texts:
            joined = "\n".join(texts)
            if messages and messages[-1]["role"] == "system":
                messages[-1]["content"] += "\n" + joined
            else:
                messages.append({"role": "system", "content": joined})
        for placed in blocks:
            self._mark(placed)

    def _system_text(self, placed: Placed) -> str:
        if placed.block["type"] != "text":
            raise unknown(placed, "text")
        text = string_of(placed, "text")
        kept = without_volatile_line(text) if self._strip else None
        if kept is None:
            return text
        self._out.num_stripped += 1
        return kept

    def _user(self, blocks: list[Placed]) -> None:
        rest = [placed for placed in blocks if placed.block["type"] != "tool_result"]
        for placed in blocks:
            if placed.block["type"] == "tool_result":
                self._out.messages.append(self._tool_result(placed))
                self._mark(placed)
        if rest or not blocks:
            content = "\n".join(text_of(placed) for placed in rest)
            self._out.messages.append({"role": "user", "content": content})
        for placed in rest:
            self._mark(placed)

    def _tool_result(self, placed: Placed) -> Message:
        given = string_of(placed, "tool_use_id")
        content = placed.block.get("content")
        parts = [] if content is None else list(blocks_of(content, f"{placed.where}.content"))
        text = "\n".join(map(text_of, parts))
        failed = placed.block.get("is_error")
        if not isinstance(failed, bool | None):
            raise block_error(f"{placed.where}.is_error", f"must be a boolean, got {echo(failed)}")
        # OpenAI's form cannot say that a call failed other than in its text.
        if failed and "error" not in text[:40].lower():
            text = f"Error: {text}"
        message = {"role": "tool", "tool_call_id": given.removeprefix(ID_PREFIX), "content": text}
        return {**message, "name": self._names[given]} if given in self._names else message

    def _assistant(self, blocks: list[Placed]) -> None:
        texts, thoughts, calls = [], [], []
        for placed in blocks:
            match placed.block["type"]:
                case "text":
                    texts.append(string_of(placed, "text"))
                case "thinking":
                    thoughts.append(string_of(placed, "thinking"))
                case "redacted_thinking":
                    continue  # nobody here can read it
                case "tool_use":
                    calls.append(self._call(placed))
                case _:
                    raise unknown(placed, _ASSISTANT_BLOCKS)
        text = "".join(texts)
        message: Message = {"role": "assistant", "content": None if calls and not text else text}
        if calls:
            message["tool_calls"] = calls
        if any(thoughts):
            message["reasoning_content"] = "\n".join(thoughts)
        self._out.messages.append(message)
        for placed in blocks:
            self._mark(placed)

    def _call(self, placed: Placed) -> dict[str, Any]:
        given, name = string_of(placed, "id"), string_of(placed, "name")
        arguments = placed.block.get("input")
        if not isinstance(arguments, dict):
            raise block_error(f"{placed.where}.input", f"must be an object, got {echo(arguments)}")
        self._names[given] = name
        function = {"name": name, "arguments": msgspec.json.encode(arguments).decode()}
        return {"id": given.removeprefix(ID_PREFIX), "type": "function", "function": function}

    def _mark(self, placed: Placed, at: int | None = None) -> None:
        """Tools are a part of what stands before all messages: a prefix that has them has the first one."""
        control = placed.block.get("cache_control")
        if control is None:
            return
        where = f"{placed.where}.cache_control".removeprefix(".")
        self._num_marks += 1
        _check_control(control, where)
        num_messages = len(self._out.messages) if at is None else at
        if num_messages:
            self._out.marks.append(num_messages)


def _checked(message: Block, where: str) -> tuple[str, list[Placed]]:
    role = message.get("role")
    if role not in _ROLES:
        raise block_error(f"{where}.role", f"must be one of {', '.join(_ROLES)}, got {echo(role)}")
    if message.get("content") is None:
        raise block_error(f"{where}.content", "is missing")
    return role, list(blocks_of(message["content"], f"{where}.content"))


def _check_control(control: object, where: str) -> None:
    kind = control.get("type") if isinstance(control, dict) else None
    ttl = control.get("ttl") if isinstance(control, dict) else None
    if kind != "ephemeral" or ttl not in (None, *_TTLS):
        message = f"{where} must have type 'ephemeral' and a ttl of {' or '.join(_TTLS)}"
        raise InvalidParameterError(message, param="cache_control")
