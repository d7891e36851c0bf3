"""Replies in Anthropic's form: content blocks, and the events in which they grow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from braid.server.dialects.messages_input import ID_PREFIX
from braid.server.lifecycle import Usage
from braid.text.reply import CallArguments, CallEnd, CallStart, Content, Reasoning, ReplyPart

RAW_ARGUMENTS = "raw_arguments"
"""The one key of a tool call's input where the model wrote no JSON object: what it did write."""

Event = dict[str, Any]


class BlockEvents:
    """From reply parts to the events of content blocks, which come one after the other.

    Clients parse a call's input before they have seen all of it, and most fail where it is no JSON object. So input is
    sent when it is complete, in one piece.
    """

    def __init__(self) -> None:
        self._index = -1
        self._open: str | None = None
        self._arguments = ""

    def feed(self, part: ReplyPart) -> list[Event]:
        match part:
            case Content(text):
                return self._more("text", {"type": "text", "text": ""}, "text", text)
            case Reasoning(text):
                empty = {"type": "thinking", "thinking": "", "signature": ""}
                return self._more("thinking", empty, "thinking", text)
            case CallStart(_, id, name):
                block = {"type": "tool_use", "id": f"{ID_PREFIX}{id}", "name": name, "input": {}}
                return [*self.end(), self._start("tool_use", block)]
            case CallArguments(_, text):
                self._arguments += text
                return []
            case CallEnd():
                return self.end()

    def end(self) -> list[Event]:
        """Complete the open block, if there is one."""
        kind, self._open = self._open, None
        if kind is None:
            return []
        last: list[Event] = []
        if kind == "thinking":
            last = [self._delta("signature_delta", "signature", "")]
        elif kind == "tool_use":
            value = msgspec.json.encode(call_input(self._arguments)).decode()
            last = [self._delta("input_json_delta", "partial_json", value)]
            self._arguments = ""
        return [*last, {"type": "content_block_stop", "index": self._index}]

    def _more(self, kind: str, empty: dict[str, Any], key: str, text: str) -> list[Event]:
        if not text:
            return []
        opening = [] if self._open == kind else [*self.end(), self._start(kind, empty)]
        return [*opening, self._delta(f"{kind}_delta", key, text)]

    def _start(self, kind: str, block: dict[str, Any]) -> Event:
        self._open = kind
        self._index += 1
        return {"type": "content_block_start", "index": self._index, "content_block": block}

    def _delta(self, kind: str, key: str, value: str) -> Event:
        return {"type": "content_block_delta", "index": self._index, "delta": {"type": kind, key: value}}


def call_input(arguments: str) -> dict[str, Any]:
    """A call's arguments as an object. Text that is none stands under ``raw_arguments``, so that the client's check of
    the input fails, and the model hears of it."""
    try:
        value = msgspec.json.decode(arguments or "{}")
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {RAW_ARGUMENTS: arguments}


def content_blocks(parts: Iterable[ReplyPart]) -> list[dict[str, Any]]:
    """Whole blocks; what a client makes of the events of the same parts."""
    grown = BlockEvents()
    blocks: list[dict[str, Any]] = []
    texts: list[str] = []
    for part in parts:
        for event in grown.feed(part):
            _fold(blocks, texts, event)
    for event in grown.end():
        _fold(blocks, texts, event)
    return blocks


def _fold(blocks: list[dict[str, Any]], texts: list[str], event: Event) -> None:
    match event:
        case {"content_block": block}:
            blocks.append(block)
            texts.clear()
        case {"delta": {"text": text} | {"thinking": text}}:
            texts.append(text)
        case {"delta": {"partial_json": text}}:
            blocks[-1]["input"] = msgspec.json.decode(text)
        case {"type": "content_block_stop"}:
            kind = blocks[-1]["type"]
            if kind != "tool_use":
                blocks[-1][kind] = "".join(texts)


def usage_payload(usage: Usage) -> dict[str, Any]:
    """Anthropic's usage object: ``input_tokens`` are those that were neither found in the cache nor written to it."""
    cached, written = usage.num_cached_tokens, usage.num_written_tokens
    return {
        "input_tokens": max(0, usage.num_prompt_tokens - cached - written),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.num_output_tokens,
        "output_tokens_details": {"thinking_tokens": usage.num_reasoning_tokens},
    }


def stop_reason(
    finish_reason: str | None, stopped_by: int | str | None, *, cut: bool, stops: Sequence[str]
) -> tuple[str, str | None]:
    """Why the answer ended, and the stop sequence that ended it. ``cut``: the context left less than was asked for."""
    if finish_reason == "tool_calls":
        return "tool_use", None
    if finish_reason == "length":
        return ("model_context_window_exceeded" if cut else "max_tokens"), None
    if isinstance(stopped_by, str) and stopped_by in stops:
        return "stop_sequence", stopped_by
    return "end_turn", None
