"""What a server can do, found by asking it before a run: model, context, tokenizer, forced lengths.

Written with the standard library's HTTP client: a handful of requests, nothing hurried.
"""

from __future__ import annotations

from dataclasses import dataclass

from braid.core.errors import BraidError
from braid.lab.replay.files import Form


class TargetError(BraidError, ValueError):
    """A server is not there, or lacks what a replay needs; the text says what was tried."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Where to send. ``url`` is a base URL (with or without /v1); ``model`` None for the only one there is."""

    url: str
    model: str | None = None
    api_key: str | None = None


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Words that the server's tokenizer reads as exactly one ordinary token each, also one after another.

    ``texts[i]`` (each begins with a space) is the token ``ids[i]``.
    """

    texts: tuple[str, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerFacts:
    """What was found.

    Args:
        model: the served name.
        max_tokens: its context, if the server says.
        server: name and version, if it says.
        form: how prompts are written: ``ids`` and ``text`` go to /v1/completions, ``chat`` to /v1/chat/completions.
        vocabulary: what prompts are made of.
        overhead_tokens: what the server adds to a prompt of any length (BOS, a chat template), counted in ``in_tok``.
        turn_overhead_tokens: what each further pair of messages adds in a chat with live history.
        output_enforced: the server answers with exactly as many tokens as asked.
        continuous_usage: it says with every piece of a stream how many tokens there were.
        reports_cached: its usage tells cached prompt tokens.
        notes: what it could not do, one sentence each.
    """

    model: str
    max_tokens: int | None
    server: str
    form: Form
    vocabulary: Vocabulary
    overhead_tokens: int = 0
    turn_overhead_tokens: int = 0
    output_enforced: bool = True
    continuous_usage: bool = False
    reports_cached: bool = False
    notes: tuple[str, ...] = ()
