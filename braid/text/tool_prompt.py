"""Tools for chat templates that know none: written into the conversation as text, in the form that Hermes models use.

What a template shows already is left alone; this is for the others, such as SmolLM2's. ``hermes`` reads the answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]
_TOOLS = re.compile(r"\btools\b")
HERMES = '<tool_call>\n{"name": NAME, "arguments": {PARAMETER: VALUE}}\n</tool_call>'


def tells_tools(source: str) -> bool:
    """Whether a chat template shows tools to the model."""
    return _TOOLS.search(source) is not None


def shows_calls(source: str) -> bool:
    """Whether a chat template shows past calls."""
    return "tool_calls" in source


def write_tools(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, source: str, example: str = HERMES
) -> list[Message]:
    """The messages with tools, and where the template shows none also calls and their results, as text.

    Args:
        messages: as ``braid.text.messages.prepare`` gives them.
        tools: OpenAI's descriptions.
        source: of the chat template, which may take no system message, or may want roles to alternate.
        example: how the model is to write a call.
    """
    result = list(messages) if shows_calls(source) else _written(messages, source)
    return _tell(result, describe(tools, example), source) if tools else result


def _written(messages: Sequence[Message], source: str) -> list[Message]:
    """Results in a row are one message, whose text is joined when the last is known: there may be thousands."""
    result: list[Message] = []
    results: list[str] = []
    for message in messages:
        calls = message.get("tool_calls")
        if message["role"] in ("tool", "function"):
            if not results:
                result.append({"role": "user", "content": message["content"], "tool_result": True})
            results.append(f"<tool_response>\n{text_of(message['content'])}\n</tool_response>")
        elif message["role"] == "user" and results and not calls and "alternate" in source:
            results.append("\n" + text_of(message["content"]))
        else:
            _settle(result, results)
            result.append(_with_calls(message) if calls else message)
    _settle(result, results)
    return result


def _settle(messages: Sequence[Message], results: list[str]) -> None:
    """Write the results that the last message stands for, if it does."""
    if results:
        last = messages[-1]
        last["content"] = _like(last["content"], "\n".join(results))
        results.clear()


def describe(tools: Sequence[Mapping[str, Any]], example: str = HERMES) -> str:
    """What the model is told of its tools."""
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return (
        "You can call functions to answer the user. These are the functions, one JSON description per line:\n"
        f"<tools>\n{lines}\n</tools>\n\n"
        f"A call is written like this, in capitals what you fill in:\n{example}\n"
        "Several calls are written one after the other. You get their results before you go on. Where no function is "
        "needed, just answer."
    )


def text_of(content: Any) -> str:
    """Content as one text."""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content or ())


def _tell(messages: list[Message], told: str, source: str) -> list[Message]:
    refuses = "not supported" in source or ("alternate" in source and "system" not in source)
    takes_system = not refuses
    role = "system" if takes_system else "user"
    if messages and messages[0]["role"] == role:
        first = dict(messages[0])
        before, after = ("\n\n" + told, True) if takes_system else (told + "\n\n", False)
        _extend(first, before, at_end=after)
        return [first, *messages[1:]]
    like = messages[0]["content"] if messages else ""
    return [{"role": role, "content": _like(like, told)}, *messages]


def _with_calls(message: Message) -> Message:
    said = text_of(message["content"])
    calls = [_call(call["function"]) for call in message["tool_calls"]]
    text = "\n".join([said, *calls] if said else calls)
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**kept, "content": _like(message["content"], text)}


def _call(function: Mapping[str, Any]) -> str:
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    name = json.dumps(function["name"], ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {text or "{}"}}}\n</tool_call>'


def _like(content: Any, text: str) -> Any:
    """``text`` in the form of other content: one string, or a list of parts."""
    return [{"type": "text", "text": text}] if isinstance(content, list) else text


def _extend(message: Message, text: str, *, at_end: bool = True) -> None:
    said = text_of(message["content"])
    message["content"] = _like(message["content"], said + text if at_end else text + said)
