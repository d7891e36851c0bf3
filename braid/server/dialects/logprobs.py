"""Log-probabilities of tokens, in OpenAI's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from braid.server.decode import Token
from braid.text.tokenizer import Tokenizer

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot say (OpenAI's own choice)."""


def logprob_entries(tokenizer: Tokenizer, tokens: Sequence[Token]) -> list[dict[str, Any]]:
    """One entry per token that has log-probabilities, with its alternatives."""
    return [
        {
            **_entry(tokenizer, token.logprobs.token_id, token.logprobs.logprob),
            "top_logprobs": [_entry(tokenizer, *other) for other in token.logprobs.top],
        }
        for token in tokens
        if token.logprobs is not None
    ]


def _entry(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    return {
        "token": tokenizer.token_text(token_id),
        "logprob": max(logprob, LOWEST_LOGPROB),
        "bytes": list(tokenizer.token_bytes(token_id)),
    }
