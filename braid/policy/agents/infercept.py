"""InferCept (arXiv 2402.01869): keep, swap or discard at each tool call, whatever wastes least memory x time.

Own reading of the paper, in token-seconds:

- keep: own KV x the expected gap;
- discard: (own KV + that of the others that run) x the time to compute the context again;
- swap: (own KV + that of the others) x the time to copy the context down and up again, where there is a tier below.

Nothing stands for the wait in the queue: that is what Continuum adds. The paper judges anew while the call lasts, with
the time so far in place of the expected gap; here a hold ends when keeping has cost as much as the best alternative.
"""

from __future__ import annotations

from braid.core.request import Status
from braid.policy.agents.costs import Costs
from braid.policy.agents.gaps import ToolGaps
from braid.policy.agents.policy import Fate, Keep, Rank
from braid.policy.agents.program import Finish, Program, Turn


class Batch:
    """The turns that run. Told of starts only: those that have ended are dropped when somebody asks, or when there are
    twice as many as last time."""

    def __init__(self) -> None:
        self._turns: list[Turn] = []
        self._limit = 64

    def add(self, turn: Turn) -> None:
        if len(self._turns) >= self._limit:
            self._drop_ended()
            self._limit = 64 + 2 * len(self._turns)
        self._turns.append(turn)

    def num_tokens_beside(self, program: Program) -> int:
        """With KV, of turns of others."""
        self._drop_ended()
        return sum(turn.request.num_computed_tokens for turn in self._turns if turn.program is not program)

    def _drop_ended(self) -> None:
        # A turn that was preempted and has started again is in the list twice.
        running = {turn.number: turn for turn in self._turns if turn.request.status is Status.RUNNING}
        self._turns = list(running.values())


class InferCept:
    """Args:
    expected_s: the gap of a tool before anything was seen.
    """

    is_ranked = False

    def __init__(self, costs: Costs, batch: Batch, expected_s: float, gaps: ToolGaps | None = None) -> None:
        self._costs, self._batch = costs, batch
        self._expected_s = expected_s
        self._gaps = gaps or ToolGaps()

    def arrived(self, program: Program, gap_s: float, now: float) -> None:
        if program.tool is not None:
            self._gaps.add(program.tool, gap_s)

    def started(self, program: Program, waited_s: float, found: float, now: float) -> None:
        pass

    def ended(self, program: Program, now: float) -> Keep:
        if program.tool is None or program.finish is Finish.ABORT:
            return Keep()
        own = max(1, program.num_tokens)
        stalled = own + self._batch.num_tokens_beside(program)
        discard = stalled * self._costs.prefill_s(program.num_tokens)
        swap = stalled * 2 * self._costs.reload_s(len(program.keys))
        expected_s, source = self._expected(program.tool)
        if own * expected_s <= min(discard, swap):
            return Keep(min(discard, swap) / own, Fate.REST, source)
        return Keep(0.0, Fate.SWAP if swap < discard else Fate.DISCARD, source)

    def left(self, program: Program, now: float) -> None:
        pass

    def rank(self, program: Program, now: float) -> Rank:
        return Rank(0, 0.0, 1.0)

    def _expected(self, tool: str) -> tuple[float, str]:
        own = self._gaps.of(tool)
        if own:
            return sum(own) / len(own), "tool"
        return (self._gaps.all.mean, "global") if len(self._gaps.all) else (self._expected_s, "cold")
