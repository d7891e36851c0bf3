"""Measures in words: sentences and rows, for the page and for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from braid.core.metrics import SLO, Summary
from braid.lab.figures import duration
from braid.lab.measures.measure import Measures
from braid.lab.measures.windows import Window
from braid.lab.replay.outcome import STATUSES
from braid.lab.tables import Rows, number, percent

LATENCIES = (
    ("ttft", "TTFT"),
    ("tbt", "TBT, per token"),
    ("piece_gap", "gap between pieces"),
    ("tpot", "TPOT"),
    ("e2e", "E2E"),
    ("jct", "JCT, per program"),
    ("ttft_from_send", "TTFT from the send"),
    ("e2e_from_send", "E2E from the send"),
)
LIMITS = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "E2E", "jct": "JCT"}
MEANINGS = {
    "ok": "answered to its end",
    "refused": "429 or 503, after all retries",
    "error": "another HTTP status, or an error inside the stream",
    "timed_out": "the client's limit passed",
    "cancelled": "the client hung up, as planned",
    "cut": "the connection ended inside the answer",
    "unreachable": "no connection",
    "rubbish": "an answer that is not what the endpoint promises",
    "unsent": "never sent",
}


def headline(found: Measures) -> str:
    """One sentence: may the numbers be believed?"""
    if not found.valid:
        return "INVALID: these numbers say more about the client than about the server."
    limit = duration(found.head.lag_limit_s)
    lag = duration(found.send_lag.p99) if found.send_lag else "unknown"
    return f"Valid: the client was on time, with a p99 of the send lag of {lag} (limit {limit})."


def limits_of(slo: SLO) -> str:
    """``TTFT <= 1 s and TPOT <= 50 ms``; empty without limits."""
    pairs = ((name, getattr(slo, key)) for key, name in LIMITS.items())
    return " and ".join(f"{name} ≤ {duration(limit)}" for name, limit in pairs if limit is not None)


def card_pairs(found: Measures) -> list[tuple[str, str]]:
    """The few numbers to see first: pairs (name, value)."""
    ttft, tpot, jct = (found.latency[name] for name in ("ttft", "tpot", "jct"))
    rates = found.throughput or found.run_throughput
    pairs = [
        ("planned requests", f"{found.counts.measured:,}"),
        ("answered", percent(found.goodput.shares.get("answered"))),
        ("TTFT p50", _time(ttft.p50 if ttft else None)),
        ("TTFT p99", _time(ttft.p99 if ttft else None)),
        ("TPOT p50", _time(tpot.p50 if tpot else None)),
    ]
    if jct and found.has_programs:
        pairs.append(("JCT p50", _time(jct.p50)))
    if rates:
        pairs += [
            ("answers / s", number(rates.requests, 3)),
            ("output tokens / s", number(rates.output_tokens, 3)),
        ]
    if limits_of(found.slo):
        pairs.append(("within the limits", percent(found.goodput.attainment)))
    return pairs


def sentences(found: Measures) -> list[str]:
    """What the run says, readable without a table."""
    return [*_what(found), *_how_fast(found), *_how_good(found), *_how_true(found)]


def _what(found: Measures) -> Iterator[str]:
    counts, outcomes = found.counts, found.measured_outcomes
    low, high = found.head.window_s
    outside = counts.planned - counts.measured
    rest = f"; {_some(outside, 'more request', 'lies', 'lie')} outside of it" if outside else ""
    programs = (
        f", and {_some(counts.programs, 'program', 'began', 'began')} in it" if found.has_programs else ""
    )
    yield (
        f"{_some(counts.measured, 'request', 'was', 'were')} planned in the measured {duration(high - low)}"
        f"{programs}{rest}."
    )
    if counts.measured:
        bad = [
            f"{outcomes[name]:,} {name.replace('_', ' ')}"
            for name in STATUSES
            if name != "ok" and outcomes[name]
        ]
        others = f"; {', '.join(bad)}" if bad else ""
        answered = f"{outcomes['ok']:,} ({outcomes['ok'] / counts.measured:.1%})"
        yield f"{answered} {'was' if outcomes['ok'] == 1 else 'were'} answered{others}."


def _how_fast(found: Measures) -> Iterator[str]:
    ttft, tpot, jct = (found.latency[name] for name in ("ttft", "tpot", "jct"))
    if ttft:
        yield (
            f"Half of the answers began within {duration(ttft.p50)} of their scheduled time, 99% within "
            f"{duration(ttft.p99)}."
        )
    if tpot:
        yield f"After that a token took {duration(tpot.p50)} in the median, and {duration(tpot.p99)} at p99 (TPOT)."
    if jct and found.has_programs:
        yield (
            f"A program took {duration(jct.p50)} in the median and {duration(jct.p99)} at p99 (JCT of the "
            f"{jct.num:,} programs answered in full; {found.counts.programs_unfinished:,} "
            f"{'was' if found.counts.programs_unfinished == 1 else 'were'} not)."
        )
    if found.throughput:
        rates = found.throughput
        yield (
            f"The server gave {number(rates.requests, 3)} answers, {number(rates.output_tokens, 3)} output tokens and "
            f"{number(rates.prompt_tokens, 3)} prompt tokens per second."
        )


def _some(num: int, what: str, one: str, many: str) -> str:
    return f"{num:,} {what} {one}" if num == 1 else f"{num:,} {what}s {many}"


def _how_good(found: Measures) -> Iterator[str]:
    limits, good = limits_of(found.slo), found.goodput
    if good.attainment is None or not limits:
        return
    if any(getattr(found.slo, name) is not None for name in ("ttft", "tpot", "e2e")):
        rate = "" if good.per_s is None else f", a goodput of {number(good.per_s, 3)} requests/s"
        yield f"{good.attainment:.1%} of the window's planned requests kept {limits_of(_of_requests(found.slo))}{rate}."
    if found.slo.jct is not None and good.program_attainment is not None:
        yield (
            f"{good.program_attainment:.1%} of its programs were answered in full with JCT ≤ {duration(found.slo.jct)}."
        )


def _of_requests(slo: SLO) -> SLO:
    return SLO(ttft=slo.ttft, tpot=slo.tpot, e2e=slo.e2e)


def _how_true(found: Measures) -> Iterator[str]:
    done = found.achieved
    if done.cached_share is not None and (done.cached_share or done.planned_cached_share):
        planned = ""
        if done.planned_cached_share is not None:
            planned = f"; a cache without limit would hold {done.planned_cached_share:.1%}"
        yield f"The server took {done.cached_share:.1%} of the prompt tokens from its cache{planned}."
    if found.refusals.retries:
        yield f"{found.refusals.retries:,} further attempts followed refusals."


def latency_rows(found: Measures) -> Rows:
    """From the scheduled time, then from the send; without what would only be said twice."""
    skipped = set() if found.has_programs else {"jct"}
    if found.latency["piece_gap"] == found.latency["tbt"]:
        skipped.add("piece_gap")
    columns = ("latency", "number", "mean", "p50", "p90", "p99", "max")
    return Rows(
        columns, [(name, *_summary(found.latency[key])) for key, name in LATENCIES if key not in skipped]
    )


def lag_rows(found: Measures) -> Rows:
    """The client's own delays."""
    pairs = (("send lag", found.send_lag), ("read lag", found.read_lag))
    columns = ("client", "number", "mean", "p50", "p90", "p99", "max")
    return Rows(columns, [(name, *_summary(entry)) for name, entry in pairs])


def _summary(entry: Summary | None) -> tuple[str, ...]:
    if entry is None:
        return ("0", *["-"] * 5)
    return (f"{entry.num:,}", *(_time(value) for value in entry[1:]))


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"-{duration(-seconds)}" if seconds < 0 else duration(seconds)


def goodput_rows(found: Measures) -> Rows:
    """Shares of the planned requests and programs."""
    good, total = found.goodput, found.counts.measured
    cells: list[tuple[str, ...]] = [
        ("answered at all", f"{found.measured_outcomes['ok']:,}", percent(good.shares.get("answered")))
    ]
    for key, name in LIMITS.items():
        if key in good.shares:
            limit = f"{name} ≤ {duration(getattr(found.slo, key))}"
            cells.append((limit, f"{round(good.shares[key] * total):,}", percent(good.shares[key])))
    if len(good.shares) > 2:
        cells.append(("all of these", f"{good.kept:,}", percent(good.attainment)))
    if found.has_programs:
        cells.append(("programs answered in full", *_of_programs(found.counts.programs_finished, found)))
    if found.slo.jct is not None:
        limit = f"programs with JCT ≤ {duration(found.slo.jct)}"
        cells.append((limit, *_of_programs(good.programs_kept, found)))
    return Rows(("of what was planned", "number", "share"), cells)


def _of_programs(num: int, found: Measures) -> tuple[str, str]:
    total = found.counts.programs
    return f"{num:,}", percent(num / total if total else None)


def outcome_rows(found: Measures) -> Rows:
    """Every status that occurred, of the window and of the whole run."""
    total = found.counts.measured
    cells: list[tuple[str, ...]] = [
        (
            name.replace("_", " "),
            f"{found.measured_outcomes[name]:,}",
            percent(found.measured_outcomes[name] / total if total else None),
            f"{found.outcomes[name]:,}",
            MEANINGS[name],
        )
        for name in STATUSES
        if found.outcomes[name] or name == "ok"
    ]
    cells.append(("planned", f"{total:,}", percent(1.0 if total else None), f"{found.counts.planned:,}", ""))
    return Rows(("outcome", "window", "share", "whole run", "note"), cells)


def achieved_rows(found: Measures) -> Rows:
    """Planned and done, side by side."""
    done = found.achieved
    mean = (
        (f"{done.planned_output_tokens / done.outputs:,.1f}", f"{done.output_tokens / done.outputs:,.1f}")
        if done.outputs
        else ("-", "-")
    )
    other = done.outputs_shorter + done.outputs_longer
    right = done.prompts_counted - done.prompts_wrong
    prompts = (
        f"{right:,} exact" if done.prompts_counted else "not counted",
        f"{done.prompts_wrong:,} wrong" if done.prompts_wrong else "by the server's count",
    )
    enforced = "enforced" if found.head.output_enforced else "not enforced"
    cells: list[tuple[str, ...]] = [
        ("prompt lengths", f"{done.prompts_counted:,}", *prompts),
        ("output tokens, mean", *mean, f"{other:,} of {done.outputs:,} answers differ; {enforced}"),
        ("prompt tokens from cache", percent(done.planned_cached_share), percent(done.cached_share),
         "planned: a cache without limit"),
        ("first to last send", f"{done.planned_span_s:,.2f} s", f"{done.sent_span_s:,.2f} s", "1% off is invalid"),
        ("order of sends", "as scheduled", f"{done.swapped:,} swapped",
         f"the worst by {duration(done.worst_swap_s)}" if done.swapped else ""),
    ]  # fmt: skip
    return Rows(("planned and done", "planned", "done", "note"), cells)


def rate_rows(found: Measures) -> Rows | None:
    """Throughput in the window and over the whole run."""
    pairs = (("measured window", found.throughput), ("whole run", found.run_throughput))
    cells = [
        (name, duration(rates.span_s), *(number(rate, 3) for rate in rates[1:]))
        for name, rates in pairs
        if rates
    ]
    columns = ("per second", "over", "answers", "prompt tokens", "output tokens")
    return Rows(columns, cells) if cells else None


def failure_rows(found: Measures) -> Rows | None:
    """The most frequent reasons."""
    cells: list[tuple[str, ...]] = [
        (entry.status.replace("_", " "), f"{entry.num:,}", entry.reason or "no reason given")
        for entry in found.failures
    ]
    refusals = found.refusals
    if refusals.with_retry_after or refusals.without_retry_after:
        text = f"{refusals.with_retry_after:,} with Retry-After, {refusals.without_retry_after:,} without"
        cells.append(
            (
                "all refused",
                f"{refusals.with_retry_after + refusals.without_retry_after:,}",
                f"of these {text}",
            )
        )
    return Rows(("failure", "number", "note"), cells) if cells else None


def window_rows(found: Measures) -> Rows:
    """The rows over time."""
    columns = ("from", "planned", "load / s", "answers / s", "output tok / s", "open", "TTFT p50", "TTFT p99",
               "TBT p50", "TBT p99", "lag p99", "failed")  # fmt: skip
    return Rows(columns, [_window(row) for row in found.windows])


def _window(row: Window) -> tuple[str, ...]:
    times = (row.ttft_p50, row.ttft_p99, row.tbt_p50, row.tbt_p99, row.lag_p99)
    rates = (row.load, row.throughput, row.output)
    return (
        f"{row.start_s:,.0f} s" + ("" if row.measured else " *"),
        f"{row.planned:,}",
        *(number(rate, 3) for rate in rates),
        f"{row.open:.1f}",
        *map(_time, times),
        f"{row.failed:,}" if row.failed else "",
    )


def condition_pairs(values: Mapping[str, object]) -> list[tuple[str, str]]:
    """Options as words, those that are set."""
    return [
        (name.replace("_", " "), str(value))
        for name, value in values.items()
        if value is not None and value != ""
    ]
