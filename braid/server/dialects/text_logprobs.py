"""Log-probabilities of a text's tokens: the lists of text completions, and those of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from braid.core.request import TokenLogprobs
from braid.server.decode import Token
from braid.server.dialects.logprobs import LOWEST_LOGPROB
from braid.server.errors import RequestFailedError
from braid.text.tokenizer import Tokenizer

PromptLogprobs = Sequence[TokenLogprobs | None]
Lists = dict[str, list[Any]]
Ranked = dict[str, dict[str, Any]]


def ranked_entries(tokenizer: Tokenizer, entries: PromptLogprobs, count: int) -> list[Ranked | None]:
    """vLLM's shape for a prompt: by token id, the token that stands there and the ``count`` best; None for the
    first."""
    return [None if entry is None else _ranked(tokenizer, entry, count) for entry in entries]


def _ranked(tokenizer: Tokenizer, entry: TokenLogprobs, count: int) -> Ranked:
    ranked = [(entry.token_id, entry.logprob, entry.rank)]
    ranked += [(token, logprob, rank) for rank, (token, logprob) in enumerate(entry.top[:count], 1)]
    out: Ranked = {}
    for token, logprob, rank in ranked:
        text = tokenizer.token_text(token)
        value = max(logprob, LOWEST_LOGPROB)
        out.setdefault(str(token), {"logprob": value, "rank": rank, "decoded_token": text})
    return out


def require_prompt_logprobs(entries: PromptLogprobs | None, num_tokens: int) -> PromptLogprobs:
    """Raises RequestFailedError where the engine did not send what it was asked for."""
    if entries is None or len(entries) != num_tokens:
        raise RequestFailedError("the engine gave no log-probabilities of the prompt")
    return entries


class TextLogprobs:
    """Four lists with one entry per token; offsets count characters in one choice's text.

    Args:
        count: alternatives per token.
        hidden: special tokens that the output's text leaves out.
        chars: characters of the choice's text before its first token.
    """

    def __init__(self, tokenizer: Tokenizer, count: int, hidden: frozenset[int], chars: int) -> None:
        self._tokenizer = tokenizer
        self._count = count
        self._hidden = hidden
        self._chars = chars

    def prompt(self, tokens: Sequence[int], entries: PromptLogprobs, text: str) -> Lists:
        """The lists of a prompt that is shown as ``text``; the first token has no log-probability."""
        out = _lists()
        at = 0
        for token, entry in zip(tokens, entries, strict=True):
            data = self._tokenizer.token_bytes(token)
            self._append(out, token, entry, min(at - _continues(data), len(text)))
            at += self._shown(token, data, text, at)
        return out

    def output(self, tokens: Sequence[Token]) -> Lists:
        """The lists of further output tokens."""
        out = _lists()
        for token in tokens:
            if token.logprobs is None:
                continue
            data = b"" if token.token_id in self._hidden else self._tokenizer.token_bytes(token.token_id)
            self._append(out, token.token_id, token.logprobs, self._chars - _continues(data))
            self._chars += _begun(data)
        return out

    def _shown(self, token: int, data: bytes, text: str, at: int) -> int:
        """Characters that begin in a token of the prompt, by what the text shows of it: special tokens that the
        tokenizer added, and the blank that some put before every text, are not there."""
        if token in self._tokenizer.special_token_ids:
            piece = self._tokenizer.token_text(token)
            return len(piece) if text.startswith(piece, at) else 0
        blank = data.startswith(b" ") and not text.startswith(" ", at)
        return _begun(data) - blank

    def _append(self, out: Lists, token: int, entry: TokenLogprobs | None, offset: int) -> None:
        text = self._tokenizer.token_text(token)
        out["tokens"].append(text)
        out["text_offset"].append(max(0, offset))
        if entry is None:
            out["token_logprobs"].append(None)
            out["top_logprobs"].append(None)
            return
        logprob = max(entry.logprob, LOWEST_LOGPROB)
        top = {text: logprob}
        for token_id, value in entry.top[: self._count]:
            top.setdefault(self._tokenizer.token_text(token_id), max(value, LOWEST_LOGPROB))
        out["token_logprobs"].append(logprob)
        out["top_logprobs"].append(top)


def join_lists(lists: Lists, more: Lists) -> Lists:
    """Put further entries behind the ones there are; returns ``lists``."""
    for name, values in more.items():
        lists[name] += values
    return lists


def _lists() -> Lists:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def _begun(data: bytes) -> int:
    """Characters that begin in these bytes of UTF-8."""
    return sum(byte & 0xC0 != 0x80 for byte in data)


def _continues(data: bytes) -> int:
    """1 where the first byte belongs to a character begun before."""
    return int(bool(data) and data[0] & 0xC0 == 0x80)
