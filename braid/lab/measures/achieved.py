"""What was done of the plan: tokens, cached tokens, and the order and span of the sends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl

from braid.lab.measures.samples import Samples
from braid.lab.replay.record import Run

NUM_EXAMPLES = 10


class Mismatch(NamedTuple):
    """A request whose prompt the server counted otherwise than it was planned."""

    request: int
    planned: int
    counted: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Achieved:
    """Planned against done, over the whole run.

    Args:
        prompts_counted: requests whose prompt tokens the server said; ``prompts_wrong`` of them are not as planned,
            ``prompt_examples`` the first ten of those.
        outputs, outputs_shorter, outputs_longer: answered requests, and those with other lengths than planned.
        planned_output_tokens, output_tokens: of the answered requests.
        cached_share: prompt tokens that the server took from its cache, of the counted ones of requests that say;
            None where none does.
        planned_cached_share: what a cache without limit would give, where the plan says.
        planned_span_s, sent_span_s: from the first to the last scheduled time of sent requests, and of their sends.
        swapped: neighbours in the schedule that were sent the other way round; ``worst_swap_s`` the longest by which
            a request was sent before one that was scheduled earlier.
        early: requests sent before their time; ``moved``: requests that wait for nothing whose scheduled time is not
            the plan's.
    """

    prompts_counted: int
    prompts_wrong: int
    prompt_examples: tuple[Mismatch, ...]
    outputs: int
    outputs_shorter: int
    outputs_longer: int
    planned_output_tokens: int
    output_tokens: int
    cached_share: float | None
    planned_cached_share: float | None
    planned_span_s: float
    sent_span_s: float
    swapped: int
    worst_swap_s: float
    early: int
    moved: int


CLOCK_S = 1e-3
"""Differences of times below this are rounding."""


def achieved(run: Run, found: Samples) -> Achieved:
    """Compare a run with its plan."""
    frame = run.frame
    counted = frame.filter(pl.col("prompt_tokens").is_not_null())
    wrong = counted.filter(pl.col("prompt_tokens") != pl.col("in_tok"))
    examples = wrong.select("request", "in_tok", "prompt_tokens").head(NUM_EXAMPLES).rows()
    answers = frame.with_columns(
        got=pl.coalesce("completion_tokens", pl.Series(found.tokens, dtype=pl.Int64))
    ).filter(pl.col("status") == "ok")
    planned_span, sent_span, swapped, worst = _sends(found)
    said = counted.filter(pl.col("cached_tokens").is_not_null())
    total = int(said["prompt_tokens"].sum())
    return Achieved(
        prompts_counted=counted.height,
        prompts_wrong=wrong.height,
        prompt_examples=tuple(Mismatch(*row) for row in examples),
        outputs=answers.height,
        outputs_shorter=answers.filter(pl.col("got") < pl.col("out_tok")).height,
        outputs_longer=answers.filter(pl.col("got") > pl.col("out_tok")).height,
        planned_output_tokens=int(answers["out_tok"].sum()),
        output_tokens=int(answers["got"].sum()),
        cached_share=int(said["cached_tokens"].sum()) / total if total else None,
        planned_cached_share=run.head.planned_hit_rate,
        planned_span_s=planned_span,
        sent_span_s=sent_span,
        swapped=swapped,
        worst_swap_s=worst,
        early=int((found.lag < -CLOCK_S).sum()),
        moved=_moved(run),
    )


def _sends(found: Samples) -> tuple[float, float, int, float]:
    """Both spans, and how far the sends are out of order."""
    sent = ~np.isnan(found.lag)
    if not sent.any():
        return 0.0, 0.0, 0, 0.0
    order = np.argsort(found.scheduled[sent], kind="stable")
    planned, done = found.scheduled[sent][order], found.sent[sent][order]
    later = np.diff(planned) > 0  # ties may go in any order
    swapped = int((later & (np.diff(done) < 0)).sum())
    worst = float((np.maximum.accumulate(done) - done).max()) if swapped else 0.0
    return float(np.ptp(planned)), float(np.ptp(done)), swapped, worst


def _moved(run: Run) -> int:
    """Requests that wait for nothing are scheduled by the plan's clock, or the lag would be of no use."""
    free = run.frame.filter(pl.col("after").list.len() == 0, pl.col("scheduled_s").is_not_null())
    return int((free["scheduled_s"] - free["start_s"]).abs().gt(CLOCK_S).sum())
