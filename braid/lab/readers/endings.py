"""How an answer ended and what a prompt brings, from the words that APIs use for it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

FINISH_OF: Mapping[str, str] = {
    "tool_use": "tool",
    "tool_calls": "tool",
    "function_call": "tool",
    "end_turn": "text",
    "stop": "text",
    "completed": "text",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "length": "length",
    "model_length": "length",
    "abort": "abort",
    "cancelled": "abort",
}
"""Words of the OpenAI and Anthropic APIs, of their agents' logs and of Braid's own, to ``table.FINISHES``. OpenAI's
``stop`` means a stop string too; it does not say which of both."""

_USER, _TOOL = {"text", "image", "document"}, {"tool_result"}


def finish_of(word: str | None) -> str | None:
    """One of ``table.FINISHES``; None for a word that is not known, or none."""
    return FINISH_OF.get(word.lower()) if word else None


def input_kind_of(parts: Collection[str]) -> str | None:
    """One of ``table.INPUT_KINDS``, from the types of the parts that are new in a prompt; None for no parts."""
    seen = set(parts)
    if not seen:
        return None
    if seen <= _TOOL:
        return "tool"
    return "user" if seen <= _USER else "mixed"


def tool_key(names: Iterable[str | None]) -> str | None:
    """The ``tool`` of a turn: its tools' different names in sorted order, joined by ``+``; None for no names."""
    return "+".join(sorted({name for name in names if name})) or None
