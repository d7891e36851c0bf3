"""What it costs to bring a program's KV back: computing it again, or copying it up from the tier below.

Both are learnt while serving, from the steps and transfers that happen anyway; until then a prior holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import NamedTuple, Protocol

from braid.policy.agents.least_squares import LeastSquares


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


class CostPrior(NamedTuple):
    """What is assumed before anything was measured: seconds per step, per prompt token, per pair of a token and one
    that it attends to, per decode; per transfer and per block of it. About an 8B model on a large GPU; the first step
    says how much slower or faster this machine is."""

    step_s: float = 5e-3
    token_s: float = 1e-4
    pair_s: float = 3e-9
    decode_s: float = 1e-4
    transfer_s: float = 1e-3
    block_s: float = 1e-4


class LearntCosts:
    """``Costs`` from steps and transfers as they happen.

    A step takes c + a x tokens + b x attended pairs + d x decodes. A prefill is charged c once: in chunks among other
    work most of that would be paid anyway.

    Args:
        has_lower: whether there is a tier below the device.
    """

    def __init__(self, prior: CostPrior | None = None, *, has_lower: bool = False) -> None:
        prior = prior or CostPrior()
        self._has_lower = has_lower
        self.steps = LeastSquares((prior.step_s, prior.token_s, prior.pair_s, prior.decode_s))
        self.reloads = LeastSquares((prior.transfer_s, prior.block_s))

    def prefill_s(self, num_tokens: int, start: int = 0) -> float:
        if num_tokens <= 0:
            return 0.0
        step_s, token_s, pair_s, _ = self.steps.coefficients
        return step_s + num_tokens * token_s + attended_pairs(num_tokens, start) * pair_s

    def reload_s(self, num_blocks: int) -> float:
        if not self._has_lower:
            return inf
        transfer_s, block_s = self.reloads.coefficients
        return transfer_s + num_blocks * block_s if num_blocks > 0 else 0.0

    def describe(self) -> Mapping[str, float]:
        """What the fits say, on how many samples, and how far they are usually off."""
        step_s, token_s, pair_s, decode_s = self.steps.coefficients
        state = {
            "cost_step_seconds": step_s,
            "cost_prompt_token_seconds": token_s,
            "cost_attended_pair_seconds": pair_s,
            "cost_decode_seconds": decode_s,
            "cost_step_residual_seconds": self.steps.residual,
            "cost_step_samples": self.steps.num,
        }
        if self._has_lower:
            transfer_s, block_s = self.reloads.coefficients
            state |= {
                "cost_reload_seconds": transfer_s,
                "cost_reload_block_seconds": block_s,
                "cost_reload_residual_seconds": self.reloads.residual,
                "cost_reload_samples": self.reloads.num,
            }
        return state

    def observe_step(self, num_tokens: int, attended: float, num_decodes: int, seconds: float) -> None:
        self.steps.add((1.0, num_tokens, attended, num_decodes), seconds)

    def observe_reload(self, num_blocks: int, seconds: float) -> None:
        self.reloads.add((1.0, num_blocks), seconds)


def attended_pairs(num_tokens: int, start: int) -> float:
    """Of ``num_tokens`` tokens on top of ``start``: each attends to itself and to all before it."""
    return num_tokens * start + num_tokens * (num_tokens + 1) / 2
