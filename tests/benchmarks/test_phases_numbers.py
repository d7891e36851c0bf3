"""What the benchmarks of phases count, on courses made by hand."""

from __future__ import annotations

import argparse
from pathlib import Path

import freeze
import phases
import phases_work
import pytest
from phases_cost import Steps
from phases_work import STREAM, Asked, Course, Row, Size


def test_a_gap_counts_inside_if_it_overlaps_the_window() -> None:
    """Stream 1 stalls from before the window until after it; stream 2 goes on; tokens after the end do not count."""
    streams = [[[0.0, 1.0, 9.0, 9.5]], [[0.0, 1.0, 3.0, 5.0, 7.0, 9.0, 9.9, 12.0]]]
    found = freeze.numbers_of(streams, [freeze.Window(2.0, 8.0)], end=10.0)
    assert found["tbt_ms"]["max"] == 8000
    assert found["tbt_ms"]["p50"] == 2000
    assert found["tbt_outside_ms"]["max"] == pytest.approx(2100)
    assert found["decode_tok_s"] == {"inside": 3 / 6, "outside": 8 / 4}
    assert found["ttft_s"] == [6.0]


def test_a_stream_that_begins_anew_has_no_gap_between_its_parts() -> None:
    found = freeze.numbers_of([[[0.0, 1.0], [50.0, 51.0]]], [freeze.Window(0.5, 60.0)], end=60.0)
    assert found["tbt_ms"]["max"] == 1000


LIMITS = argparse.Namespace(slo_ttft_ms=1000.0, slo_tbt_ms=100.0)


def asked(kind: str, sent: float, times: list[float], num_prompt: int = 10, num_cached: int = 0) -> Asked:
    return Asked(kind, sent, num_prompt, [1] * len(times), times, num_cached, True)


def test_tokens_in_time() -> None:
    """Two late tokens of a stream, one before the beginning; a prompt that is late, and one that is half cached."""
    course = Course(
        [
            asked(STREAM, 0.0, [0.5, 0.9, 1.2, 1.25, 1.3]),
            asked("long", 1.0, [2.5], num_prompt=100),
            asked("long", 2.5, [3.0, 3.05], num_prompt=60, num_cached=32),
        ],
        begin=1.0,
        end=5.0,
    )
    run = phases.Run(course, Steps(), 2.0)
    found = phases.numbers_of([run], LIMITS)
    assert found["decode_tok_s"] == 4 / 4
    assert found["prefill_tok_s"] == (100 + 28) / 4
    assert found["in_time_tok_s"] == (2 + 1 + 1) / 4
    assert found["goodput"] == 1 / 4
    assert found["attainment"] == {"ttft": 0.5, "tbt": 0.75}
    assert found["ttft_ms"]["max"] == 1500
    assert found["ttft_mean_ms"] == 1000
    assert found["prefix_hits"] == 32
    assert found["switches_s"] == 2 / 4
    twice = phases.numbers_of([run, run], LIMITS)
    assert twice["goodput"] == found["goodput"]


def test_the_contract_of_the_json() -> None:
    """What others read of it, per workload and mode; a mode that there was no time for is left out."""
    course = Course([asked("long", 0.0, [0.5, 0.58, 0.66])], begin=0.0, end=2.0)
    options = argparse.Namespace(**vars(LIMITS), modes=["auto", "mixed"])
    runs = {"burst": {"auto": [phases.Run(course, Steps(), 1.0)], "mixed": []}}
    found = phases.summed(runs, options)
    assert set(found["workloads"]["burst"]) == {"auto"}
    mode = found["workloads"]["burst"]["auto"]
    for name in ("tbt_ms", "ttft_ms"):
        assert list(mode[name]) == ["p50", "p90", "p99", "max"]
    assert all(mode[name] > 0 for name in ("decode_tok_s", "prefill_tok_s", "goodput"))


def numbers(ttft: float, tbt: float, goodput: float) -> phases.Numbers:
    return {
        "ttft_ms": {"p50": ttft},
        "ttft_mean_ms": ttft,
        "tbt_ms": {"p99": tbt},
        "decode_tok_s": goodput,
        "prefill_tok_s": 50.0,
        "in_time_tok_s": goodput,
        "goodput": goodput,
    }


def test_lanes_are_compared_with_the_chunk_of_their_ttft() -> None:
    found = {
        "mixed": numbers(500, 900, 5),
        "mixed:64": numbers(1040, 300, 10),
        "mixed:32": numbers(2000, 200, 12),
        "layered:1": numbers(980, 225, 15),
        "layered:3": numbers(700, 250, 16),
        "prefill-first": numbers(480, 4000, 4),
        "static:50/50": numbers(1000, 100, 19),
        "auto": numbers(1000, 150, 20),
    }
    result = phases.versus(found)
    assert result["tuned_serial"]["mode"] == "layered:1", "of two with that TTFT the one with shorter gaps"
    assert result["tuned_serial"]["tbt_p99"] == 1.5
    assert result["tuned_mixed"]["mode"] == "mixed:64"
    assert result["tuned_mixed"]["is_equal_ttft"]
    assert result["tuned_mixed"]["tbt_p99"] == 2
    assert result["tuned_mixed"]["decode"] == 2
    assert not result["prefill_first"]["is_equal_ttft"]
    assert result["best_static"]["goodput"] == 20 / 19
    assert result["best_fixed"]["mode"] == "static:50/50"
    assert phases.versus({"mixed": found["mixed"]}) == {}


def test_the_stretch_with_the_worst_burst_of_the_wanted_load() -> None:
    """1,000 tokens in 10 s: evenly spread first, and then all at once; more than that later."""
    even = [Row(float(at), 100, 9) for at in range(10)]
    burst = [Row(31.0 + at / 10, 100, 900) for at in range(10)]
    flood = [Row(60.0 + at / 10, 300, 9) for at in range(10)]
    chosen = phases_work.busy([*even, *burst, *flood, Row(99.0, 1, 1)], Size(burst_s=10.0, load_tok_s=100.0))
    assert [round(row.at_s, 1) for row in chosen] == [round(at / 10, 1) for at in range(10)]
    assert {row.num_out for row in chosen} == {48}


def test_the_azure_trace_is_read(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4808,10\n"
        "2023-11-16 18:17:04.4799600,8,8\n"
        "2023-11-16 18:17:05.9799600,90000,27\n"
    )
    rows = phases_work.read_azure(path, 0.25)
    assert [(round(row.at_s, 3), row.num_prompt, row.num_out) for row in rows] == [
        (0.0, 1202, 10),
        (0.5, 8, 8),
        (2.0, 1500, 27),
    ]


def test_no_two_workloads_share_a_prompt() -> None:
    size = Size(programs=3, turns=2)
    prompts = []
    for run in range(2):
        for work in phases_work.workloads(size, 40_000, None, seed=1):
            prompts += [tuple(next(client).prompt[:16]) for client in work.clients(run)]
    assert len(set(prompts)) == len(prompts) > 40
