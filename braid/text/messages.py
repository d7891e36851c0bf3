"""Chat messages as a template wants them. Templates differ; what one wants is read from its source.

OpenAI's form (content as text or parts, tool arguments as JSON text) goes in; what Hugging Face templates are written
for (content as text, arguments as objects) comes out, except where the template's source shows that it wants otherwise.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from braid.core.errors import InvalidParameterError

MAX_DEPTH = 100
_LOOPS_OVER_CONTENT = re.compile(r"\bfor\s+\w+\s+in\s+[\w.\[\]'\"]*content\b")
_TESTS_STRING = re.compile(r"\bis\s+(?:not\s+)?string\b")
_TESTS_NONE = re.compile(r"content['\"\]]*\s*(?:is\s+(?:not\s+)?|[!=]=\s*)[nN]one\b")
_ARGUMENTS = r"[\w.\[\]'\"]*arguments['\"\]]*"
_JOINS_ARGUMENTS = re.compile(
    rf"{_ARGUMENTS}\s*[+~]|[+~]\s*{_ARGUMENTS}\s*(?![\w|.\s])|\{{\{{-?\s*{_ARGUMENTS}\s*-?\}}\}}"
)
_TAKES_OBJECTS = re.compile(
    r"arguments['\"\]]*\s*(?:\|\s*(?:tojson|items)|\.items|is\s+(?:not\s+)?(?:string|mapping))"
)
_WANTS_SHORT_IDS = re.compile(r"\bid\s*\|\s*length\s*[!=]=\s*9\b")
_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")
_TEXT_KEYS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_REASONING = ("reasoning_content", "thinking", "reasoning")


class TemplateWishes(NamedTuple):
    """What a template's source shows of the messages it is written for.

    Args:
        parts: it walks over content as a list of parts.
        text: it takes content as one string.
        null_content: it tells null content from empty content.
        argument_text: it wants tool arguments as JSON text.
        developer: it knows the developer role.
        short_ids: it takes call ids of nine letters and digits only, as Mistral's do.
    """

    parts: bool
    text: bool
    null_content: bool
    argument_text: bool
    developer: bool
    short_ids: bool = False


def wishes(source: str) -> TemplateWishes:
    """Read a template's source."""
    parts = _LOOPS_OVER_CONTENT.search(source) is not None
    return TemplateWishes(
        parts=parts,
        text=not parts or _TESTS_STRING.search(source) is not None,
        null_content=_TESTS_NONE.search(source) is not None,
        argument_text=bool(_JOINS_ARGUMENTS.search(source)) and not _TAKES_OBJECTS.search(source),
        developer="developer" in source,
        short_ids=_WANTS_SHORT_IDS.search(source) is not None,
    )


def prepare(messages: Sequence[Mapping[str, Any]], wished: TemplateWishes) -> list[dict[str, Any]]:
    """Copies of the messages in the template's form.

    Raises:
        InvalidParameterError: naming the message and the field at fault.
    """
    if not messages:
        raise InvalidParameterError("messages must not be empty", param="messages")
    check_depth(messages, "messages")
    return [_message(message, f"messages[{index}]", wished) for index, message in enumerate(messages)]


def check_depth(value: Any, param: str) -> None:
    """Refuse values nested so deep that walking them would exhaust the stack of the template engine.

    Raises:
        InvalidParameterError: naming the parameter.
    """
    level = [value]
    for _ in range(MAX_DEPTH):
        parts = [part.values() if isinstance(part, Mapping) else part for part in level]
        level = [item for part in parts for item in part if isinstance(item, (Mapping, list, tuple))]
        if not level:
            return
    raise InvalidParameterError(f"{param} is nested deeper than {MAX_DEPTH} levels", param=param)


def _message(message: Mapping[str, Any], where: str, wished: TemplateWishes) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise _error(where, f"must be an object, is a {type(message).__name__}")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise _error(f"{where}.role", f"must be a non-empty string, got {role!r}")
    result = dict(message)
    if role == "developer" and not wished.developer:
        result["role"] = "system"
    result["content"] = _content(message.get("content"), f"{where}.content", wished)
    calls = message.get("tool_calls")
    if calls:
        result["tool_calls"] = _tool_calls(calls, f"{where}.tool_calls", wished)
    else:
        # Many templates ask only whether the field is there.
        result.pop("tool_calls", None)
    if wished.short_ids and "tool_call_id" in message:
        result["tool_call_id"] = _short_id(message["tool_call_id"])
    reasoning = next((message[key] for key in _REASONING if message.get(key) is not None), None)
    if reasoning is not None:
        result = {"thinking": reasoning, **result, "reasoning_content": reasoning}
    return result


def _content(content: Any, where: str, wished: TemplateWishes) -> Any:
    if content is None:
        return None if wished.null_content else "" if wished.text else []
    if isinstance(content, str):
        return content if wished.text else [{"type": "text", "text": content}]
    if not isinstance(content, (list, tuple)):
        raise _error(where, f"must be a string or a list of parts, is a {type(content).__name__}")
    texts = [_part(part, f"{where}[{index}]") for index, part in enumerate(content)]
    return [{"type": "text", "text": text} for text in texts] if wished.parts else "\n".join(texts)


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise _error(where, f"must be an object, is a {type(part).__name__}")
    kind = part.get("type", "text")
    if not isinstance(kind, str) or kind not in _TEXT_KEYS:
        raise _error(f"{where}.type", f"{str(kind)[:40]!r} is not supported by this model; supported: text")
    text = part.get(_TEXT_KEYS[kind])
    if not isinstance(text, str):
        raise _error(f"{where}.{_TEXT_KEYS[kind]}", f"must be a string, is a {type(text).__name__}")
    return text


def _tool_calls(calls: Any, where: str, wished: TemplateWishes) -> list[dict[str, Any]]:
    if not isinstance(calls, (list, tuple)):
        raise _error(where, f"must be a list, is a {type(calls).__name__}")
    result = []
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise _error(f"{where}[{index}].function", "must be an object with a name")
        arguments = _arguments(function.get("arguments", ""), wished)
        told = {**call, "function": {**function, "arguments": arguments}}
        if wished.short_ids:
            told["id"] = _short_id(call.get("id"))
        result.append(told)
    return result


def _short_id(id: Any) -> str:
    """A call's id in nine letters and digits; equal ids stay equal, so that results find their calls."""
    if isinstance(id, str) and _SHORT_ID.fullmatch(id):
        return id
    return hashlib.sha256(str(id).encode("utf-8", "replace")).hexdigest()[:9]


def _arguments(arguments: Any, wished: TemplateWishes) -> Any:
    """Arguments as object or JSON text; text that is no JSON object (a model's slip, replayed) stays as it is."""
    if not isinstance(arguments, str):
        return json.dumps(arguments, ensure_ascii=False) if wished.argument_text else arguments
    if wished.argument_text:
        return arguments
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _error(where: str, what: str) -> InvalidParameterError:
    return InvalidParameterError(f"{where} {what}", param=where)
