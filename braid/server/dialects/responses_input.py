"""Input items of the Responses API as the messages of a conversation, in the form of chat completions.

Rules:
    1. Adjacent items of the assistant (reasoning, messages, calls) are one assistant message.
    2. ``instructions`` and the system and developer messages that follow them at once are one message: many templates
       take a system message in the first place only.
    3. Reasoning goes to the assistant message it stands beside; a reasoning item with none is left out.
    4. Items that only other servers make and read (searches, their shells, compaction) are left out and named in a
       warning. A type that nobody knows is refused, and so is a reference to a stored item.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from braid.core.errors import InvalidParameterError
from braid.server.errors import HttpError
from braid.server.guard.body import echo

Message = dict[str, Any]

_ROLES = ("user", "assistant", "system", "developer")
_LEADING = ("system", "developer")
_TEXT_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
FOREIGN = frozenset(
    {
        "additional_tools",
        "apply_patch_call",
        "apply_patch_call_output",
        "code_interpreter_call",
        "compaction",
        "compaction_summary",
        "compaction_trigger",
        "computer_call",
        "computer_call_output",
        "configuration_update",
        "file_search_call",
        "ghost_snapshot",
        "image_generation_call",
        "local_shell_call",
        "local_shell_call_output",
        "mcp_approval_request",
        "mcp_approval_response",
        "mcp_call",
        "mcp_list_tools",
        "program",
        "program_output",
        "shell_call",
        "shell_call_output",
        "tool_search_call",
        "tool_search_output",
        "web_search_call",
    }
)
"""Items that servers with tools of their own leave in a conversation."""
_KNOWN = "message, reasoning, function_call, function_call_output, custom_tool_call, custom_tool_call_output"
_SEALED = "braid-reasoning-1."


class Conversation(NamedTuple):
    """``breakpoints``: how many leading messages end in a part that the client marked; ``dropped``: types left out."""

    messages: list[Message]
    breakpoints: tuple[int, ...]
    dropped: list[str]


def seal_reasoning(text: str) -> str:
    """Reasoning as the opaque text that clients carry back to a server which stores nothing.

    Some clients return this and not the readable text. It is the client's own conversation, so it is packed, not
    encrypted.
    """
    return _SEALED + base64.b64encode(text.encode()).decode()


def open_reasoning(sealed: str) -> str:
    """What ``seal_reasoning`` packed; empty for what comes from another server."""
    if not sealed.startswith(_SEALED):
        return ""
    try:
        return base64.b64decode(sealed[len(_SEALED) :], validate=True).decode()
    except (binascii.Error, ValueError):
        return ""


def read_input(given: str | Sequence[dict[str, Any]], instructions: str | None) -> Conversation:
    """The conversation that a request carries.

    Raises:
        InvalidParameterError: naming the item at fault.
        HttpError: 404, an item refers to a stored one.
    """
    reader = _Reader()
    if instructions:
        reader.lead("system", instructions)
    if isinstance(given, str):
        reader.item({"role": "user", "content": given}, "input")
    else:
        for index, item in enumerate(given):
            reader.item(item, f"input.{index}")
    return reader.finish()


@dataclass(slots=True)
class _Assistant:
    """One turn of the model, put together from its items."""

    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)

    def message(self) -> Message | None:
        if not self.texts and not self.calls:
            return None
        message: Message = {"role": "assistant", "content": "\n".join(self.texts) if self.texts else None}
        if self.reasoning:
            message["reasoning_content"] = "\n".join(self.reasoning)
        if self.calls:
            message["tool_calls"] = self.calls
        return message


class _Reader:
    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._breakpoints: list[int] = []
        self._dropped: dict[str, None] = {}
        self._assistant: _Assistant | None = None
        self._leading = True
        self._head: list[str] = []

    def finish(self) -> Conversation:
        self._close()
        if self._head:
            self._messages[0]["content"] = "\n\n".join(self._head)
        return Conversation(self._messages, tuple(dict.fromkeys(self._breakpoints)), list(self._dropped))

    def lead(self, role: str, text: str) -> None:
        """Text of the first message; joined at the end, as there may be thousands of pieces."""
        if not self._messages:
            self._messages.append({"role": role, "content": ""})
        self._head.append(text)

    def item(self, item: dict[str, Any], where: str) -> None:
        kind = item.get("type")
        if kind is None:
            kind = "message" if "role" in item else "item_reference" if "id" in item else None
        match kind:
            case "message":
                self._message(item, where)
            case "reasoning":
                self._turn().reasoning.extend(_reasoning(item, where))
            case "function_call":
                self._call(item, where, _text(item, "arguments", where))
            case "custom_tool_call":
                text = _text(item, "input", where)
                self._call(item, where, json.dumps({"input": text}, ensure_ascii=False))
            case "function_call_output" | "custom_tool_call_output":
                self._output(item, where)
            case "item_reference":
                message = f"{where} refers to a stored item, and nothing is stored here: send the item itself"
                raise HttpError(404, message, param="input", code="item_not_found")
            case str() if kind in FOREIGN:
                self._dropped[kind] = None
            case _:
                message = f"{where}.type must be one of {_KNOWN}; got {echo(kind)}"
                raise InvalidParameterError(message, param="input")

    def _message(self, item: dict[str, Any], where: str) -> None:
        role = item.get("role")
        if role not in _ROLES:
            message = f"{where}.role must be one of {', '.join(_ROLES)}, got {echo(role)}"
            raise InvalidParameterError(message, param="input")
        texts = self._content(item.get("content"), f"{where}.content")
        if role == "assistant":
            self._turn().texts.append("".join(texts))
            return
        self._close()
        if role in _LEADING and self._leading:
            self.lead(role, "\n".join(texts))
        else:
            self._leading = False
            self._messages.append({"role": role, "content": _joined(texts)})
        self._mark(item.get("content"))

    def _output(self, item: dict[str, Any], where: str) -> None:
        self._close()
        self._leading = False
        call_id = item.get("call_id")
        if not isinstance(call_id, str):
            raise InvalidParameterError(f"{where}.call_id must be a string", param="input")
        texts = self._content(item.get("output"), f"{where}.output")
        self._messages.append({"role": "tool", "tool_call_id": call_id, "content": _joined(texts)})
        self._mark(item.get("output"))

    def _call(self, item: dict[str, Any], where: str, arguments: str) -> None:
        name, call_id = _text(item, "name", where), _text(item, "call_id", where)
        function = {"name": name, "arguments": arguments}
        self._turn().calls.append({"id": call_id, "type": "function", "function": function})

    def _turn(self) -> _Assistant:
        self._leading = False
        if self._assistant is None:
            self._assistant = _Assistant()
        return self._assistant

    def _close(self) -> None:
        """The assistant's items are over."""
        message = None if self._assistant is None else self._assistant.message()
        if message is not None:
            self._messages.append(message)
        self._assistant = None

    def _content(self, content: Any, where: str) -> list[str]:
        if isinstance(content, str):
            return [content]
        if not isinstance(content, list):
            raise InvalidParameterError(f"{where} must be a string or a list of parts", param="input")
        return [_part(part, f"{where}.{index}") for index, part in enumerate(content)]

    def _mark(self, content: Any) -> None:
        """Note a marked part of the newest message."""
        parts = content if isinstance(content, list) else ()
        if any(part.get("prompt_cache_breakpoint") is not None for part in parts):
            self._breakpoints.append(len(self._messages))


def _joined(texts: Sequence[str]) -> Any:
    """Several parts stay parts: how they are joined is the template's to say."""
    if len(texts) > 1:
        return [{"type": "text", "text": text} for text in texts]
    return texts[0] if texts else ""


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    key = _TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if key is None:
        message = (
            f"{where}.type must be input_text or output_text: this model reads text only; got {echo(kind)}"
        )
        raise InvalidParameterError(message, param="input")
    return _text(part, key, where)


def _text(item: dict[str, Any], name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise InvalidParameterError(f"{where}.{name} must be a string", param="input")
    return value


def _reasoning(item: dict[str, Any], where: str) -> list[str]:
    """The model's own words; another server's summary of them is not given to the model."""
    content = item.get("content")
    if content is not None and not isinstance(content, list):
        raise InvalidParameterError(f"{where}.content must be a list of parts or null", param="input")
    parts = enumerate(content or ())
    texts = [_reasoning_part(part, f"{where}.content.{index}") for index, part in parts]
    sealed = item.get("encrypted_content")
    if not texts and isinstance(sealed, str):
        texts = [open_reasoning(sealed)]
    return [text for text in texts if text]


def _reasoning_part(part: Any, where: str) -> str:
    if not isinstance(part, dict) or part.get("type") not in ("reasoning_text", "text"):
        raise InvalidParameterError(f"{where}.type must be reasoning_text", param="input")
    return _text(part, "text", where)
