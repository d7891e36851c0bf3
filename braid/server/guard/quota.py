"""How much may be under way: bounds for everybody together, and for each principal."""

from __future__ import annotations

from collections import Counter
from types import TracebackType

from braid.server.config import ServerConfig
from braid.server.errors import too_many, unavailable
from braid.server.guard.keys import Principal

_RETRY_SECONDS = 2.0


class Ticket:
    """The share of one call; give it back when the call has ended."""

    def __init__(self, quotas: Quotas, principal: Principal, num_sequences: int, num_tokens: int) -> None:
        self._quotas = quotas
        self._share = (principal.name, num_sequences, num_tokens)
        self._open = True

    def __enter__(self) -> Ticket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Give the share back; only the first call counts."""
        if self._open:
            self._open = False
            self._quotas._leave(*self._share)


class Quotas:
    """Counts sequences under way, queued and running, by principal."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._sequences: Counter[str] = Counter()

    def enter(self, principal: Principal, num_sequences: int, num_tokens: int) -> Ticket:
        """Admit a call of ``num_sequences`` outputs and ``num_tokens`` prompt tokens.

        Raises:
            HttpError: 503 where the server is full, 429 where the principal has its share already.
        """
        limit = self._config.max_queued
        if self._sequences.total() + num_sequences > limit:
            raise unavailable(f"{limit} requests are under way already", retry_after=_RETRY_SECONDS)
        share = max(1, limit // 4) if principal.name else limit
        if self._sequences[principal.name] + num_sequences > share:
            raise too_many(f"this key has {share} requests under way already", retry_after=_RETRY_SECONDS)
        self._sequences[principal.name] += num_sequences
        return Ticket(self, principal, num_sequences, num_tokens)

    def _leave(self, name: str, num_sequences: int, num_tokens: int) -> None:
        self._sequences[name] -= num_sequences
        if not self._sequences[name]:
            del self._sequences[name]
