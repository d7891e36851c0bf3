"""Many small steps simulated as one larger step: for traces that would take millions of decode steps.

A grain of ``g`` makes ``g`` tokens one unit: lengths and blocks are counted in units, so a planned step stands for
``g`` steps of the engine, in which every decode gains ``g`` tokens and prompts the tokens of their chunks. Who is next
is decided every ``g`` steps, and lengths are rounded; with a grain of 1 nothing differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from braid.core.step import Work
from braid.policy.cost import Estimate
from braid.sim.executor import StepTime


def units(tokens: int, grain: int) -> int:
    """Tokens in units, to the nearest; rising in ``tokens``, so that equal beginnings stay equal."""
    return (2 * tokens + grain) // (2 * grain)


@dataclass(frozen=True, slots=True)
class Grained:
    """The time of planned steps whose tokens are units.

    Args:
        cost: of one step of the engine.
        grain: tokens per unit.
        budget: tokens that one step of the engine computes at most.
    """

    cost: StepTime
    grain: int
    budget: int

    def step(self, works: Iterable[Work]) -> Estimate:
        """Where something is decoded the steps are ``grain``, else as many as the chunks need."""
        if self.grain == 1:
            return self.cost.step(works)
        decodes: list[Work] = []
        chunks: list[Work] = []
        for work in works:
            (decodes if work.is_decode else chunks).append(work)
        singles = [self._single(work) for work in decodes]
        with_chunks = self._num_steps(chunks, len(decodes)) if chunks else 0
        total = Estimate(0.0)
        if with_chunks:
            mixed = [*singles, *self._parts(chunks, with_chunks)]
            total = self.cost.step(mixed).times(with_chunks)
        if singles and with_chunks < self.grain:
            total = total.plus(self.cost.step(singles).times(self.grain - with_chunks))
        return total

    def _num_steps(self, chunks: list[Work], num_decodes: int) -> int:
        tokens = self.grain * sum(len(work.token_ids) for work in chunks)
        steps = -(-tokens // max(1, self.budget - num_decodes))
        return min(steps, self.grain) if num_decodes else steps

    def _single(self, work: Work) -> Work:
        """The decode in the middle of the steps."""
        return Work(work.request_id, range(1), work.start * self.grain + self.grain // 2, (), work.sample)

    def _parts(self, chunks: list[Work], steps: int) -> Iterator[Work]:
        """Of every chunk the part in the middle."""
        for work in chunks:
            tokens = len(work.token_ids) * self.grain
            part = max(1, tokens // steps)
            yield Work(
                work.request_id, range(part), work.start * self.grain + (tokens - part) // 2, (), work.sample
            )
