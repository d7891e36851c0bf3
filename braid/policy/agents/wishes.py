"""Which wishes of clients make a difference under a policy, so that nobody is promised what is not done."""

from __future__ import annotations

from braid.policy.agents.policy import AgentPolicy

ALWAYS = ("lease_s", "verbs")
"""Kept by the scheduler, whatever the policy."""
FORESIGHT = ("return_s", "return_p90_s", "tool")
"""What tells when a program comes back."""
LIFETIMES = ("min_s", "max_s")
BY_TOOL = frozenset(("continuum", "infercept", "pin-2s"))
"""Policies that learn gaps of tools and nothing else of a client."""


def acted_on(policy: AgentPolicy) -> tuple[str, ...]:
    """Fields of ``RetainIntent``."""
    if policy.retention.is_ranked:
        return (*ALWAYS, *FORESIGHT, *LIFETIMES)
    if not policy.gate.is_open:
        return (*ALWAYS, *FORESIGHT)
    return (*ALWAYS, "tool") if policy.name in BY_TOOL else ALWAYS
