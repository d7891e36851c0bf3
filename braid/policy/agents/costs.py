"""What it costs to bring a program's KV back: computing it again, or copying it up from the tier below.

Both are learnt while serving, from the steps and transfers that happen anyway; until then a prior holds.
"""

from __future__ import annotations

from typing import Protocol


class Costs(Protocol):
    """Seconds. One object per engine; the scheduler feeds it, policies ask it."""

    def prefill_s(self, num_tokens: int, start: int = 0) -> float:
        """To compute ``num_tokens`` tokens of a prompt on top of ``start`` that are there."""
        ...

    def reload_s(self, num_blocks: int) -> float:
        """To copy so many blocks from the tier below to the device; infinite where there is none."""
        ...

    def observe_step(self, num_tokens: int, attended: float, num_decodes: int, seconds: float) -> None:
        """A step has computed ``num_tokens`` prompt tokens that attend to ``attended`` token pairs, beside so many
        decodes."""
        ...

    def observe_reload(self, num_blocks: int, seconds: float) -> None: ...
