"""Anthropic's content blocks: their form, and the text in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from braid.core.errors import InvalidParameterError
from braid.server.guard.body import echo

USER_BLOCKS = "text, tool_result, search_result, document"
_TEXT_ONLY = "this model reads text only"

Block = Mapping[str, Any]


class Placed(NamedTuple):
    """A block and where it stands, for errors."""

    where: str
    block: Block


def blocks_of(content: object, where: str) -> Iterator[Placed]:
    """Content as blocks; a string is short for one block of text."""
    if isinstance(content, str):
        yield Placed(where, {"type": "text", "text": content})
        return
    if not isinstance(content, list):
        raise block_error(where, f"must be a string or a list of blocks, got {echo(content)}")
    for index, block in enumerate(content):
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise block_error(f"{where}.{index}", "must be an object with a type")
        yield Placed(f"{where}.{index}", block)


def text_of(placed: Placed) -> str:
    """The text of a block that a user, or a tool, shows to the model."""
    match placed.block["type"]:
        case "text":
            return string_of(placed, "text")
        case "search_result":
            parts = map(text_of, blocks_of(placed.block.get("content"), f"{placed.where}.content"))
            return "\n".join((string_of(placed, "title"), string_of(placed, "source"), *parts))
        case "tool_reference":
            return string_of(placed, "tool_name")
        case "document":
            return _document(placed)
        case "image":
            raise block_error(placed.where, f"is an image block: {_TEXT_ONLY}")
        case _:
            raise unknown(placed, USER_BLOCKS)


def _document(placed: Placed) -> str:
    source = placed.block.get("source")
    if not isinstance(source, dict) or source.get("type") != "text":
        raise block_error(placed.where, f"is a document block that is not plain text: {_TEXT_ONLY}")
    text = string_of(Placed(f"{placed.where}.source", source), "data")
    head = [part for key in ("title", "context") if isinstance(part := placed.block.get(key), str)]
    return "\n".join((*head, text))


def string_of(placed: Placed, name: str) -> str:
    """A field of a block that must be text."""
    value = placed.block.get(name)
    if not isinstance(value, str):
        raise block_error(f"{placed.where}.{name}", f"must be a string, got {echo(value)}")
    return value


def unknown(placed: Placed, known: str) -> InvalidParameterError:
    """The error for a block that cannot stand where it stands; ``known`` lists those that can."""
    return block_error(
        f"{placed.where}.type", f"{echo(placed.block['type'])} is not supported here; supported: {known}"
    )


def block_error(where: str, what: str) -> InvalidParameterError:
    """The error for a value at a dotted path."""
    return InvalidParameterError(f"{where} {what}", param=where.partition(".")[0])
