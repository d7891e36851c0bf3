"""How the token budget of a mixed step is shared between decodes and prefill chunks."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Share(NamedTuple):
    """Tokens granted to decodes (one each) and to prefill chunks."""

    num_decode_tokens: int
    num_prefill_tokens: int


class Partition(Protocol):
    """Must grant a token whenever the budget is at least one, or a step could be empty for ever."""

    def share(self, budget: int, num_decodes: int) -> Share:
        """``num_decodes`` requests want one token each."""
        ...


class DecodeFirst:
    """Decodes never wait; prefill takes what is left (Sarathi-Serve's stall-free batching, arXiv
    2403.02310, section 4).
    """

    def share(self, budget: int, num_decodes: int) -> Share:
        granted = min(budget, num_decodes)
        return Share(granted, budget - granted)
