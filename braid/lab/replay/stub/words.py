"""What the stub server knows of text: a tokenizer of words, an endless prefix cache, and the bytes of its replies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import msgspec

BOS, ROLE, END_OF_MESSAGE = 1, 2, 3
"""Special tokens: before a prompt, before and behind a chat message."""
_FIRST, _SPACE = 256, 2**24
_PIECE = re.compile(r" ?[^\s]+|\s")
REPLY = (
    " river", " mountain", " city", " harbour", " winter", " morning", " letter", " garden",
    " window", " bridge", " island", " forest", " village", " orchard", " meadow", " lantern",
)  # fmt: skip
"""Replies go round these words, one token each."""

_CLOSE = b"}\n\n"
_encode = msgspec.json.Encoder().encode


class WordTokenizer:
    """Every ``" word"`` is one token, whatever stands beside it; a further white space character is one too.

    The id of a word is the same in every process (its CRC-32; in the rare case that two words share one, the later
    gets the next).
    """

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._texts: dict[int, str] = {BOS: "<s>", ROLE: "<role>", END_OF_MESSAGE: "<end>"}

    def encode(self, text: str) -> list[int]:
        """Token ids, no special ones."""
        known = self._ids
        return [known[piece] if piece in known else self._new(piece) for piece in _PIECE.findall(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids that this process has seen; a ``?`` for others."""
        return "".join(self._texts.get(number, " ?") for number in ids)

    def chat(self, contents: Sequence[str]) -> list[int]:
        """A conversation: a role token, the content and an end token for each message, and the role of the reply."""
        ids: list[int] = [BOS]
        for content in contents:
            ids += (ROLE, *self.encode(content), END_OF_MESSAGE)
        return [*ids, ROLE]

    def _new(self, piece: str) -> int:
        number = _FIRST + crc32(piece.encode()) % _SPACE
        while number in self._texts:
            number += 1
        self._ids[piece], self._texts[number] = number, piece
        return number


class PrefixCache:
    """Remembers every full block for ever: the best hit rate that a prefix cache can have."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._known: set[int] = set()

    def enter(self, ids: Sequence[int]) -> int:
        """How many of the first tokens were known; they all are from now on."""
        size, parent, hits, all_known = self._block_size, 0, 0, True
        for at in range(0, len(ids) - size + 1, size):
            parent = hash((parent, *ids[at : at + size]))
            all_known = all_known and parent in self._known
            hits += all_known
            self._known.add(parent)
        return hits * size


class Pieces:
    """The events of one kind of stream (text or chat), encoded once.

    ``words[i]`` is the event of word ``i`` of ``REPLY``; ``ends[reason][i]`` the same as the last of a reply;
    ``first`` what a chat begins with (empty for text).
    """

    def __init__(self, model: str, chat: bool) -> None:
        self._object = "chat.completion.chunk" if chat else "text_completion"
        self._model, self._chat = model, chat
        self.first = chunk(self._head(self._choice("", None, role=True)) + _CLOSE) if chat else b""
        self._heads = {reason: self._heads_of(reason) for reason in (None, "length", "stop")}
        self._no_choice = self._head()
        whole = {reason: tuple(chunk(h + _CLOSE) for h in heads) for reason, heads in self._heads.items()}
        self.words = whole[None]
        self.ends = {reason: whole[reason] for reason in ("length", "stop")}

    def with_usage(self, word: int, reason: str | None, usage: bytes) -> bytes:
        """A word's event that tells the usage so far."""
        return chunk(b'%b,"usage":%b}\n\n' % (self._heads[reason][word], usage))

    def with_ids(
        self, word: int, reason: str | None, number: int, prompt: Sequence[int] | None, usage: bytes
    ) -> bytes:
        """A word's event with its token id, the prompt's ids (in the first event) and the usage (where there is)."""
        choice = {**self._choice(REPLY[word], reason), "token_ids": [number]}
        if prompt is not None:
            choice["prompt_token_ids"] = prompt
        tail = b',"usage":%b' % usage if usage else b""
        return chunk(self._head(choice) + tail + _CLOSE)

    def usage(self, usage: bytes) -> bytes:
        """The event of no choice that tells the whole usage."""
        return chunk(b'%b,"usage":%b}\n\n' % (self._no_choice, usage))

    def _heads_of(self, reason: str | None) -> tuple[bytes, ...]:
        return tuple(self._head(self._choice(word, reason)) for word in REPLY)

    def _choice(self, text: str, reason: str | None, role: bool = False) -> dict[str, Any]:
        if not self._chat:
            return {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
        delta = {"role": "assistant", "content": ""} if role else {"content": text}
        return {"index": 0, "delta": delta, "finish_reason": reason}

    def _head(self, *choices: dict[str, Any]) -> bytes:
        """An event up to its closing brace."""
        value = {"id": "stub", "object": self._object, "created": 0, "model": self._model, "choices": choices}
        return b"data: " + _encode(value)[:-1]


def chunk(data: bytes) -> bytes:
    """One chunk of a body of unknown length."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def usage_bytes(prompt: int, cached: int, output: int) -> bytes:
    """A usage object."""
    return (
        b'{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,"prompt_tokens_details":{"cached_tokens":%d}}'
        % (prompt, prompt + output, output, cached)
    )


def reply_text(num_tokens: int) -> str:
    """``num_tokens`` words."""
    return "".join(REPLY[at % len(REPLY)] for at in range(num_tokens))
