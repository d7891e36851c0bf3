"""Every change of how the phases share the machine, in the log and in the log of turns: what was decided, and for what.

Changes are rare by the rules of the policies that make them (see ``braid.policy.phases.switching``).
"""

from __future__ import annotations

import logging

from braid.engine.agent_log import AgentLog
from braid.policy.phases.policy import Decided, Demand, Division

logger = logging.getLogger(__name__)


class DivisionLog:
    """Args:
    turns: takes the same as lines; None where there is no log of turns.
    """

    def __init__(self, turns: AgentLog | None) -> None:
        self._turns = turns

    def __call__(self, decided: Decided) -> None:
        logger.info("division: %s", decided.division.why or in_words(*decided))
        if self._turns is not None:
            self._turns.decided(decided)


def in_words(demand: Demand, division: Division) -> str:
    """What a policy decides that gives no reasons."""
    how = "prompts first" if division.is_prefill_first else "one step for both"
    if not division.is_mixed:
        how = f"lanes of {division.prefill_units} and {division.decode_units} units"
    elif division.num_layers:
        how += f", chunks by {division.num_layers} layers"
    return (
        f"{how}; {demand.num_decodes} decodes over {demand.num_context} tokens, {demand.num_prefill} prompt tokens, "
        f"waited {demand.waited_s:.2f} s"
    )
