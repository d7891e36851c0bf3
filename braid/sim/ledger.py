"""Where every prompt token's KV came from, judged by what was really computed before: the simulator forgets nothing."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from braid.policy.agents.program import Finish, ProgramId
from braid.sched.observer import Origins, TurnStart, TurnStop


class Ledger:
    """Counts origins of prompts' tokens, as an observer of one scheduler.

    A block is compulsory the first time that anybody needs it, and recomputed ever after unless it is found. A turn
    that was preempted counts again only what it had lost.
    """

    num_dropped = 0

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._seen: set[bytes] = set()
        self.tokens = dict.fromkeys(Origins._fields, 0)

    def started(self, turn: TurnStart) -> None:
        for name, count in zip(Origins._fields, self._origins(turn), strict=True):
            self.tokens[name] += count

    def stopped(self, turn: TurnStop) -> None:
        self._seen.update(turn.keys)

    def told(self, program: ProgramId, finish: Finish, now: float) -> None:
        pass

    def _origins(self, turn: TurnStart) -> Origins:
        told = turn.origins
        if turn.is_again:
            return told
        found = told.device_hit + told.host_reload + told.disk_reload
        known = max(found, self._num_known(turn.keys) * self._block_size)
        return told._replace(recompute=known - found, compulsory=turn.num_tokens - known)

    def _num_known(self, keys: Sequence[bytes]) -> int:
        """Keys form chains: whoever computed one had computed all before it."""
        return bisect_left(range(len(keys)), True, key=lambda index: keys[index] not in self._seen)
