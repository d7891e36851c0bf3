from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from braid.core.metrics import SLO, RequestTimes, goodput, jct, slo_attainment, summary
from braid.lab.measures.measure import Measures, measure, summary_of
from braid.lab.measures.samples import program_frame, request_frame, samples
from braid.lab.replay.outcome import STATUSES, Outcome
from braid.lab.replay.record import Run, load_run, save_run
from braid.lab.table import TraceError

Make = Callable[..., Run]


def ok(
    request: int, at: float, pieces: tuple[float, ...], tokens: tuple[int, ...], lag: float = 0.0
) -> Outcome:
    """An answer whose pieces came so long after the scheduled time; it ended with the last of them."""
    return Outcome(
        request=request,
        status="ok",
        scheduled_s=at,
        sent_s=at + lag,
        chunk_times_s=tuple(at + piece for piece in pieces),
        chunk_tokens=tokens,
        end_s=at + (pieces[-1] if pieces else 1.0),
        http_status=200,
        prompt_tokens=10,
        completion_tokens=sum(tokens),
        attempts=1,
    )


def bad(request: int, status: str, at: float | None, **more: object) -> Outcome:
    sent = None if status == "unsent" else at
    return Outcome(request=request, status=status, scheduled_s=at, sent_s=sent, end_s=sent, **more)  # type: ignore[arg-type]


def test_latency_by_hand(make_run: Make) -> None:
    """Two answers: tokens at 1, 1, 3 s and at 2 s, the first sent 0.01 s late."""
    run = make_run([ok(0, 5.0, (1.0, 3.0), (2, 1), lag=0.01), ok(1, 6.0, (2.0,), (1,))])
    found = measure(run)
    assert found.latency["ttft"] == pytest.approx((2, 1.5, 1.5, 1.9, 1.99, 2.0))
    assert found.latency["ttft_from_send"] == pytest.approx((2, 1.495, 1.495, 1.899, 1.9899, 2.0))
    assert found.latency["tbt"] == pytest.approx(
        (2, 1.0, 1.0, 1.8, 1.98, 2.0)
    )  # 0 inside a piece, 2 s between
    assert found.latency["piece_gap"] == pytest.approx((1, 2.0, 2.0, 2.0, 2.0, 2.0))
    assert found.latency["tpot"] == pytest.approx((1, 1.0, 1.0, 1.0, 1.0, 1.0))  # one token has no TPOT
    assert found.latency["e2e"] == pytest.approx((2, 2.5, 2.5, 2.9, 2.99, 3.0))
    assert found.send_lag == pytest.approx((2, 0.005, 0.005, 0.009, 0.0099, 0.01))
    assert found.valid


def test_formulas_are_those_of_the_core(busy_run: Make) -> None:
    run = busy_run(300)
    answered = run.frame.filter(
        pl.col("status") == "ok", pl.col("scheduled_s").is_between(*run.head.window_s)
    )
    times = [
        RequestTimes(
            request_id=str(row["request"]),
            arrival=row["scheduled_s"],
            first_scheduled=row["scheduled_s"],
            token_times=np.repeat(row["chunk_times_s"], row["chunk_tokens"]).tolist(),
            end=row["end_s"],
        )
        for row in answered.iter_rows(named=True)
    ]
    slo = SLO(ttft=1.5, tpot=0.031, e2e=6.0)
    found = measure(run, slo)
    assert found.latency["ttft"] == pytest.approx(summary(one.ttft for one in times))
    assert found.latency["e2e"] == pytest.approx(summary(one.e2e for one in times))
    assert found.latency["tpot"] == pytest.approx(summary(one.tpot for one in times if one.tpot is not None))
    assert found.latency["tbt"] == pytest.approx(summary(gap for one in times for gap in one.tbts))
    missed = found.counts.measured - len(times)
    assert 0 < found.goodput.kept < len(times)
    assert found.goodput.attainment == pytest.approx(slo_attainment(times, slo, num_refused=missed))
    low, high = run.head.window_s
    assert found.goodput.per_s == pytest.approx(goodput(times, slo, duration=high - low))


def test_completion_of_programs(make_run: Make) -> None:
    """a: two answered turns; b: a turn refused; c: begins before the window."""
    outcomes = [
        ok(0, 10.0, (1.0,), (1,)), ok(1, 13.0, (2.0,), (1,)), ok(2, 11.0, (1.0,), (1,)), bad(3, "refused", 12.0),
        ok(4, 1.0, (1.0,), (1,)), ok(5, 20.0, (1.0,), (1,)),
    ]  # fmt: skip
    run = make_run(outcomes, {"program": ["a", "a", "b", "b", "c", "c"]}, window_s=(5.0, 30.0))
    found = measure(run, SLO(jct=4.0))
    assert found.latency["jct"] == pytest.approx((1, 5.0, 5.0, 5.0, 5.0, 5.0))
    assert found.latency["jct"].max == jct(  # type: ignore[union-attr]
        [
            RequestTimes(request_id="", arrival=10.0, first_scheduled=10.0, token_times=[11.0]),
            RequestTimes(request_id="", arrival=13.0, first_scheduled=13.0, token_times=[15.0]),
        ]
    )
    counts = found.counts
    assert (counts.programs, counts.programs_finished, counts.programs_unfinished) == (2, 1, 1)
    assert found.goodput.program_attainment == 0.0
    assert measure(run, SLO(jct=5.0)).goodput.program_attainment == 0.5
    assert program_frame(run)["kept"].to_list() == [True, False, True]


def test_goodput_counts_what_was_planned(make_run: Make) -> None:
    """One of seven kept its limit: late, refused, failed, unsent and never scheduled ones all count."""
    outcomes = [
        ok(0, 1.0, (0.5,), (1,)), ok(1, 2.0, (5.0,), (1,)), bad(2, "refused", 3.0), bad(3, "error", 3.0),
        bad(4, "timed_out", 4.0), bad(5, "unsent", 5.0), bad(6, "unsent", None),
    ]  # fmt: skip
    run = make_run(outcomes, {"start_s": [1.0, 2.0, 3.0, 3.0, 4.0, 5.0, 6.0]}, window_s=(0.0, 10.0))
    found = measure(run, SLO(ttft=1.0))
    assert found.counts.measured == 7
    assert (found.goodput.kept, found.goodput.attainment, found.goodput.per_s) == (1, 1 / 7, 0.1)
    assert found.goodput.shares == {"answered": 2 / 7, "ttft": 1 / 7}


def test_cancels_are_judged_by_what_they_saw(make_run: Make) -> None:
    seen = ok(0, 1.0, (0.5, 0.6), (1, 1))
    cancelled = Outcome(
        request=1,
        status="cancelled",
        scheduled_s=1.0,
        sent_s=1.0,
        chunk_times_s=(3.0,),
        chunk_tokens=(1,),
        end_s=3.0,
    )
    unanswered = Outcome(request=2, status="cancelled", scheduled_s=1.0, sent_s=1.0, end_s=4.0)
    run = make_run([seen, cancelled, unanswered])
    assert request_frame(run, SLO(ttft=2.0))["kept"].to_list() == [True, True, False]
    assert request_frame(run, SLO(ttft=1.0))["kept"].to_list() == [True, False, False]
    assert measure(run).latency["ttft"].num == 1  # type: ignore[union-attr]


def test_the_window_leaves_warm_up_and_drain_out(make_run: Make) -> None:
    run = make_run([ok(n, float(n), (1.0 + n,), (1,)) for n in range(10)], window_s=(2.0, 5.0))
    found = measure(run)
    assert (found.counts.before, found.counts.measured, found.counts.after) == (2, 4, 4)
    assert found.latency["ttft"] == pytest.approx((4, 4.5, 4.5, 5.7, 5.97, 6.0))
    # answers end at 1, 3, 5, ...: two of them, and as many tokens and prompts of 10, within [2, 5]
    assert found.throughput == pytest.approx((3.0, 2 / 3, 20 / 3, 2 / 3))
    assert found.run_throughput == pytest.approx((19.0, 10 / 19, 100 / 19, 10 / 19))


def test_in_concurrency_mode_an_unscheduled_turn_lies_where_its_group_stopped(make_run: Make) -> None:
    outcomes = [ok(0, 1.0, (1.0,), (1,)), bad(1, "unsent", None), bad(2, "unsent", None)]
    plan = {"group": [0, 0, 1], "start_s": [None, 50.0, None]}
    found = measure(make_run(outcomes, plan, plan={"arrivals": "concurrency"}, window_s=(0.0, 10.0)))
    assert (found.counts.measured, found.counts.unplaced) == (2, 1)
    assert found.goodput.attainment == 0.5
    assert any("1 request was never reached" in text for text in found.verdict.warnings)
    head = {"plan": {"arrivals": "concurrency"}, "window_s": (0.0, 10.0), "stopped": "Ctrl-C"}
    stopped = measure(make_run(outcomes, plan, **head))
    assert (stopped.counts.measured, stopped.counts.unplaced) == (1, 2)


def test_a_client_late_by_200_ms_says_so(make_run: Make, busy_run: Make) -> None:
    late = measure(make_run([ok(n, float(n), (1.0,), (1,), lag=0.2) for n in range(5)]))
    assert late.send_lag == pytest.approx((5, 0.2, 0.2, 0.2, 0.2, 0.2))
    assert not late.valid
    assert late.verdict.reasons == (
        "The client was late: p99 of the send lag is 200 ms, over the limit of 20 ms.",
    )
    shifted = measure(busy_run(100, late_s=0.2))
    assert shifted.send_lag is not None
    assert shifted.send_lag.p50 > 0.2
    assert not shifted.valid


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"problems": ("sender 1 died",)}, "Sender 1 died."),
        ({"window_s": (50.0, 60.0)}, "No request was planned within the measured window"),
    ],
)
def test_reasons_of_the_head(make_run: Make, change: dict[str, object], words: str) -> None:
    found = measure(make_run([ok(0, 1.0, (1.0,), (1,))], **change))
    assert not found.valid
    assert words in " ".join(found.verdict.reasons)


def test_reasons_of_the_rows(make_run: Make) -> None:
    def reasons(run: Run, **columns: object) -> str:
        frame = run.frame.with_columns(pl.Series(name, values) for name, values in columns.items())
        return " ".join(measure(Run(run.head, frame)).verdict.reasons)

    run = make_run([ok(n, 1.0 + n, (1.0,), (1,)) for n in range(3)])
    assert reasons(run) == ""
    assert "1 of 3 pieces may have lain" in reasons(run, num_reads=[1, 1, 1], num_late_reads=[0, 0, 1])
    assert "The sends span 1.500 s instead of 2.000 s" in reasons(run, sent_s=[1.5, 2.0, 3.0])
    assert "1 request was sent before" in reasons(run, sent_s=[0.9, 2.0, 3.0])
    assert "3 requests were scheduled at another time" in reasons(run, start_s=[0.8, 1.8, 2.8])
    assert "2 of 3 prompts" in reasons(run, prompt_tokens=[11, 9, 10])
    assert "request 0: 10 planned, 11 counted" in reasons(run, prompt_tokens=[11, 9, 10])
    assert "Requests were lost" in reasons(run, request=pl.Series([0, 1, 1], dtype=pl.UInt32))
    assert "Requests were lost" in reasons(run, status=pl.Series(["ok", None, "ok"], dtype=pl.Enum(STATUSES)))


def test_a_live_history_may_have_prompts_of_other_lengths(make_run: Make) -> None:
    run = make_run([ok(0, 1.0, (1.0,), (1,))], {"in_tok": [12], "segment_toks": [[12]]}, history="live")
    found = measure(run)
    assert found.valid
    assert found.achieved.prompt_examples == ((0, 12, 10),)
    assert any("another number of tokens" in text for text in found.verdict.warnings)


def test_warnings(make_run: Make) -> None:
    def warnings(outcomes: list[Outcome], **head: object) -> str:
        return " ".join(measure(make_run(outcomes, **head)).verdict.warnings)

    assert "5% of the median TTFT" in warnings([ok(0, 1.0, (0.1,), (1,), lag=0.01)])
    assert "not enforced: 3 tokens came where 3" in warnings(
        [ok(0, 1.0, (1.0,), (3,))], output_enforced=False
    )
    assert "1 answer ended well without" in warnings([ok(0, 1.0, (), ())])
    assert "before its plan did: Ctrl-C." in warnings([ok(0, 1.0, (1.0,), (1,))], stopped="Ctrl-C")


def test_planned_and_done(make_run: Make) -> None:
    outcomes = [
        ok(0, 1.0, (1.0,), (3,)),
        ok(1, 2.0, (1.0,), (5,)),
        ok(2, 3.0, (1.0,), (4,)),
        bad(3, "refused", 4.0),
    ]
    run = make_run(outcomes, {"out_tok": [4, 4, 4, 4]}, planned_hit_rate=0.4)
    frame = run.frame.with_columns(
        cached_tokens=pl.Series([5, 0, None, None], dtype=pl.Int64), sent_s=pl.Series([2.5, 2.0, 3.0, 4.0])
    )
    done = measure(Run(run.head, frame)).achieved
    assert (done.outputs, done.outputs_shorter, done.outputs_longer) == (3, 1, 1)
    assert (done.planned_output_tokens, done.output_tokens) == (12, 12)
    assert (done.cached_share, done.planned_cached_share) == (0.25, 0.4)
    assert (done.prompts_counted, done.prompts_wrong) == (3, 0)
    assert (done.swapped, done.worst_swap_s) == (1, 0.5)
    assert (done.planned_span_s, done.sent_span_s) == (3.0, 2.0)


def test_refusals_and_reasons(make_run: Make) -> None:
    outcomes = [
        bad(0, "refused", 1.0, retry_after_s=2.0, attempts=3, reason="429: full"),
        bad(1, "refused", 2.0, attempts=1, reason="503: loading"),
        bad(2, "refused", 2.0, attempts=1, reason="503: loading"),
        *(bad(n, "error", 3.0, attempts=1, reason=f"500: {chr(90 - n)}") for n in range(3, 20)),
    ]
    found = measure(make_run(outcomes))
    assert found.refusals == (1, 2, 2)
    assert len(found.failures) == 10
    assert found.failures[0] == ("refused", "503: loading", 2)


def test_reasons_that_differ_by_numbers_are_one(make_run: Make) -> None:
    texts = [
        *(f"400: the prompt has {8200 + n} tokens, 8192 are the most (req-7f{n}e)" for n in range(5)),
        *("400: full", "500: full", "400: full", "500: FULL", ""),
    ]
    found = measure(make_run([bad(n, "error", 3.0, attempts=1, reason=text) for n, text in enumerate(texts)]))
    assert found.failures == (
        ("error", f"{texts[0]} (numbers differ)", 5),
        ("error", "400: full", 2),
        ("error", "500: full", 1),
        ("error", "500: FULL", 1),
        ("error", "", 1),
    )


def test_rows_over_time(make_run: Make) -> None:
    outcomes = [
        ok(0, 0.0, (1.0,), (2,)),
        ok(1, 0.5, (1.0,), (4,)),
        bad(2, "refused", 1.2),
        ok(3, 3.0, (0.5,), (1,)),
    ]
    found = measure(make_run(outcomes, window_s=(0.0, 2.0)))
    assert found.window_step_s == 1.0
    rows = found.windows
    assert [(row.start_s, row.end_s) for row in rows] == [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 3.5)]
    assert [row.planned for row in rows] == [2, 1, 0, 1]
    assert [row.outcomes for row in rows] == [{"ok": 2}, {"refused": 1}, {}, {"ok": 1}]
    assert [row.failed for row in rows] == [0, 1, 0, 0]
    assert [row.measured for row in rows] == [True, True, False, False]
    assert [row.throughput for row in rows] == [0.0, 2.0, 0.0, 2.0]  # the last is half a second long
    assert [row.output for row in rows] == [0.0, 6.0, 0.0, 2.0]
    assert [row.open for row in rows] == pytest.approx([1.5, 0.5, 0.0, 1.0])
    assert [row.ttft_p50 for row in rows] == [1.0, None, None, 0.5]
    assert [row.tbt_p99 for row in rows] == [None, 0.0, None, None]
    assert len(measure(make_run(outcomes), window_step_s=0.5).windows) == 7


def test_a_long_drain_makes_no_endless_table(make_run: Make) -> None:
    found = measure(make_run([ok(n, n / 10, (6000.0,), (1,)) for n in range(10)]))
    assert (len(found.windows), found.window_step_s) == (200, 30.0)


@pytest.mark.parametrize(
    ("step", "rounded"), [(1.0, 1.0), (1.32, 1.5), (8.1, 10.0), (12.0, 15.0), (41.0, 60.0), (130.0, 180.0)]
)
def test_steps_have_round_lengths(make_run: Make, step: float, rounded: float) -> None:
    assert measure(make_run([bad(0, "refused", 30 * step)])).window_step_s == rounded


def test_nothing_planned(make_run: Make) -> None:
    found = measure(make_run([]))
    assert (found.counts.planned, found.windows, found.conserved) == (0, (), True)
    assert all(value is None for value in found.latency.values())
    assert found.goodput.attainment is None
    assert not found.valid
    json.dumps(found.as_json(), allow_nan=False)


def test_all_failed(make_run: Make) -> None:
    found = measure(
        make_run([bad(n, "unreachable", float(n), attempts=1) for n in range(4)], window_s=(0.0, 3.0))
    )
    assert found.latency["ttft"] is None
    assert (found.goodput.attainment, found.goodput.per_s) == (0.0, 0.0)
    assert found.measured_outcomes["unreachable"] == 4
    assert found.valid  # the server's failure, not the client's
    json.dumps(found.as_json(), allow_nan=False)


def test_a_run_that_contradicts_itself(make_run: Make) -> None:
    run = make_run([ok(0, 1.0, (1.0, 2.0), (1,))])
    with pytest.raises(TraceError, match="request 0: 2 pieces of output, but tokens of 1"):
        measure(run)


def test_pieces_without_tokens_carry_no_times(make_run: Make) -> None:
    found = samples(make_run([ok(0, 0.0, (1.0, 2.0, 4.0), (0, 1, 1)), ok(1, 0.0, (1.0,), (0,))]))
    assert found.tokens.tolist() == [2, 0]
    assert found.ttft.tolist() == pytest.approx([2.0, np.nan], nan_ok=True)
    assert found.gap_s.tolist() == [2.0]


def test_json_has_the_fields_as_keys(busy_run: Make) -> None:
    found = measure(busy_run(200), SLO(ttft=1.0))
    plain = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert list(plain) == [field.name for field in fields(Measures)]
    assert plain["latency"]["ttft"]["p99"] == found.latency["ttft"].p99  # type: ignore[union-attr]
    assert plain["verdict"]["valid"] is True
    assert plain["slo"] == {"ttft": 1.0, "tpot": None, "e2e": None, "jct": None}


def test_a_saved_run_measures_the_same(busy_run: Make, tmp_path: Path) -> None:
    run = busy_run(100)
    save_run(run, tmp_path / "run")
    assert measure(load_run(tmp_path / "run")).as_json() == measure(run).as_json()


@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_summaries_are_those_of_the_core(values: list[float]) -> None:
    assert summary_of(np.array([*values, np.nan])) == pytest.approx(summary(values), abs=1e-6)


TIME = st.none() | st.floats(0, 50)
PIECES = st.lists(st.tuples(st.floats(0, 50), st.integers(0, 3)), max_size=3).map(sorted)


@st.composite
def outcomes(draw: st.DrawFn) -> list[Outcome]:
    rows = draw(st.lists(st.tuples(st.sampled_from(STATUSES), TIME, TIME, TIME, PIECES), max_size=12))
    return [
        Outcome(
            request=number,
            status=status,
            scheduled_s=scheduled,
            sent_s=sent,
            end_s=end,
            chunk_times_s=tuple(float(time) for time, _ in pieces),
            chunk_tokens=tuple(tokens for _, tokens in pieces),
        )
        for number, (status, scheduled, sent, end, pieces) in enumerate(rows)
    ]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(outcomes(), st.sampled_from(["trace", "concurrency"]))
def test_nothing_is_lost_whatever_came(make_run: Make, rows: list[Outcome], arrivals: str) -> None:
    found = measure(
        make_run(rows, window_s=(10.0, 30.0), plan={"arrivals": arrivals}), SLO(ttft=1.0, e2e=5.0)
    )
    counts = found.counts
    assert found.conserved
    assert sum(found.outcomes.values()) == len(rows) == counts.planned
    assert counts.before + counts.measured + counts.after + counts.unplaced == counts.planned
    assert sum(found.measured_outcomes.values()) == counts.measured
    assert sum(row.planned for row in found.windows) == counts.planned - counts.unplaced
    assert sum(sum(row.outcomes.values()) for row in found.windows) == counts.planned - counts.unplaced
    assert counts.programs == counts.programs_finished + counts.programs_unfinished
    assert found.goodput.kept <= counts.measured
    json.dumps(found.as_json(), allow_nan=False)


def test_a_cache_that_knew_prompts_from_before_the_run_is_a_warning(make_run: Make) -> None:
    run = make_run([ok(n, 1.0 + n, (1.0,), (1,)) for n in range(3)], planned_hit_rate=0.1)
    frame = run.frame.with_columns(prompt_tokens=pl.lit(10), cached_tokens=pl.lit(5))
    assert "knew prompts from before the run" in " ".join(measure(Run(run.head, frame)).verdict.warnings)
    frame = run.frame.with_columns(prompt_tokens=pl.lit(10), cached_tokens=pl.lit(1))
    assert "knew prompts" not in " ".join(measure(Run(run.head, frame)).verdict.warnings)
