"""Whether the numbers of a run may be believed: reasons against it, and warnings, as sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from braid.core.metrics import Summary
from braid.lab.measures.achieved import Achieved
from braid.lab.measures.samples import Samples
from braid.lab.replay.record import Run, RunHead

SPAN_SLACK = 0.01
LAG_SHARE = 0.05
READ_SHARE = 0.2
FOREIGN_SHARE = 0.02
LATE_READS = 0.01
"""Share of the pieces that may be read later than the limit: p99 of the read lag, over pieces."""


class Verdict(NamedTuple):
    """``reasons``: why the run is invalid, none for a valid one. ``warnings``: what else a reader must know."""

    valid: bool
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]


def judge(
    run: Run,
    found: Samples,
    latency: Mapping[str, Summary | None],
    lag: Summary | None,
    read_lag: Summary | None,
    done: Achieved,
    conserved: bool,
) -> Verdict:
    """Judge a run by its client: a slow or failing server makes no run invalid."""
    head = run.head
    reasons = (*_client(head, found, lag), *_schedule(head, done), *_prompts(head, done, True))
    if not conserved:
        reasons = ("Requests were lost: the outcomes do not add up to the plan.", *reasons)
    warnings = (*_small(latency, lag, read_lag), *_outputs(head, found, done), *_prompts(head, done, False))
    if head.stopped:
        warnings = (f"The run ended before its plan did: {_sentence(head.stopped)}", *warnings)
    return Verdict(not reasons, reasons, warnings)


def _client(head: RunHead, found: Samples, lag: Summary | None) -> Iterator[str]:
    limit = head.lag_limit_s
    if not found.measured.any():
        yield "No request was planned within the measured window: nothing was measured."
    elif lag is None:
        yield "No request of the measured window was sent: nothing was measured."
    yield from (_sentence(problem) for problem in head.problems)
    if lag is not None and lag.p99 > limit:
        yield f"The client was late: p99 of the send lag is {_ms(lag.p99)}, over the limit of {_ms(limit)}."
    late, reads = int(found.late_reads[found.measured].sum()), int(found.reads[found.measured].sum())
    if late > LATE_READS * reads:
        yield (
            f"The client was slow to read: {late:,} of {reads:,} pieces may have lain there for longer than "
            f"{_ms(limit)}, so times of tokens are wrong by as much."
        )


def _schedule(head: RunHead, done: Achieved) -> Iterator[str]:
    off = abs(done.sent_span_s - done.planned_span_s)
    if off > SPAN_SLACK * done.planned_span_s and off > head.lag_limit_s:
        yield (
            f"The sends span {done.sent_span_s:,.3f} s instead of {done.planned_span_s:,.3f} s: more than "
            f"{SPAN_SLACK:.0%} off."
        )
    if done.early:
        yield f"{_requests(done.early)} sent before the scheduled time."
    if done.moved and head.plan.get("arrivals") != "concurrency":
        yield f"{_requests(done.moved)} scheduled at another time than the plan's, so the lag says too little."


def _prompts(head: RunHead, done: Achieved, as_errors: bool) -> Iterator[str]:
    """With a live history the prompt holds what the server answered, so its length may differ."""
    if done.prompts_wrong and as_errors == (head.history == "recorded"):
        first = done.prompt_examples[0]
        yield (
            f"{done.prompts_wrong:,} of {done.prompts_counted:,} prompts have another number of tokens than planned, "
            f"by the server's count; the first is request {first.request}: {first.planned:,} planned, "
            f"{first.counted:,} counted."
        )


def _small(
    latency: Mapping[str, Summary | None], lag: Summary | None, read_lag: Summary | None
) -> Iterator[str]:
    ttft, gap = latency["ttft"], latency["piece_gap"]
    if lag and ttft and lag.p99 > LAG_SHARE * ttft.p50:
        yield (
            f"p99 of the send lag ({_ms(lag.p99)}) is over {LAG_SHARE:.0%} of the median TTFT ({_ms(ttft.p50)}): small "
            "differences of TTFT mean nothing."
        )
    if read_lag and gap and gap.p50 > 0 and read_lag.p99 > READ_SHARE * gap.p50:
        yield (
            f"One answer in a hundred had a piece that was read up to {_ms(read_lag.p99)} late, over {READ_SHARE:.0%} "
            f"of the median gap between pieces ({_ms(gap.p50)}): single gaps may be off by that much."
        )


def _outputs(head: RunHead, found: Samples, done: Achieved) -> Iterator[str]:
    other = done.outputs_shorter + done.outputs_longer
    if not head.output_enforced:
        yield (
            f"Output lengths were not enforced: {done.output_tokens:,} tokens came where "
            f"{done.planned_output_tokens:,} were planned."
        )
    elif other:
        yield (
            f"{other:,} of {done.outputs:,} answers have another length than planned, though the server was made to "
            f"give it: {done.outputs_shorter:,} shorter, {done.outputs_longer:,} longer."
        )
    if (
        head.history == "recorded"
        and done.cached_share is not None
        and done.planned_cached_share is not None
        and done.cached_share > done.planned_cached_share + FOREIGN_SHARE
    ):
        yield (
            f"The server took {done.cached_share:.1%} of the prompt tokens from its cache, and the plan shares only "
            f"{done.planned_cached_share:.1%}: it knew prompts from before the run."
        )
    empty = int((found.has("ok") & (found.tokens == 0)).sum())
    if empty:
        yield f"{empty:,} {'answer' if empty == 1 else 'answers'} ended well without a single token: no TTFT."
    unplaced = int(np.isnan(found.at).sum())
    if unplaced:
        yield f"{_requests(unplaced)} never reached: planned, but in no window."


def _requests(num: int) -> str:
    return "1 request was" if num == 1 else f"{num:,} requests were"


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.3g} ms" if seconds < 1 else f"{seconds:,.3g} s"
