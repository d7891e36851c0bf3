"""Text as it grows: incremental detokenisation and stop strings. A state machine that asks a tokenizer for bytes only.

Rules:
    1. The deltas joined (``push`` and the final ``finish``) are the whole text; no delta holds part of a character.
    2. U+FFFD appears only once it is certain that the bytes so far cannot become a character.
    3. Text that may be the beginning of a stop string is held back until it is decided.
    4. The stop string that ends first wins, of several that end together the longest; so token borders do not matter.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from braid.core.sampling import SamplingParams


class TokenBytes(Protocol):
    """What a stream needs of a tokenizer."""

    @property
    def special_token_ids(self) -> frozenset[int]: ...

    def token_bytes(self, id: int, /) -> bytes: ...


class TextDelta(NamedTuple):
    """New text; the stop string that ended the text, if any; and how many of the pushed tokens the text consumed."""

    text: str
    stopped: str | None
    num_tokens: int


class StopMatcher:
    """Finds stop strings in text given piece by piece, in linear time (Knuth-Morris-Pratt, one per string)."""

    __slots__ = ("_fallbacks", "_states", "_stops")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._fallbacks = tuple(_fallbacks(stop) for stop in stops)
        self._states = [0] * len(stops)

    @property
    def is_empty(self) -> bool:
        """There is nothing to look for."""
        return not self._stops

    @property
    def pending(self) -> int:
        """Characters at the end of the text that may be the beginning of a stop string."""
        return max(self._states, default=0)

    def find(self, text: str, counts: bool) -> tuple[int, str] | None:
        """Look at further text: where in it a stop string ends (exclusive), and which; None without a match.

        ``counts=False`` passes over matches that end in this text.
        """
        if not self._stops:
            return None
        for at, char in enumerate(text):
            found = [stop for index, stop in enumerate(self._stops) if self._advance(index, char)]
            if found and counts:
                return at + 1, max(found, key=len)
        return None

    def _advance(self, index: int, char: str) -> bool:
        stop, fallbacks, state = self._stops[index], self._fallbacks[index], self._states[index]
        while state and stop[state] != char:
            state = fallbacks[state]
        state += stop[state] == char
        matched = state == len(stop)
        self._states[index] = fallbacks[state] if matched else state
        return matched


def _fallbacks(stop: str) -> list[int]:
    """``[n]`` is the length of the longest proper prefix of ``stop`` that ends ``stop[:n]``."""
    lengths = [0, 0]
    for char in stop[1:]:
        length = lengths[-1]
        while length and stop[length] != char:
            length = lengths[length]
        lengths.append(length + (stop[length] == char))
    return lengths


class TextStream:
    """The text of one output, token by token.

    The text continues a prompt: a leading blank belongs to it (``Tokenizer.decode(..., continuation=True)``).
    ``keep_special`` names special tokens that are text here although others are left out.
    """

    __slots__ = (
        "_bytes",
        "_decoder",
        "_held",
        "_include_stop",
        "_matcher",
        "_min_tokens",
        "_parts",
        "_skip",
        "_tokens",
        "stopped",
    )

    def __init__(
        self, tokenizer: TokenBytes, params: SamplingParams, *, keep_special: frozenset[int] = frozenset()
    ) -> None:
        self._bytes = tokenizer.token_bytes
        special = tokenizer.special_token_ids - keep_special
        self._skip = special if params.skip_special_tokens else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._matcher = StopMatcher(params.stop)
        self._include_stop = params.include_stop_str_in_output
        self._min_tokens = params.min_tokens
        self._tokens = 0
        self._held = ""
        self._parts: list[str] = []
        self.stopped: str | None = None
        """The stop string that ended the text."""

    @property
    def text(self) -> str:
        """All text given out so far."""
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    def push(self, token_ids: Sequence[int]) -> TextDelta:
        """Add tokens. After a stop string nothing more is consumed."""
        parts: list[str] = []
        consumed = 0
        for id in token_ids:
            if self.stopped is not None:
                break
            consumed += 1
            self._tokens += 1
            if id not in self._skip:
                parts.append(self._feed(self._decoder.decode(self._bytes(id))))
        return TextDelta(self._give("".join(parts)), self.stopped, consumed)

    def finish(self) -> str:
        """End the text: give out what was held back, U+FFFD for an unfinished character."""
        if self.stopped is not None:
            return ""
        text = self._feed(self._decoder.decode(b"", True))
        text, self._held = text + self._held, ""
        return self._give(text)

    def _give(self, text: str) -> str:
        if text:
            self._parts.append(text)
        return text

    def _feed(self, text: str) -> str:
        """The text that is decided, given the text of one more token."""
        if not text or self._matcher.is_empty:
            return text
        match = self._matcher.find(text, self._tokens >= self._min_tokens)
        text, begin = self._held + text, len(self._held)
        if match is not None:
            end, self.stopped = match
            self._held = ""
            return text[: begin + end - (0 if self._include_stop else len(self.stopped))]
        keep = len(text) - self._matcher.pending
        self._held = text[keep:]
        return text[:keep]
