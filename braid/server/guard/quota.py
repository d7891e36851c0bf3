"""How much may be under way: bounds for everybody together, and for each principal.

Two gates look at the same bounds. ``arrive`` counts HTTP requests at the door, before their bodies are read; ``enter``
counts what a request turned out to be, sequences and prompt tokens, before the engine hears of it.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType

from braid.server.config import ServerConfig
from braid.server.errors import HttpError, too_many, unavailable
from braid.server.guard.keys import Principal

_RETRY_SECONDS = 2.0
"""Where too little has ended to say how fast things go."""
_MEMORY_SECONDS = 60.0

Clock = Callable[[], float]


class Ticket:
    """A share of the bounds; give it back when what it was for has ended."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release = release
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
            self._release()


class DrainRate:
    """How much ends per second, the last minute weighing most."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._start = self._last = clock()
        self._sum = 0.0
        self._events = 0.0

    def ended(self, amount: float) -> None:
        self._fade()
        self._sum += amount
        self._events += 1

    def seconds_for(self, amount: float) -> float:
        """How long it takes until ``amount`` has ended."""
        self._fade()
        seen = _MEMORY_SECONDS * (1 - math.exp((self._start - self._last) / _MEMORY_SECONDS))
        if self._events < 0.5 or seen <= 0 or self._sum <= 0:
            return _RETRY_SECONDS
        return amount * seen / self._sum

    def _fade(self) -> None:
        now = self._clock()
        kept = math.exp((self._last - now) / _MEMORY_SECONDS)
        self._last, self._sum, self._events = now, self._sum * kept, self._events * kept


class Bound:
    """One thing that is counted, with its limit for all and the part of it that one principal may take.

    Whoever has nothing under way may always take one share, however large: it could else never be served.
    """

    def __init__(self, what: str, limit: Callable[[], float | None], share: float, clock: Clock) -> None:
        self._what = what
        self._limit = limit
        self._share = share
        self._taken: Counter[str] = Counter()
        self._total = 0
        self._rate = DrainRate(clock)

    def check(self, name: str, amount: int) -> None:
        """Raises HttpError: 503 where all together have too much under way, 429 where ``name`` has."""
        limit = self._limit()
        if limit is None:
            return
        excess = self._total + amount - limit
        if self._total and excess > 0:
            message = f"{limit:.0f} {self._what} are under way already, more are not queued"
            raise unavailable(message, retry_after=self._rate.seconds_for(excess))
        share = max(1.0, limit * self._share)
        own = self._taken[name] if name else 0
        if own and own + amount > share:
            raise self._too_many(share, own, own + amount - share)

    def _too_many(self, share: float, own: int, excess: float) -> HttpError:
        """This principal's work ends as fast as its part of all work lets it."""
        seconds = self._rate.seconds_for(excess * self._total / own)
        message = f"this key may have {share:.0f} {self._what} under way, and has {own}"
        return too_many(message, retry_after=seconds)

    def take(self, name: str, amount: int) -> None:
        self._taken[name] += amount
        self._total += amount

    def give_back(self, name: str, amount: int) -> None:
        self._total -= amount
        self._taken[name] -= amount
        if not self._taken[name]:
            del self._taken[name]
        self._rate.ended(amount)

    @property
    def total(self) -> int:
        return self._total


class Quotas:
    """Counts what is under way, queued and running, by principal.

    Args:
        kv_tokens: how many tokens the engine's KV blocks hold; None while that is not known.
    """

    def __init__(
        self, config: ServerConfig, kv_tokens: Callable[[], int | None], clock: Clock = time.monotonic
    ) -> None:
        def max_tokens() -> float | None:
            capacity = kv_tokens()
            return None if capacity is None else capacity * config.max_queued_kv

        share = config.key_share if len(config.api_keys) > 1 else 1.0
        self._bytes = Bound("bytes of request bodies", lambda: config.max_pending_bytes, share, clock)
        self._requests = Bound("requests", lambda: config.max_queued, share, clock)
        self._sequences = Bound("outputs", lambda: config.max_queued, share, clock)
        self._tokens = Bound("prompt tokens", max_tokens, share, clock)

    def arrive(self, principal: Principal, num_bytes: int = 0) -> Ticket:
        """Let one HTTP request with a body of ``num_bytes`` in, before anything of it is read.

        Raises:
            HttpError: 503 where the server is full, 429 where the principal has its share already.
        """
        return _take(principal.name, ((self._requests, 1), (self._bytes, num_bytes)))

    def enter(self, principal: Principal, num_sequences: int, num_tokens: int) -> Ticket:
        """Admit a call of ``num_sequences`` outputs and ``num_tokens`` prompt tokens.

        Raises:
            HttpError: 503 where the server is full, 429 where the principal has its share already.
        """
        return _take(principal.name, ((self._sequences, num_sequences), (self._tokens, num_tokens)))

    @property
    def num_sequences(self) -> int:
        return self._sequences.total

    @property
    def num_requests(self) -> int:
        return self._requests.total


def _take(name: str, shares: tuple[tuple[Bound, int], ...]) -> Ticket:
    """All shares or none."""
    for bound, amount in shares:
        bound.check(name, amount)
    for bound, amount in shares:
        bound.take(name, amount)

    def release() -> None:
        for bound, amount in shares:
            bound.give_back(name, amount)

    return Ticket(release)
