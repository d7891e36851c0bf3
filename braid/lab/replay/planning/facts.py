"""A plan in numbers, for people who want to know what a replay would do."""

from __future__ import annotations

from typing import Any

from braid.lab.replay.planning.content import planned_hit_rate
from braid.lab.replay.planning.plan import ReplayPlan


def plan_facts(plan: ReplayPlan, block_tok: int = 16) -> dict[str, Any]:
    """Requests, programs, tokens, span, what is left out, the hit rate of an endless prefix cache of
    blocks of ``block_tok`` tokens, the hash."""
    frame = plan.frame
    waiting = frame["after"].list.len() > 0
    return {
        "source": plan.source,
        "requests": frame.height,
        "programs": frame["program"].n_unique(),
        "groups": frame["group"].n_unique(),
        "waiting_turns": int(waiting.sum()),
        "prompt_tokens": int(frame["in_tok"].sum()),
        "output_tokens": int(frame["out_tok"].sum()),
        "longest": int((frame["in_tok"] + frame["out_tok"]).max() or 0),  # type: ignore[arg-type]
        "cancelled": frame["cancel_after_tok"].drop_nulls().len(),
        "span_s": float(frame["start_s"].max() or 0.0),  # type: ignore[arg-type]
        "unsendable": {name: len(rows) for name, rows in plan.unsendable.items()},
        "hit_rate": planned_hit_rate(plan, block_tok),
        "hit_rate_block": block_tok,
        "notes": list(plan.notes),
        "sha256": plan.sha256,
    }
