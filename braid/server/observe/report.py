"""What is known of one call when it has ended: read by the metrics, the access log, the request log and the span."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from braid.core.program import ProgramRef
from braid.core.request import PhaseTimes


@dataclass(slots=True, eq=False)
class CallReport:
    """Filled while a call runs. Holds token ids, never text.

    Args:
        n: outputs per prompt; choice ``i`` belongs to prompt ``i // n``.
        cache_salt: blocks are shared among calls of equal salt only.
        start: the arrival, on the ``perf_counter`` clock.
        first_token, last_token: when the first and the last token of any choice came, on the same clock.
        finish_reasons: by choice, as the client saw it; ``abort`` and ``error`` where it saw none.
        num_tokens, num_cached_tokens: by choice.
        call_names: the tools that were called, in order.
        times: the engine's own, of the choice that ended last.
    """

    id: str
    model: str
    prompts: tuple[tuple[int, ...], ...]
    n: int
    cache_salt: str
    start: float
    program: ProgramRef | None = None
    constraint: str | None = None
    """The kind of grammar that holds its outputs."""
    first_token: float | None = None
    last_token: float | None = None
    finish_reasons: dict[int, str] = field(default_factory=dict)
    num_tokens: dict[int, int] = field(default_factory=dict)
    num_cached_tokens: dict[int, int] = field(default_factory=dict)
    call_names: list[str] = field(default_factory=list)
    times: PhaseTimes | None = None

    @property
    def ttft(self) -> float | None:
        """Seconds from the arrival to the first token."""
        return None if self.first_token is None else self.first_token - self.start

    @property
    def per_token(self) -> float | None:
        """Seconds per token after the first, of a call with one choice; None of others and of a single token."""
        num_tokens = self.num_tokens.get(0, 0)
        if len(self.num_tokens) != 1 or num_tokens < 2 or self.first_token is None or self.last_token is None:
            return None
        return (self.last_token - self.first_token) / (num_tokens - 1)

    @property
    def finish_reason(self) -> str | None:
        """The one reason of all choices; ``mixed`` where they differ."""
        return self.reason_of(self.finish_reasons)

    def reason_of(self, choices: Iterable[int]) -> str | None:
        """The same of some choices."""
        known = self.finish_reasons
        reasons = {known[choice] for choice in choices if choice in known}
        return reasons.pop() if len(reasons) == 1 else "mixed" if reasons else None
